from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.core.errors import InputError
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.scan import check_dataset, scan
from tests.helpers import CASES, data, draw_pictures


def found(folder: Path, **values: object) -> dict[str, tuple[int, str]]:
    """Repeats and caption of each picture, by its path in the folder."""
    items = scan(data(folder=str(folder), **values)).items
    return {item.path.relative_to(folder).as_posix(): (item.repeats, item.caption) for item in items}


def put(folder: Path, *names: str, caption: str | None = "a caption") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# ------------------------------------------------------------------ folders
def test_flat_folder(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.jpg", "c.webp")
    assert found(tmp_path, repeats=3) == dict.fromkeys(["a.jpg", "b.png", "c.webp"], (3, "a caption"))


def test_nested_folders_are_gone_through(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png")
    assert list(found(tmp_path)) == ["a.png", "sub/b.png", "sub/deep/c.png"]


def test_numbered_folders_give_repeats_and_class_words(tmp_path: Path) -> None:
    put(tmp_path, "10_sks girl/a.png", caption=None)
    put(tmp_path, "10_sks girl/b.png", caption="standing")
    put(tmp_path, "2_dress/sub/c.png", caption=None)
    assert found(tmp_path, repeats=5) == {
        "10_sks girl/a.png": (10, "sks girl"),
        "10_sks girl/b.png": (10, "standing"),
        "2_dress/sub/c.png": (2, "dress"),
    }


def test_concepts_are_the_numbered_folders(tmp_path: Path) -> None:
    put(tmp_path, "10_girl/a.png", "2_dress/b.png", "2_dress/c.png")
    dataset = scan(data(folder=str(tmp_path)))
    assert {name: len(items) for name, items in dataset.concepts().items()} == {"10_girl": 1, "2_dress": 2}
    assert dataset.images == 14
    assert dataset.tag_frequency() == {"10_girl": {"a caption": 1}, "2_dress": {"a caption": 2}}


def test_numbered_folder_may_be_given_itself(tmp_path: Path) -> None:
    put(tmp_path, "10_sks girl/a.png", caption=None)
    assert found(tmp_path / "10_sks girl") == {"a.png": (10, "sks girl")}


@pytest.mark.parametrize(("name", "repeats"), [("5000_x", 1000), ("007_x", 7), ("1_", 1)])
def test_repeats_are_bounded(tmp_path: Path, name: str, repeats: int) -> None:
    put(tmp_path, f"{name}/a.png")
    assert found(tmp_path)[f"{name}/a.png"][0] == repeats


def test_folder_of_zero_repeats_is_not_used(tmp_path: Path) -> None:
    put(tmp_path, "0_off/a.png", "1_on/b.png")
    assert list(found(tmp_path)) == ["1_on/b.png"]


def test_pictures_outside_the_numbered_folders_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "10_girl/a.png", "b.png", "other/c.png", "0_off/d.png")
    dataset = scan(data(folder=str(tmp_path)))
    outside = [p.relative_to(tmp_path).as_posix() for p in dataset.ignored]
    assert outside == ["0_off/d.png", "b.png", "other/c.png"]
    assert dataset.report()["outside_numbered_folders"] == [str(p) for p in dataset.ignored]


@pytest.mark.parametrize("name", ["10girl", "girl_10", "x10_girl", "1.5_girl", "_girl"])
def test_folder_without_number_and_underscore_is_an_ordinary_one(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/a.png")
    assert found(tmp_path) == {f"{name}/a.png": (1, "a caption")}


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".b.png", "._a.png", ".thumbs/c.png", "sub/.d/e.png")
    assert list(found(tmp_path)) == ["a.png"]


def test_hidden_folder_may_be_given_itself(tmp_path: Path) -> None:
    put(tmp_path, ".pictures/a.png")
    assert list(found(tmp_path / ".pictures")) == ["a.png"]


@pytest.mark.parametrize(
    "name", ["汉服 女孩", "a b (1)", "ñandú", "[brackets]", "100%", "$HOME", "'quoted'", "10_汉服"]
)
def test_names_of_any_language(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/{name}.png", caption="汉服")
    assert found(tmp_path / name) == {f"{name}.png": (10 if name.startswith("10_") else 1, "汉服")}


@pytest.mark.parametrize("wrap", ["{}", " {} ", '"{}"', "{}/", "{}/."])
def test_folder_as_people_paste_it(tmp_path: Path, wrap: str) -> None:
    put(tmp_path, "a.png")
    assert len(scan(data(folder=wrap.format(tmp_path))).items) == 1


def test_folder_may_use_the_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PICTURES", str(tmp_path))
    assert len(scan(data(folder="~")).items) == len(scan(data(folder="$PICTURES")).items) == 1


def test_upper_case_extensions_count_and_other_files_do_not(tmp_path: Path) -> None:
    put(tmp_path, "A.PNG", "b.JPeG")
    for name in ("c.psd", "d.txt", "e.png.part", "f.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert list(found(tmp_path)) == ["A.PNG", "b.JPeG"]


def test_folder_named_like_a_picture_is_gone_through(tmp_path: Path) -> None:
    put(tmp_path, "odd.png/a.png")
    assert list(found(tmp_path)) == ["odd.png/a.png"]


# ------------------------------------------------------------------ what is wrong with files
def test_unreadable_picture_is_left_out_with_a_sentence(picture_folder: Path) -> None:
    (picture_folder / "bad.png").write_bytes(b"no picture")
    (picture_folder / "empty.jpg").touch()
    dataset = scan(data(folder=str(picture_folder)))
    assert len(dataset.items) == 4
    assert [str(p).split(" is ")[0] for p in dataset.problems] == [
        str(picture_folder / n) for n in ("bad.png", "empty.jpg")
    ]
    assert dataset.report()["skipped"] == [str(p) for p in dataset.problems]


def test_cut_off_picture_is_found_when_all_are_decoded(picture_folder: Path) -> None:
    path = picture_folder / "00.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert not scan(data(folder=str(picture_folder))).problems
    (problem,) = check_dataset(data(folder=str(picture_folder))).problems
    assert "00.png is damaged or cut off" in str(problem)


def test_pictures_without_captions_are_listed(picture_folder: Path) -> None:
    (picture_folder / "01.txt").unlink()
    (picture_folder / "02.txt").write_text(" \n")
    dataset = scan(data(folder=str(picture_folder), trigger="sks_"))
    assert [p.name for p in dataset.uncaptioned] == ["01.png", "02.png"]
    assert [i.caption for i in dataset.items[1:3]] == ["sks_", "sks_"]


def test_turned_picture_has_the_size_that_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg", exif=exif)
    (item,) = scan(data(folder=str(tmp_path), trigger="x")).items
    assert item.size == read_picture(item.path).size == (100, 200)
    assert item.fit.bucket[0] < item.fit.bucket[1]


def test_broken_pictures_can_be_taken_out(picture_folder: Path) -> None:
    dataset = scan(data(folder=str(picture_folder)))
    path = dataset.items[1].path
    without = dataset.without({path: PictureError("{path} is broken.", path=path)})
    assert [i.path.name for i in without.items] == ["00.png", "02.png", "03.png"]
    assert [str(p) for p in without.problems] == [f"{path} is broken."]
    assert len(dataset.items) == 4


# ------------------------------------------------------------------ every file is accounted for
def remarks(folder: Path, **values: object) -> str:
    return "\n".join(str(remark.message) for remark in scan(data(folder=str(folder), **values)).remarks)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    "name", ["IMG_1.HEIC", "b.heif", "c.jxl", "d.psd", "e.CR2", "f.dng", "g.svg", "h.kra", "sub/i.exr", "10_x/j.xcf"]
)
def test_picture_of_a_kind_that_is_not_read_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    put(tmp_path, "10_x/a.png" if name.startswith("10_x") else "a.png")
    touch(tmp_path, name)
    assert f"not read (1): {name}. Save them as PNG or JPEG." in remarks(tmp_path)


@pytest.mark.parametrize("name", ["a.jpe", "a.JPE", "a.tga", "a.dib", "a.ppm", "a.apng", "a.jfif", "a.JIF"])
def test_rarer_names_of_what_pillow_reads_are_read(tmp_path: Path, name: str) -> None:
    kinds = {".tga": "TGA", ".dib": "DIB", ".ppm": "PPM", ".apng": "PNG"}
    Image.new("RGB", (64, 64)).save(tmp_path / name, kinds.get(Path(name).suffix, "JPEG"))
    (tmp_path / "a.txt").write_text("a caption")
    dataset = check_dataset(data(folder=str(tmp_path)))
    assert [item.caption for item in dataset.items] == ["a caption"]
    assert not dataset.remarks


@pytest.mark.parametrize("name", ["f.mp4", "e.png.part", "photo.jpg_large", "IMG_0001", "pictures.zip", "a.webp!"])
def test_any_other_file_is_named(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png")
    touch(tmp_path, name)
    assert f"not used (1): {name}." in remarks(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("a.npz", "meta.json", "config.toml", "Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "README.txt"),
        *("a.xmp", "tags.csv", "__MACOSX/a.png", "@eaDir/a.png", ".thumbnails/a.png", ".git/config"),
    ],
)
def test_captions_caches_and_side_files_are_no_noise(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png")
    touch(tmp_path, name)
    assert remarks(tmp_path) == ""


def test_hidden_pictures_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".b.png", ".old/c.png", "sub/.d/e.png")
    assert "hidden folder (3): .b.png, .old/c.png, sub/.d/e.png." in remarks(tmp_path)


def test_captions_whose_picture_is_missing_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    touch(tmp_path, "b.txt", "sub/c.caption", "d.heic", "d.txt", "e.png.txt")
    assert "Captions without a picture beside them (3): b.txt, e.png.txt, sub/c.caption." in remarks(tmp_path)


def test_many_files_are_counted_and_all_of_them_are_in_the_report(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    touch(tmp_path, *(f"{number:02d}.heic" for number in range(25)))
    (remark,) = scan(data(folder=str(tmp_path))).report()["remarks"]
    assert "(25): 00.heic, 01.heic" in remark["sentence"]
    assert "09.heic, …" in remark["sentence"]
    assert remark["paths"] == [str(tmp_path / f"{number:02d}.heic") for number in range(25)]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path, "data/a.png", "elsewhere/b.png", "data/sub/c.png")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "sub" / "deep").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list(found(tmp_path / "data")) == ["a.png", "sub/c.png"]
    assert "links to folders are not followed (2): more, sub/deep." in remarks(tmp_path / "data")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_numbered_folder_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/b.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "5_x").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert found(tmp_path / "data") == {"5_x/b.png": (5, "a caption")}
    assert remarks(tmp_path / "data") == ""


@pytest.mark.parametrize("closed", ["sub", ""])
def test_folder_that_cannot_be_read_is_named(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "sub/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == tmp_path / closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    if closed:
        assert list(found(tmp_path)) == ["a.png"]
        assert "The folder sub cannot be read (Permission denied)" in remarks(tmp_path)
    else:
        with pytest.raises(InputError, match=r"no picture in .* cannot be read \(Permission denied\)"):
            scan(data(folder=str(tmp_path)))


def test_caption_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "b.png")
    opened = Path.open

    def refuse(path: Path, *names: object, **values: object) -> object:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *names, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    dataset = scan(data(folder=str(tmp_path)))
    assert [path.name for path in dataset.uncaptioned] == ["b.png"]
    assert [str(remark.message) for remark in dataset.remarks] == [
        "The caption b.txt cannot be read: Permission denied."
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_pipe_named_like_a_picture_is_named_and_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert list(found(tmp_path)) == ["a.png"]
    assert "not used (1): b.png." in remarks(tmp_path)


@pytest.mark.parametrize("name", ["a.heic", "reg/a.png", "samples/a.png", "a.mp4"])
def test_folder_of_nothing_but_what_is_left_out_says_what(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, caption=None) if name.endswith("png") else touch(tmp_path, name)
    with pytest.raises(InputError, match=rf"no picture in .* that can be used\..*: {name}\."):
        scan(data(folder=str(tmp_path), trigger="x"))


def test_case_pictures_left_out() -> None:
    assert "not read (3): IMG_0001.HEIC, IMG_0002.heif, b.jxl." in remarks(CASES / "pictures-left-out", trigger="zorp")


# ------------------------------------------------------------------ what is not to be learned
@pytest.mark.parametrize("name", ["reg", "Reg", "regularization", "reg/1_girl", "class_images", "sub/reg"])
def test_regularization_pictures_are_left_out_and_told(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png", f"{name}/b.png")
    assert list(found(tmp_path)) == ["a.png"]
    assert f"regularization pictures (1): {name}/b.png." in remarks(tmp_path)


def test_layout_of_kohyas_scripts_given_whole(tmp_path: Path) -> None:
    put(tmp_path, "img/10_zorp girl/a.png", "reg/1_girl/b.png")
    put(tmp_path, "sample/c.png", caption=None)
    assert found(tmp_path) == {"img/10_zorp girl/a.png": (1, "a caption")}
    told = remarks(tmp_path)
    assert "reg/1_girl/b.png" in told
    assert "sample/c.png" in told
    assert "img/10_zorp girl: the number is not read as repeats, since only folders right in" in told


def test_samples_with_captions_are_pictures_as_any(tmp_path: Path) -> None:
    put(tmp_path, "samples/a.png")
    assert list(found(tmp_path)) == ["samples/a.png"]
    assert remarks(tmp_path) == ""


def test_folder_of_regularization_pictures_may_be_given_itself(tmp_path: Path) -> None:
    put(tmp_path, "reg/a.png")
    assert list(found(tmp_path / "reg")) == ["a.png"]


# ------------------------------------------------------------------ numbers in names
@pytest.mark.parametrize(
    ("folder", "chosen", "told"),
    [
        ("512_cropped", "512_cropped", "512_cropped is read as 512 repeats: each picture in it counts 512×"),
        ("1024_x", "", "1024_x is read as 1024 repeats: each picture in it counts 1000×"),
        ("2023_trip", "2023_trip", "2023_trip is read as 2023 repeats: each picture in it counts 1000×"),
        ("99999_x", "", "99999_x is read as 99999 repeats: each picture in it counts 1000×"),
        ("100_x", "", "100_x is read as 100 repeats: each picture in it counts 100×"),
        ("10_zorp", "10_zorp", "10_zorp is read as 10 repeats: each picture in it counts 10×"),
        ("0_off", "0_off", "0_off is read as 0 repeats: each picture in it counts 1×"),
        *((n, "", f"{n}: the number is not read") for n in ("10-x", "1.5_x", "10 x", "10", "(10)_x", "10x_zorp")),
        *((n, n, f"{n}: the number is not read") for n in ("10-x", "1,5_x", "20.x", "10＿x", "x10 y")),
        ("img/10_x", "", "img/10_x: the number is not read as repeats, since only folders right in the chosen one"),
        ("a/b/5_y", "", "a/b/5_y: the number is not read as repeats"),
        ("sub/10-x", "", "sub/10-x: the number is not read as repeats"),
    ],
)
def test_numbers_that_are_read_or_look_so_are_told(tmp_path: Path, folder: str, chosen: str, told: str) -> None:
    put(tmp_path, f"{folder}/a.png")
    assert told in remarks(tmp_path / chosen)


@pytest.mark.parametrize(
    "name", ["10_zorp", "3d", "1girl", "512x768", "2023-05-01", "girl_10", "v1.5", "99_x", "1_000_x", "2x4"]
)
def test_usual_names_need_no_remark(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/a.png")
    assert remarks(tmp_path) == ""


@pytest.mark.parametrize("name", ["3x_cat", "3 x cat", "_10_cat", "-3_cat", "+3_x", "(10)_cat", "１０ cat"])
def test_numbers_that_look_like_repeats_are_told(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/a.png")
    assert "the number is not read as repeats, since only names such as 10_name are" in remarks(tmp_path)


def test_all_folders_with_no_repeats_are_named(tmp_path: Path) -> None:
    put(tmp_path, "0_x/a.png", "00_y/a.png", "z/a.png")
    with pytest.raises(InputError, match=r"say 0 repeats \(00_y, 0_x\)"):
        scan(data(folder=str(tmp_path)))


def test_numbers_beside_numbered_folders_are_told(tmp_path: Path) -> None:
    put(tmp_path, "10_a/x.png", "0_off/y.png", "5-b/z.png", "more/3_c/w.png", "10_a/2_d/v.png")
    told = remarks(tmp_path)
    assert "0_off: 0 repeats, so what is in there is not used." in told
    assert "5-b: the number is not read as repeats, since only names such as 10_name are" in told
    assert "10_a/2_d, more/3_c: the number is not read as repeats, since only folders right in" in told


def test_empty_folders_with_numbers_are_not_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "10-x").mkdir()
    assert "number" not in remarks(tmp_path)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("512_cropped", "512_cropped is read as 512 repeats"),
        ("2023_trip", "2023_trip is read as 2023 repeats: each picture in it counts 1000×"),
        ("dash", "10-zorp: the number is not read as repeats"),
    ],
)
def test_case_folder_year(case: str, told: str) -> None:
    assert told in remarks(CASES / "folder-year" / case)


# ------------------------------------------------------------------ captions of other encodings
def test_guessed_encodings_are_told_once_a_folder_with_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}.png" for name in "abcdef"), caption="plain")
    for name, text, encoding in (
        *(("a", "a girl’s dress", "cp1252"), ("b", "café, garden", "cp1252"), ("c", "红裙，街道，长发", "utf-8")),
        *(("d", "긴 머리, 안경", "cp949"), ("e", "窓のそばの少女", "utf-8-sig")),
    ):
        (tmp_path / f"{name}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "f.txt").write_bytes("微笑，街道，长发".encode()[:-1])
    told = remarks(tmp_path)
    assert "read as cp1252 by guessing (2): a.txt, b.txt." in told
    assert "read as cp949 by guessing (1): d.txt." in told
    assert "damaged bytes, shown as � (1): f.txt." in told
    assert len(told.splitlines()) == 3
    assert found(tmp_path)["b.png"] == (1, "café, garden")
    assert found(tmp_path)["f.png"] == (1, "微笑, 街道, 长�")


@pytest.mark.parametrize("case", ["caption-cp1252", "caption-other-codepages"])
def test_cases_of_other_encodings_name_every_guessed_file(case: str) -> None:
    told = remarks(CASES / case)
    assert all(path.name in told for path in (CASES / case).glob("*.txt"))


@pytest.mark.parametrize(
    ("case", "captions"),
    [
        ("caption-chinese-comma", {"a.png": "zorp, 红裙, 街道"}),
        ("caption-other-commas", {"a.png": "zorp, 赤いドレス, 街", "lines.png": "zorp, red dress, street"}),
    ],
)
def test_cases_of_other_commas(case: str, captions: dict[str, str]) -> None:
    assert {name: caption for name, (_, caption) in found(CASES / case, trigger="zorp").items()} == captions


# ------------------------------------------------------------------ one sentence each, nothing written
def bad_pictures(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"x")
    (folder / "b.png").touch()
    return folder


def uncaptioned(folder: Path) -> Path:
    draw_pictures(folder, 2, captions=False)
    return folder


def only_outside(folder: Path) -> Path:
    (folder / "10_girl").mkdir()
    put(folder, "a.png")
    return folder


def a_file(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"x")
    return folder / "a.png"


def only_other_files(folder: Path) -> Path:
    (folder / "notes.md").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda folder: "", "choose the folder that holds your pictures"),
        (lambda folder: ' "" ', "choose the folder that holds your pictures"),
        (lambda folder: folder / "missing", "does not exist; check the path"),
        (a_file, "is a file; give the folder that holds the pictures"),
        (lambda folder: folder, "there are no pictures in"),
        (only_other_files, "there are no pictures in"),
        (bad_pictures, "none of the 2 pictures in .* can be read; the first: .*a.png"),
        (uncaptioned, "no picture in .* has a caption; add .txt files beside them or set a trigger word"),
        (only_outside, "the numbered folders in .* hold no pictures to use"),
    ],
)
def test_unusable_folder_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, prepare: Callable[[Path], object], sentence: str
) -> None:
    folder = str(prepare(tmp_path))
    before = snapshot(tmp_path)
    for look in (scan, check_dataset):
        with pytest.raises(InputError, match=rf"^data\.folder: .*{sentence}") as caught:
            look(data(folder=folder))
        assert caught.value.field == "data.folder"
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("folder", ["a\x00b", "x" * 5000, "~nobody_of_this_name/x", "\ud800"])
def test_impossible_path_is_one_sentence(folder: str) -> None:
    with pytest.raises(InputError, match=r"data\.folder"):
        scan(data(folder=folder))


