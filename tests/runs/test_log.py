from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.runs import log as run_log
from lora_trainer.runs.log import RunLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a few hundred lines is read in many pieces."""
    monkeypatch.setattr(run_log, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(run_log, "_CHUNK_BYTES", 3000)


def write(path: Path, steps: list[int], *, first: int = 0, **more: Any) -> None:
    """Lines as the trainer writes them; the loss of the line number n is n."""
    with path.open("a", encoding="utf-8") as file:
        for number, step in enumerate(steps, start=first):
            file.write(
                json.dumps({"step": step, "epoch": 1, "loss": float(number), "lr": {"unet": 1e-4}, **more}) + "\n"
            )


def read_anew(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """What the log says, by the simplest reader there can be."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["step"] > after:
            found[entry["step"]] = entry
    return [found[step] for step in sorted(found)]


@pytest.mark.usefixtures("small_blocks")
def test_entries_behind_a_step_are_those_of_a_reader_of_the_whole_file(path: Path) -> None:
    log = RunLog(path)
    write(path, list(range(1, 200)))
    assert log.entries() == read_anew(path)
    write(path, list(range(150, 300)), first=1000)  # resumed from the state of step 149
    write(path, list(range(20, 40)), first=5000)
    for after in (0, 1, 19, 25, 148, 149, 150, 199, 298, 299, 10**12):
        assert log.entries(after) == read_anew(path, after)
        assert RunLog(path).entries(after) == read_anew(path, after)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_put_together_are_the_whole(path: Path, limit: int) -> None:
    write(path, [*range(1, 120), *range(60, 150)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 70, "validation": 0.5}\n')
    log, found, after = RunLog(path), [], 0
    while page := log.entries(after, limit):
        assert len(page) <= limit + 1
        found += page
        after = page[-1]["step"]
    assert found == log.entries()
    assert len(found) == 150  # 149 steps, one of them with a validation loss


@pytest.mark.usefixtures("small_blocks")
def test_only_what_is_new_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, list(range(1, 1000)))
    log = RunLog(path)
    log.curve()
    looked_at: list[bytes] = []
    real = RunLog._take_line
    monkeypatch.setattr(RunLog, "_take_line", lambda self, line: (looked_at.append(line), real(self, line))[1])
    read: list[int] = []
    entries_of = RunLog._entries_of
    monkeypatch.setattr(RunLog, "_entries_of", lambda self, block: (read.append(1), entries_of(self, block))[1])
    log.curve()
    assert looked_at == []
    write(path, [1000, 1001])
    assert [e["step"] for e in log.entries(998)] == [999, 1000, 1001]
    assert len(looked_at) == 2
    assert len(read) <= 3  # of some hundred blocks


def test_a_line_that_is_being_written_is_taken_when_it_is_whole(path: Path) -> None:
    log = RunLog(path)
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', encoding="utf-8")
    assert [e["step"] for e in log.curve()] == [1]
    with path.open("a", encoding="utf-8") as file:
        file.write('ss": 0.25}\n')
    assert [(e["step"], e["loss"]) for e in log.curve()] == [(1, 0.5), (2, 0.25)]


def test_a_last_line_without_its_end_is_read_too(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2}', encoding="utf-8")
    log = RunLog(path)
    assert [e["step"] for e in log.entries()] == [1, 2]
    log.append({"step": 3})
    assert [e["step"] for e in log.entries()] == [1, 2, 3]


def test_a_log_that_was_replaced_or_cut_is_read_from_its_start(path: Path) -> None:
    log = RunLog(path)
    write(path, list(range(1, 50)))
    assert len(log.curve()) == 49
    path.write_text('{"step": 7, "loss": 0.5}\n', encoding="utf-8")
    assert [e["step"] for e in log.curve()] == [e["step"] for e in log.entries()] == [7]
    path.unlink()
    assert log.curve() == log.entries() == []
    write(path, [1, 2, 3])
    assert len(log.entries()) == 3


def test_the_curve_of_a_short_run_has_every_step_and_the_later_of_those_done_twice(path: Path) -> None:
    write(path, [1, 2, 3, 4])
    write(path, [3, 4, 5], first=10)
    assert [(e["step"], e["loss"]) for e in RunLog(path).curve()] == [
        (1, 0.0),
        (2, 1.0),
        (3, 10.0),
        (4, 11.0),
        (5, 12.0),
    ]


def test_the_curve_of_a_long_run_is_bounded_and_its_means_are_right(path: Path) -> None:
    count = 50_000
    write(path, list(range(1, count + 1)))
    curve = RunLog(path).curve()
    assert len(curve) <= 2 * run_log.MOST_BINS + 1
    assert curve[-1]["step"] == count
    width = curve[0]["step"]
    assert curve[0]["loss"] == sum(range(width)) / width
    assert curve[0]["lr"] == {"unet": 1e-4}
    assert [e["step"] for e in curve] == sorted({e["step"] for e in curve})


def test_steps_done_again_after_a_rewind_replace_the_old_curve(path: Path) -> None:
    write(path, list(range(1, 10_001)))
    log = RunLog(path)
    log.curve()
    write(path, list(range(5001, 6001)), first=10**6)
    curve = log.curve()
    assert curve[-1]["step"] == 6000
    assert all(e["loss"] < 10_000 for e in curve if e["step"] <= 5000)
    assert all(e["loss"] >= 10**6 for e in curve if e["step"] > 5008)


def test_what_is_no_number_is_null_in_the_file_and_none_to_its_readers(path: Path) -> None:
    log = RunLog(path)
    log.append({"step": 1, "loss": math.nan, "lr": {"unet": math.inf}})
    log.append({"step": 1, "validation": -math.inf})
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert log.entries() == [{"step": 1, "loss": None, "lr": {"unet": None}}, {"step": 1, "validation": None}]
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "validation": Infinity}\n', encoding="utf-8")  # as before
    assert log.entries() == [{"step": 1, "loss": None}, {"step": 2, "validation": None}]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe", b"\0" * 50, b"[" * 50_000, b'{"step": 1e400}', b'{"step": true}', b'{"step": -1}',
        b'{"step": 1.5}',
        b'{"step": 5, "loss": "x"}', b'{"step": 5, "lr": [1]}', b'{"step": 5, "lr": {"unet": {}}}', b'"step"', b"5",
        b'{"step": 5, "validation": [1]}', b'{"step": 5, "epoch": null}', b'{"step": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_hides_no_other(path: Path, line: bytes) -> None:
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b'\n{"step": 9, "loss": 0.25}\n')
    log = RunLog(path)
    assert [e["step"] for e in log.entries()] == [1, 9]
    assert {1, 9} <= {e["step"] for e in log.curve()}
    json.dumps(log.curve(), allow_nan=False)


def test_a_log_that_cannot_be_read_or_written_is_one_sentence(path: Path) -> None:
    path.mkdir()
    log = RunLog(path)
    with pytest.raises(RunError, match="could not be written"):
        log.append({"step": 1})
    for read in (log.entries, log.curve):
        with pytest.raises(InputError, match="cannot be read"):
            read()
