"""Guessing the encoding of captions that are not UTF-8.

Captions are short, a few words, on which the libraries that guess encodings fail (charset-normalizer 3.5 misreads 6 of
14 such captions of Windows). What helps is that the folder's captions belong together: each encoding
is scored over all of them that need a guess, by how likely its letters are in one language, and the languages of the
captions that are UTF-8 count as evidence too.
"""

from __future__ import annotations

import codecs
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_trainer.dataset import letters

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x19\x1b-\x1f]")
_LOOKED_AT = 4000
"""Bytes of a text that are scored."""
_DAMAGED = "\ufffd"


@dataclass(frozen=True)
class Decoded:
    """A text that was bytes.

    Attributes:
        text: with � for bytes that mean nothing.
        encoding: what it was read as, e.g. ``"cp1252"``.
        guessed: whether nothing but likelihood says so.
    """

    text: str
    encoding: str
    guessed: bool = False

    @property
    def damaged(self) -> bool:
        """Whether bytes of it could not be read."""
        return _DAMAGED in self.text


def decode_all(raws: Sequence[bytes]) -> list[Decoded]:
    """The texts of files that belong together, in their order.

    UTF-8 where it is valid, what a byte order mark says where there is one, else the likeliest of the encodings that
    Windows uses, UTF-16, and UTF-8 with damaged bytes.
    """
    sure = [_certain(raw) for raw in raws]
    known = [found.text for found in sure if found is not None]
    guesses = iter(_guess([raw for raw, found in zip(raws, sure, strict=True) if found is None], known))
    return [next(guesses) if found is None else found for found in sure]


def _certain(raw: bytes) -> Decoded | None:
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return Decoded(raw.decode(encoding, errors="replace"), encoding)
    if _CONTROL.search(raw):  # which valid UTF-8 may hold, but no caption: UTF-16 has zeros and others
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # letters of two bytes are valid UTF-8 by accident too, in Chinese encodings, but seldom ones that there are
    accident = any("\x80" <= character <= "\u07ff" and unicodedata.category(character) == "Cn" for character in text)
    return None if accident else Decoded(text, "utf-8")


# ------------------------------------------------------------------ how likely a text is
@dataclass(frozen=True, eq=False)
class _Script:
    """What texts in one language are made of. Costs are −log of how likely a character is there.

    Attributes:
        common: the letters of everyday words.
        rare: the base encoding that has the others.
        usual: cost of each common letter, beside one over their number.
        unusual: cost of a rare one.
        marks: punctuation of the language that is not ASCII.
        latin: whether its letters stand among ASCII letters within a word.
        pair: cost of two of these right beside each other.
        apart: cost of a letter right beside an ASCII letter.
    """

    common: frozenset[str]
    rare: str
    usual: float = 0.2
    unusual: float = 10.5
    marks: frozenset[str] = frozenset()
    latin: bool = False
    pair: float = 3.0
    apart: float = 4.0
    costs: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _usual(self) -> float:
        return math.log(len(self.common)) + self.usual

    def cost(self, character: str) -> float:
        """Of one character that is not ASCII; remembered."""
        known = self.costs.get(character)
        if known is None:
            known = self.costs[character] = self._cost(character)
        return known

    def _cost(self, character: str) -> float:
        if character in self.common:
            return self._usual
        if character in self.marks:
            return 5.0
        if character in _SYMBOLS and self.latin:
            return 8.0
        if "\uff01" <= character <= "\uff5e" and not self.latin:  # ASCII in full width
            return 8.0
        if character.isalpha() and not "\uff61" <= character <= "\uff9f" and _has(self.rare, character):
            return self.unusual
        return 14.0


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return bool(encoding)


_WIDE = frozenset("，。、；：！？「」『』（）【】《》〈〉“”‘’…—～·・　")
_NARROW = frozenset("’‘“”„–—…°«»¿¡")
_SYMBOLS = frozenset("€£©®½¼¾±×÷·§´")
_KANA = "".join(map(chr, [*range(0x3041, 0x3094), *range(0x30A1, 0x30F7)])) + "ーっッ々"
_SIMPLIFIED = _Script(frozenset(letters.SIMPLIFIED), "gb2312", marks=_WIDE)
_TRADITIONAL = _Script(frozenset(letters.TRADITIONAL), "big5", marks=_WIDE)
_KOREAN = _Script(frozenset(letters.SYLLABLES), "euc_kr", unusual=10.0, marks=_WIDE)
_JAPANESE = _Script(frozenset(letters.KANJI + _KANA), "shift_jis", marks=_WIDE)
_CYRILLIC = _Script(
    frozenset("абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґ"), "cp1251", unusual=5.6, marks=_NARROW | {"№"}, apart=9.0
)
_GREEK = _Script(frozenset("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋ"), "cp1253", unusual=5.6, marks=_NARROW, apart=9.0)
_WESTERN = _Script(frozenset("éèêëàâäáãåçñíìîïóòôöõúùûüæœøß"), "cp1252", 2.0, 8.0, _NARROW, latin=True)
_CENTRAL = _Script(frozenset("ąćęłńóśźżáčďéěíňřšťúůýžőűäöüôľ"), "cp1250", 1.6, 8.0, _NARROW, latin=True, pair=1.0)
_TURKISH = _Script(frozenset("çğıöşüİ"), "cp1254", 2.0, 8.0, _NARROW, latin=True)
_SCRIPTS = (
    *(_SIMPLIFIED, _TRADITIONAL, _KOREAN, _JAPANESE),
    *(_CYRILLIC, _GREEK, _WESTERN, _CENTRAL, _TURKISH),
)
_WORD = re.compile(r"\w+")


