"""Names of LoRA files: what they mean, and that nothing outside of the folder is reached by them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.library import LoraFolder, require_readable


@pytest.fixture
def host(tmp_path: Path) -> StandaloneHost:
    return StandaloneHost(tmp_path / "root")


@pytest.fixture
def folder(host: StandaloneHost) -> LoraFolder:
    """``a``, ``sub/b.v2``, ``one/same``, ``two/same``, and a file beside the folder."""
    for name in ("a", "sub/b.v2", "one/same", "two/same", "../outside", ".hidden", "sub/no"):
        path = host.folders.loras / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (host.folders.loras / "sub" / "no.safetensors").rename(host.folders.loras / "sub" / "no.ckpt")
    return LoraFolder(host)


def test_all_files_are_listed_by_name(folder: LoraFolder) -> None:
    assert folder.names() == ["a", "one/same", "sub/b.v2", "two/same"]
    assert [entry["bytes"] for entry in folder.entries()] == [0] * 4


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_folders_are_listed_and_circles_end(folder: LoraFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.safetensors").write_bytes(b"")
    (folder.root / "linked").symlink_to(tmp_path / "elsewhere")
    (folder.root / "sub" / "circle").symlink_to(folder.root)
    assert folder.names() == ["a", "linked/far", "one/same", "sub/b.v2", "two/same"]
    assert folder.find("far") == folder.root / "linked" / "far.safetensors"


@pytest.mark.parametrize("name", ["sub/b.v2", "b.v2", " b.v2.safetensors ", "sub\\b.v2", "sub/b.v2.safetensors"])
def test_a_file_is_found_by_its_name(folder: LoraFolder, name: str) -> None:
    assert folder.find(name) == folder.root / "sub" / "b.v2.safetensors"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "choose a LoRA file"),
        ("nobody", "there is no LoRA file nobody"),
        ("same", "several files are called same: one/same, two/same"),
        ("no", "there is no LoRA file"),
        (".hidden/x", "there is no LoRA file"),
        ("../outside", "there is no LoRA file"),
        ("sub/../../outside", "there is no LoRA file"),
        ("a\0b", "there is no LoRA file"),
        ("x" * 5000, "there is no LoRA file"),
    ],
)
def test_names_that_mean_nothing_are_a_sentence_with_the_field(folder: LoraFolder, name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        folder.find(name, "files")
    assert error.value.field == "files"


def test_files_elsewhere_only_where_they_may_be_read(folder: LoraFolder, host: StandaloneHost, tmp_path: Path) -> None:
    outside = folder.root.parent / "outside.safetensors"
    with pytest.raises(NotFound):
        folder.find(str(outside))
    assert folder.find(str(outside), outside=True) == outside
    host.readable = [tmp_path / "allowed"]
    with pytest.raises(InputError, match="may not be read"):
        folder.find(str(outside), outside=True)
    assert folder.find("a", outside=True) == folder.root / "a.safetensors"
    require_readable(host, "x", str(tmp_path / "allowed" / "file"))
    require_readable(host, "x", "")


def test_new_names(folder: LoraFolder) -> None:
    default = folder.root / "one" / "same-baked.safetensors"
    assert folder.new("", default) == default
    assert folder.new(" ", default, ["same-baked"]).name == "same-baked-2.safetensors"
    assert folder.new("deep/er/new.safetensors", default) == folder.root / "deep" / "er" / "new.safetensors"
    assert folder.new("汉服", default) == folder.root / "汉服.safetensors"
    for name in ("a", "A", "other/a.safetensors", "b.v2"):
        with pytest.raises(InputError, match="already, and nothing is overwritten") as error:
            folder.new(name, default)
        assert error.value.field == "output"
    with pytest.raises(InputError, match="a-2 is free"):
        folder.new("a", default)


@given(st.text(max_size=20) | st.lists(st.sampled_from(["..", "a", "/", "\\", "C:", "~", "=", " "])).map("".join))
def test_no_name_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = LoraFolder(StandaloneHost(tmp_path_factory.getbasetemp() / "names"))
    default = folder.root / "default.safetensors"
    with suppress(InputError):
        made = folder.new(name, default)
        assert folder.root in made.parents
        assert ".." not in made.parts
        assert made.suffix == ".safetensors"
    with pytest.raises(InputError):
        folder.find(name)
