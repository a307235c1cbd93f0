from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset import letters
from lora_trainer.dataset.encodings import Decoded, decode_all
from tests.helpers import CASES

CHINESE = "一个女孩，长发，站在花园里，穿着红色汉服"
TRADITIONAL = "一個女孩，長髮，穿著紅色漢服"
JAPANESE = "魔法少女、長い髪、ひまわり、カタカナ"

FOLDERS: dict[str, list[str]] = {
    "cp1252": [
        *("don’t look", "a café, garden", "a “red” dress", "naïve girl, crème dress", "Mädchen, weiße Straße"),
        *(
            "niño pequeño",
            "L’été, forêt",
            "20° – sunny",
            "a sign “OPEN”",
            "garçon, façade",
            "ÉTÉ, ½ body",
            "the dog’s nose…",
        ),
    ],
    "cp949": ["한복 소녀, 서울", "zorp, 벚꽃 드레스", "긴 머리, 안경", "고양이", "창문 옆에 앉은 남자"],
    "cp950": ["紅色旗袍, 女孩", "少女，長髮", "zorp, 洋裝、街道", "黑髮", "站在海邊的女孩", "貓，窗戶"],
    "cp1251": ["девушка, красное платье", "кот", "Улица, Ночь", "zorp, длинные волосы", "вулиця, їжак"],
    "gbk": ["红裙，街道", "长发", "zorp, 白色连衣裙", "樱花树下", "她的眼睛", "微笑", "猫，窗户"],
    "cp932": ["赤いドレス、街", "少女, 青空, 制服", "ドレス", "黒髪の少女", "zorp, 長い髪、笑顔", "猫耳"],
    "utf-16-le": ["zorp, red dress", "红裙，街道", "girl", "赤いドレス、街", "девушка, дом", "한복 소녀, 서울"],
    "utf-16-be": ["zorp, red dress", "红裙，街道", "a dog", "赤いドレス、街"],
}
"""Captions as people write them, and the encoding that they are saved in."""
ONE_BY_ONE = [(text, encoding) for encoding, texts in FOLDERS.items() for text in texts]


def decode(raw: bytes) -> str:
    return decode_all([raw])[0].text


