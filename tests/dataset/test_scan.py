from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.scan import check_dataset, duplicates, scan
from lora_trainer.errors import InputError
from tests.helpers import data, draw_pictures


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


def test_same_pictures_under_two_names_are_found(picture_folder: Path) -> None:
    shutil.copy(picture_folder / "01.png", picture_folder / "copy.png")
    items = scan(data(folder=str(picture_folder), trigger="x")).items
    assert [[p.name for p in group] for group in duplicates(items)] == [["01.png", "copy.png"]]
    assert items[1].key == hashlib.sha256((picture_folder / "01.png").read_bytes()).hexdigest()