def test_good_folder_is_left_as_it_was(picture_folder: Path) -> None:
    before = snapshot(picture_folder)
    check_dataset(data(folder=str(picture_folder)))
    assert snapshot(picture_folder) == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_to_itself_ends(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list(found(tmp_path)) == ["a.png"]


# ------------------------------------------------------------------ the report and content
def test_report_counts_everything(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "3_wide", 2, (200, 100))
    draw_pictures(tmp_path / "1_square", 1, (100, 100))
    report = scan(data(folder=str(tmp_path))).report()
    assert (report["pictures"], report["images_per_epoch"]) == (3, 7)
    assert report["buckets"] == {"704x320": 6, "512x512": 1}
    assert report["concepts"] == {"1_square": {"pictures": 1, "repeats": 1}, "3_wide": {"pictures": 2, "repeats": 3}}
    wide = report["items"][1]
    assert (wide["size"], wide["bucket"], wide["repeats"]) == ([200, 100], [704, 320], 3)
    assert wide["cropped_away"] == pytest.approx(1 - 2 / 2.2, abs=1e-4)


def test_enlarged_pictures_are_counted_the_smallest_first(tmp_path: Path) -> None:
    for name, side in (("a", 508), ("b", 400), ("c", 256), ("d", 512)):
        draw_pictures(tmp_path / name, 1, (side, side))
    report = scan(data(folder=str(tmp_path))).report()
    assert [Path(path).parent.name for path in report["enlarged"]] == ["c", "b"]
    assert scan(data(folder=str(tmp_path), upscale=False)).report()["enlarged"] == []


def test_a_picture_is_known_by_its_bytes(picture_folder: Path) -> None:
    items = scan(data(folder=str(picture_folder), trigger="x")).items
    assert items[1].key == hashlib.sha256((picture_folder / "01.png").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "meta_cap.json", "captions.json", "own.jsonl"])
def test_lists_of_captions_are_not_read_and_that_is_told(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert f"Captions are not read from files such as these (1): {name}" in remarks(tmp_path)


def test_second_captions_of_a_picture_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    for name in ("a.txt", "a.caption", "a.png.txt", "b.txt", "settings.json"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    told = remarks(tmp_path)
    assert "Captions that are not used, since their picture has another one (2): a.caption, a.png.txt." in told
    assert "Captions without a picture beside them (1): b.txt." in told
