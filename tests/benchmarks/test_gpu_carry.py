"""What travels to a machine without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import carried, carry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A carried folder with one small wheel, and sd-scripts beside it."""
    made = tmp_path / "carry"
    made.mkdir()
    with zipfile.ZipFile(made / "carried_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_thing.py", "VALUE = 5\n")
        about = "carried_thing-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried-thing\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return made


def test_carried_wheels_are_on_the_path_of_a_check(folder: Path, tmp_path: Path) -> None:
    site = carried.install(folder, tmp_path)
    command = [sys.executable, "-c", "import carried_thing; print(carried_thing.VALUE)"]
    said = subprocess.run(command, env=carried.environment(site), capture_output=True, text=True, check=True)
    assert said.stdout == "5\n"


def test_an_empty_folder_carries_nothing(tmp_path: Path) -> None:
    assert carried.install(tmp_path, tmp_path) is None
    assert carried.peer(tmp_path) == ""
    assert carried.peer(None) == ""


def test_the_peers_sources_are_copied_and_found(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("library/x.py", "library/__pycache__/x.pyc", "networks/lora.py", "train_network.py", "docs/big.md"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    folder = tmp_path / "carry" / carried.PEER / carried.SOURCE
    carry.copy_sources(checkout, folder)
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert copied == {"library/x.py", "networks/lora.py", "train_network.py"}
    assert carried.peer(tmp_path / "carry") == str(folder.parent)


def test_too_much_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry.small_enough(30 * 2**20, 20 * 2**20)
    assert not carry.small_enough(60 * 2**20, 20 * 2**20)
    assert "16.0 MiB too much" in capsys.readouterr().err


def test_the_working_tree_without_what_is_carried_leaves_room() -> None:
    assert 0 < carry.size_of_tree(carry.ROOT) < 32 * 2**20