def _score(text: str, script: _Script) -> float:
    """−log of how likely a text is in a language; ASCII costs the same everywhere."""
    counts = Counter(text)
    total = 0.0
    for character, count in counts.items():
        if character >= "\x80":
            total += count * script.cost(character)
        elif character >= " " or character in "\t\n\r":
            total += count * 3.5
        else:
            total += count * 15.0
    return total + sum(_oddities(word, script) for word in _WORD.findall(text) if not word.isascii())


def _oddities(word: str, script: _Script) -> float:
    """What is unlikely about the letters of a word together."""
    total = 0.0
    for before, after in itertools.pairwise(word):
        if before.islower() and after.isupper() and not (before + after).isascii():
            total += 4.0
        if before.isalpha() and after.isalpha():
            if before.isascii() != after.isascii() and not script.latin:
                total += script.apart
            if script.latin and before >= "\x80" and after >= "\x80":
                total += script.pair
    return total


# ------------------------------------------------------------------ the encodings
@dataclass(frozen=True)
class _Candidate:
    """An encoding for texts in one language, and what it costs to assume it."""

    encoding: str
    script: _Script
    prior: float
    damage: float = 14.0

    def score(self, raw: bytes) -> float:
        """−log of how likely these bytes are a text in it."""
        text = raw[:_LOOKED_AT].decode(self.encoding, errors="replace")
        damaged = text.count(_DAMAGED)
        return self.prior + damaged * self.damage + _score(text.replace(_DAMAGED, ""), self.script)


_CANDIDATES = (
    *(_Candidate("utf-8", script, 0.0, 10.0) for script in _SCRIPTS),
    *(_Candidate(encoding, script, 2.0) for encoding in ("utf-16-le", "utf-16-be") for script in _SCRIPTS),
    _Candidate("cp1252", _WESTERN, 1.0),
    _Candidate("gb18030", _SIMPLIFIED, 1.0),
    _Candidate("gb18030", _TRADITIONAL, 2.0),
    _Candidate("cp950", _TRADITIONAL, 1.0),
    _Candidate("cp949", _KOREAN, 1.0),
    _Candidate("cp932", _JAPANESE, 1.0),
    _Candidate("euc_jp", _JAPANESE, 3.0),
    _Candidate("cp1251", _CYRILLIC, 2.5),
    _Candidate("koi8_r", _CYRILLIC, 9.0),
    _Candidate("cp1253", _GREEK, 7.0),
    _Candidate("cp1250", _CENTRAL, 2.5),
    _Candidate("cp1254", _TURKISH, 3.5),
)
_TOLERANCE = 5.0
"""How much less likely a text may be in the folder's encoding than in its own likeliest."""
_EVIDENCE = 4.0
"""What the language of the captions that are UTF-8 counts."""
_ALIKE = 0.5
"""How much less likely a letter may be in a language that is as likely as another one."""


def _guess(raws: Sequence[bytes], known: Iterable[str]) -> list[Decoded]:
    """The texts of bytes whose encoding nothing tells: that of most of them, for those that it suits; then the rest."""
    if not raws:
        return []
    expected = _languages(known)
    # what is damaged UTF-8 needs no such help: without a letter left it would be of any language
    helped = [_EVIDENCE if c.encoding != "utf-8" and c.script in expected else 0.0 for c in _CANDIDATES]
    scores = [[c.score(raw) - bonus for c, bonus in zip(_CANDIDATES, helped, strict=True)] for raw in raws]
    chosen: dict[int, _Candidate] = {}
    left = list(range(len(raws)))
    while left:
        best = min(range(len(_CANDIDATES)), key=lambda c: sum(scores[text][c] for text in left))
        # the bytes of one text are not damaged because another's are
        tolerance = 0.0 if _CANDIDATES[best].encoding == "utf-8" else _TOLERANCE
        suited = [text for text in left if scores[text][best] <= min(scores[text]) + tolerance]
        if not suited:  # each is something else
            chosen |= {text: _CANDIDATES[scores[text].index(min(scores[text]))] for text in left}
            break
        chosen |= dict.fromkeys(suited, _CANDIDATES[best])
        left = [text for text in left if text not in chosen]
    return [_decoded(raw, chosen[index].encoding) for index, raw in enumerate(raws)]


def _decoded(raw: bytes, encoding: str) -> Decoded:
    text = raw.decode(encoding, errors="replace").replace("\0", "")
    return Decoded(text, encoding, guessed=encoding != "utf-8" or _DAMAGED in text)


def _languages(known: Iterable[str]) -> list[_Script]:
    """In which languages the known texts are likely, by their letters beyond ASCII, if there are any.

    Several, where these letters do not tell: an é alone is as good French as Czech.
    """
    texts = [text[:_LOOKED_AT] for text in known if text.strip()]
    letters_found = [character for text in texts for character in text if character >= "\x80" and character.isalpha()]
    if not letters_found:
        return [_WESTERN] if texts else []
    text = " ".join(letters_found[:20_000])
    scores = {script: _score(text, script) for script in _SCRIPTS}
    most = min(scores.values()) + _ALIKE * len(letters_found)
    return [script for script, score in scores.items() if score <= most]