# ------------------------------------------------------------------ what is certain
@pytest.mark.parametrize("text", [CHINESE, TRADITIONAL, JAPANESE, "naïve café", "plain words", "😀 emoji", "м'яч №5"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_certain(text: str, encoding: str) -> None:
    (found,) = decode_all([text.encode(encoding)])
    assert (found.text, found.guessed, found.damaged) == (text, False, False)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"], ids=["little", "big"])
def test_utf16_of_both_orders(mark: bytes) -> None:
    order = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    assert decode(mark + CHINESE.encode(order)) == CHINESE
    assert decode(mark + CHINESE.encode(order) + b"\x00").startswith(CHINESE)


@given(st.binary(max_size=60))
def test_any_bytes_are_some_text(raw: bytes) -> None:
    assert isinstance(decode(raw), str)


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_each_text_keeps_its_place(raws: list[bytes]) -> None:
    found = decode_all([b"\xff" + raw if index % 2 else b"%d" % index for index, raw in enumerate(raws)])
    assert len(found) == len(raws)
    assert all(text.text == str(index) for index, text in enumerate(found) if not index % 2)


@given(st.text(st.characters(codec="utf-8", min_codepoint=32, exclude_categories=["Cs", "Cn"]), max_size=40))
def test_utf8_is_never_taken_for_anything_else(text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (found,) = decode_all([text.encode(encoding)])
        assert (found.text, found.guessed) == (text.removeprefix("\ufeff"), False)


# ------------------------------------------------------------------ guesses
@pytest.mark.parametrize(("text", "encoding"), ONE_BY_ONE)
def test_one_caption_alone(text: str, encoding: str) -> None:
    (found,) = decode_all([text.encode(encoding)])
    assert found.text == text
    assert found.guessed


@pytest.mark.parametrize("encoding", FOLDERS)
def test_captions_of_a_folder_together(encoding: str) -> None:
    texts = FOLDERS[encoding]
    assert [found.text for found in decode_all([text.encode(encoding) for text in texts])] == texts


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, "gb18030") for text in (CHINESE, TRADITIONAL)),
        *((text, "gbk") for text in (CHINESE, TRADITIONAL)),
        *((JAPANESE, encoding) for encoding in ("cp932", "shift_jis", "euc_jp")),
        ("девушка, красное платье", "koi8_r"),
        ("κορίτσι, κόκκινο φόρεμα", "cp1253"),
        ("dziewczyna w czerwonej sukience, włosy", "cp1250"),
        ("kırmızı elbise, gülümseyen kız", "cp1254"),
        ("🎀 ribbon, 红裙", "gb18030"),
    ],
)
def test_rarer_encodings(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_what_is_short_is_read_as_the_rest_of_the_folder() -> None:
    """Two bytes alone may be anything; other captions tell."""
    for encoding in ("cp950", "gbk", "cp932"):
        rare = {"cp950": "鷺", "gbk": "鹭", "cp932": "鷺"}[encoding]
        raws = [text.encode(encoding) for text in [*FOLDERS[encoding], f"zorp, {rare}"]]
        assert decode_all(raws)[-1].text == f"zorp, {rare}"


def test_languages_of_utf8_captions_are_evidence() -> None:
    raw = "zorp, 街".encode("gbk")
    utf8 = {"한": [t.encode() for t in FOLDERS["cp949"]], "中": [t.encode() for t in FOLDERS["gbk"]]}
    assert decode_all([*utf8["中"], raw])[-1] == Decoded("zorp, 街", "gb18030", guessed=True)
    korean = "zorp, 별".encode("cp949")
    assert decode_all([*utf8["한"], korean])[-1] == Decoded("zorp, 별", "cp949", guessed=True)


@pytest.mark.parametrize("known", ["été", "un café", "école, bébé, café"])
def test_letters_that_several_languages_have_are_evidence_for_each(known: str) -> None:
    raws = [known.encode(), "élève".encode("cp1252")]
    assert decode_all(raws)[1].text == "élève"


def test_folder_of_several_encodings_is_read_text_by_text() -> None:
    pairs = [(texts[0], encoding) for encoding, texts in FOLDERS.items()]
    found = decode_all([text.encode(encoding) for text, encoding in pairs])
    assert [f.text for f in found] == [text for text, _ in pairs]


# ------------------------------------------------------------------ UTF-8 with damage
@pytest.mark.parametrize(
    "text", ["红裙，街道，长发", "赤いドレス、街", "café, naïve, été", "девушка в красном", "한복 소녀, 서울"]
)
@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("byte", [b"\xff", b"\x80", b"\xe9"])
def test_one_bad_byte_leaves_the_rest_as_it_is(text: str, place: float, byte: bytes) -> None:
    at = int(place * len(text))
    raw = text[:at].encode() + byte + text[at:].encode()
    (found,) = decode_all([raw])
    assert (found.encoding, found.guessed, found.damaged) == ("utf-8", True, True)
    assert found.text.replace("\ufffd", "") == text


@pytest.mark.parametrize("text", ["红裙，街道", "赤いドレス、街", "an été", "девушка"])
def test_text_that_was_cut_off_within_a_letter(text: str) -> None:
    (found,) = decode_all([text.encode()[:-1]])
    assert found.text == text[:-1] + "\ufffd"
    assert found.damaged


def test_damage_in_another_encoding_is_told_too() -> None:
    raw = "红裙，街道，站在花园里".encode("gbk") + b"\xff"
    (found,) = decode_all([raw])
    assert found.text.startswith("红裙，街道，站在花园里")
    assert found.damaged


# ------------------------------------------------------------------ the cases, the letters
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("caption-cp1252/apostrophe", "zorp, a girl’s red dress"),
        ("caption-cp1252/accent", "zorp, fiancée in a garden"),
        ("caption-cp1252/quotes", "zorp, a sign that says “OPEN”"),
        ("caption-other-codepages/ko", "zorp, 빨간 드레스"),
        ("caption-other-codepages/ru", "zorp, девушка в красном"),
        ("caption-other-codepages/tw", "zorp, 穿著紅色洋裝"),
        ("caption-other-codepages/u16", "zorp, red dress"),
    ],
)
def test_cases(case: str, words: str) -> None:
    path = CASES / f"{case}.txt"
    assert decode(path.read_bytes()) == words
    together = sorted(path.parent.glob("*.txt"))
    assert decode_all([p.read_bytes() for p in together])[together.index(path)].text == words


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("SIMPLIFIED", "gb2312"), ("TRADITIONAL", "cp950"), ("KANJI", "cp932"), ("SYLLABLES", "cp949")],
)
def test_letters_are_of_their_encoding_and_stand_once(name: str, encoding: str) -> None:
    text = getattr(letters, name)
    assert text == "".join(sorted(set(text)))
    assert text.encode(encoding).decode(encoding) == text
