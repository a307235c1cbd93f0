"""A check that goes wrong costs only itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.runner import Check, run_check
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.table import all_well, table
from tests.helpers import LIMIT, until


def outcome(name: str, folder: Path, limit: float = LIMIT) -> dict:
    check = Check(name, name, f"tests.benchmarks.bad_checks:{name}", limit)
    return run_check(check, Setting(str(folder), cpu=True), limit, {})


def test_a_good_check_is_done(tmp_path: Path) -> None:
    found = outcome("works", tmp_path)
    assert found["state"] == "done"
    assert found["parts"]["one"]["says"] == "found"
    assert "error" not in found


def test_a_part_that_fails_costs_only_itself(tmp_path: Path) -> None:
    found = outcome("has_a_bad_part", tmp_path)
    assert found["state"] == "failed"
    assert "division by zero" in found["parts"]["bad"]["failed"][-1]
    assert "SystemExit" in found["parts"]["leaves"]["failed"][-1]
    assert found["parts"]["good"] == {"says": "still here"}


@pytest.mark.parametrize(
    ("name", "code", "last"), [("raises", 1, "ValueError: on purpose"), ("leaves", 0, ""), ("dies", -9, "")]
)
def test_a_check_that_ends_early_keeps_what_it_had(name: str, code: int, last: str, tmp_path: Path) -> None:
    found = outcome(name, tmp_path)
    assert (found["state"], found["exit"]) == ("failed", code)
    assert last in "".join(found["error"][-1:])
    assert found["parts"]["one"]["says"] == "found"


def test_a_check_over_its_limit_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = subprocess.Popen.wait

    def over(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """The limit is reached as soon as the check has begun all that it begins, however slow the machine is."""
        if timeout is None:
            return wait(process)
        until((tmp_path / "child").exists)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", over)
    found = outcome("hangs", tmp_path)
    assert (found["state"], found["exit"]) == ("over its limit", None)
    assert set(found["parts"]) == {"one", "two"}
    child = int((tmp_path / "child").read_text())
    until(lambda: is_gone(child))  # the system takes a moment


def is_gone(pid: int) -> bool:
    """Whether a process that was killed is gone, or will be once its parent asks."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_unknown_entry_is_a_failed_check(tmp_path: Path) -> None:
    found = outcome("nothing_of_this_name", tmp_path)
    assert found["state"] == "failed"
    assert "nothing_of_this_name" in found["error"][-1]


# ------------------------------------------------------------------ the command
def checks(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Give the command other checks than its own."""
    made = tuple(Check(name, f"It {name}", f"tests.benchmarks.bad_checks:{name}", 20) for name in names)
    monkeypatch.setattr(command, "CHECKS", made)


def written(folder: Path) -> dict:
    (path,) = folder.glob("*-gpu.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_all_checks_are_in_file_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks(monkeypatch, "raises", "works", "does_not_hold")
    assert command.main(["--cpu", "--out", str(tmp_path)]) == 1
    document = written(tmp_path)
    states = {name: check["state"] for name, check in document["checks"].items()}
    assert states == {"material": "done", "raises": "failed", "works": "done", "does_not_hold": "done"}
    assert document["machine"]["versions"]["torch"]
    assert "-m benchmarks.gpu" in document["command"]
    printed = capsys.readouterr().out
    assert "raises: ValueError: on purpose" in printed.replace("failed", "raises")
    assert "DOES NOT HOLD: it is so" in printed


def test_what_there_was_no_time_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks(monkeypatch, "works")
    assert command.main(["--cpu", "--minutes", "0", "--out", str(tmp_path)]) == 1
    document = written(tmp_path)
    assert document["checks"]["works"]["state"] == "not reached"
    assert "not reached" in table(document)


def test_only_some_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks(monkeypatch, "raises", "works")
    assert command.main(["--cpu", "--only", "works", "--out", str(tmp_path)]) == 0
    document = written(tmp_path)
    assert document["left_out"] == ["raises"]
    assert "raises" not in document["checks"]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--only", "speeed"], "speeed"), (["--carried", "/nowhere"], "benchmarks.gpu.carry")]
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*arguments, "--cpu"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_card_it_refuses_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == command.NO_CARD
    assert not list(tmp_path.iterdir())


def test_all_is_well_only_when_everything_holds() -> None:
    def document(state: str, holds: bool) -> dict:
        return {"checks": {"a": {"state": state, "parts": {"b": {"holds": {"c": holds}}}}}}

    assert all_well(document("done", True))
    assert not all_well(document("done", False))
    assert not all_well(document("not reached", True))
