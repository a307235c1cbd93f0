"""How epochs are named: the same for the command line, the grid and the axis."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.runs.saved_files import RunFiles, SavedFile, epoch_names, epoch_values

NUMBERS = st.integers(0, 999).map(str)
NAMES = st.one_of(
    st.sampled_from(["all", "last"]),
    NUMBERS,
    st.builds("every {}".format, NUMBERS),
    st.builds("step {}".format, NUMBERS),
    st.builds("{}-{}".format, NUMBERS, NUMBERS),
)
BETWEEN = st.sampled_from([",", ", ", "，", " ", "  ", "\n"])


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """Epochs 1 to 6, and one file for its step."""
    saved = [SavedFile(tmp_path / f"zorp-{epoch}", f"epoch {epoch}", epoch, 10 * epoch) for epoch in range(1, 7)]
    saved.insert(4, SavedFile(tmp_path / "zorp-step45", "step 45", 5, 45, by_step=True))
    for file in saved:
        file.path.touch()
    return RunFiles("zorp", {file.value: file for file in saved})


@given(st.lists(st.tuples(NAMES, BETWEEN)))
def test_names_are_told_apart_however_they_are_written(parts: list[tuple[str, str]]) -> None:
    assert epoch_names("".join(name + between for name, between in parts)) == [name for name, _ in parts]


@pytest.mark.parametrize("text", ["x", "1-", "every x", "3 allx", "-1", "1.5", "all;last"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^\S+$"):
        epoch_names(text)


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("all", ["1", "2", "3", "4", "step 45", "5", "6"]),
        ("last", ["6"]),
        ("every 2", ["2", "4", "6"]),
        ("every 4", ["4", "6"]),
        ("every  0", ["1", "2", "3", "4", "5", "6"]),
        ("2-4", ["2", "3", "4"]),
        ("4 - 2", ["2", "3", "4"]),
        ("0-1", ["1"]),
        ("3", ["3"]),
        ("step  45", ["step 45"]),
    ],
)
def test_each_name_means_its_files(files: RunFiles, name: str, epochs: list[str]) -> None:
    assert epoch_values(epoch_names(name), [files]) == [f"zorp: {epoch}" for epoch in epochs]
    assert epoch_values([name], [files]) == [f"zorp: {epoch}" for epoch in epochs]


@pytest.mark.parametrize("name", ["7", "7-9", "step 5", "every"])
def test_a_name_without_a_file_says_what_there_is(files: RunFiles, name: str) -> None:
    with pytest.raises(InputError, match="The run zorp has no epoch"):
        epoch_values(epoch_names(name), [files])
