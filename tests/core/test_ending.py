"""Signals that end the command line, libraries that end the program, readers that go away: nothing learned is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.ending import Ending, as_interrupt
from lora_trainer.core.errors import explain, unexpected
from lora_trainer.jobs.kinds import FILES
from lora_trainer.jobs.waiting import CheckpointWatcher
from lora_trainer.runs.control import StopRequest, only_telling
from tests.helpers import CASES, CHECKPOINT, LIMIT, ROOT, until
from tests.runs_helpers import document, make_jobs

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Signals count although the tests are run in the background, where shells have them ignored."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def case(name: str, folder: Path) -> Path:
    """A copy of a case with its checkpoint's whole path; returns its run.toml."""
    copy = Path(shutil.copytree(CASES / name, folder / name))
    toml = copy / "run.toml"
    text = toml.read_text(encoding="utf-8").replace(
        '"lora_trainer/demo/assets/small-sd1.safetensors"', json.dumps(CHECKPOINT.as_posix())
    )
    toml.write_text(text, encoding="utf-8")
    return toml


def train(toml: Path, root: Path, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lora_trainer", "train", str(toml), "--root", str(root), *arguments]
    return subprocess.Popen(command, text=True, cwd=ROOT, **streams)


def manifest(root: Path, name: str) -> dict[str, Any]:
    path = root / "runs" / name / "manifest.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"state": "", "step": 0}
    return found


def until_learning(program: subprocess.Popen[str], root: Path, name: str) -> None:
    until(lambda: program.poll() is not None or manifest(root, name)["step"] >= 2)
    assert manifest(root, name)["step"] >= 2, program.communicate()


# ------------------------------------------------------------------ signals
@POSIX
@pytest.mark.parametrize(
    ("signals", "state"),
    [
        ([signal.SIGTERM], "paused"),
        ([getattr(signal, "SIGHUP", signal.SIGTERM)], "paused"),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], "stopped"),
    ],
    ids=["service stopped", "terminal closed", "ctrl-c again and again"],
)
def test_a_program_that_is_told_to_end_saves_what_is_learned(
    tmp_path: Path, signals: list[signal.Signals], state: str
) -> None:
    toml = case("resume-twice", tmp_path)
    program = train(toml, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_learning(program, tmp_path, "k")
    for each in signals:
        program.send_signal(each)
    _, told = program.communicate(timeout=LIMIT)
    found = manifest(tmp_path, "k")
    assert (program.returncode, found["state"]) == (1, state), told
    assert "Traceback" not in told
    newest = sorted((tmp_path / "runs" / "k" / "state").glob("step-*.safetensors"))[-1]
    assert newest.name == f"step-{found['step']:08d}.safetensors"
    assert any(entry["step"] == found["step"] for entry in found["files"]) or state == "paused"


@POSIX
def test_of_two_programs_that_resume_a_killed_run_at_once_one_does(tmp_path: Path) -> None:
    toml = case("resume-twice", tmp_path)
    toml.write_text(toml.read_text(encoding="utf-8").replace("steps=400", "steps=30"), encoding="utf-8")
    first = train(toml, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until_learning(first, tmp_path, "k")
    first.kill()
    first.communicate()
    programs = [train(toml, tmp_path, "--resume", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    told = [program.communicate(timeout=LIMIT)[1] for program in programs]
    codes = sorted(program.returncode for program in programs)
    assert codes == [0, 2] or "is done" in "".join(told), told  # the second may have come when the first was done
    assert manifest(tmp_path, "k")["state"] == "done"
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs" / "k" / "log.jsonl").read_text().splitlines()]
    resumed_at = next(
        number for number in range(1, len(steps) + 1) if steps[number - 1 :] == [*range(steps[number - 1], 31)]
    )
    assert steps[: resumed_at - 1] == [*range(1, resumed_at)]  # one program after the other, never both


def test_signals_are_noted_and_the_ignored_stay_ignored() -> None:
    number = signal.SIGTERM
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Ending() as ending:
            assert signal.getsignal(number) == signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            assert (ending.next(), ending.next()) == ("stop", "")
        signal.signal(number, signal.SIG_DFL)
        with Ending() as ending:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGINT)
            assert (ending.next(), ending.next(), ending.next()) == ("pause", "stop", "")
        assert signal.getsignal(number) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt), as_interrupt():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_another_thread_than_the_main_one_changes_no_signals() -> None:
    def look() -> None:
        with Ending() as ending, as_interrupt():
            found.append(ending.next())

    found: list[str] = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [""]


# ------------------------------------------------------------------ readers that go away
@POSIX
@pytest.mark.parametrize("closed", ["stderr", "both"])
def test_a_run_whose_progress_bar_nobody_reads_is_done(tmp_path: Path, closed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": writer if closed == "both" else subprocess.DEVNULL, "stderr": writer}
    program = train(case("broken-pipe", tmp_path), tmp_path, **streams)
    os.close(writer)
    program.wait(LIMIT)
    found = manifest(tmp_path, "pipe")
    assert (found["state"], found["message"]) == ("done", "")
    assert Path(found["files"][-1]["path"]).is_file()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "EIO"), KeyError("x"), SystemExit(3)])
def test_no_error_of_what_only_tells_fails_a_run(tmp_path: Path, error: BaseException) -> None:
    def tell(run: object) -> None:
        raise error

    jobs = make_jobs(tmp_path)
    jobs._on_change = tell
    jobs.host.announce = tell  # type: ignore[method-assign]
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, training__steps=1)))
    assert jobs.wait(run, LIMIT)
    assert (run.state, run.manifest["message"]) == ("done", "")


def test_what_cannot_be_told_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with only_telling():
                raise ValueError("told once, of this test")
    assert len(caplog.records) == 1


# ------------------------------------------------------------------ libraries that end the program
def test_a_library_that_calls_exit_fails_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case of Lion's triton check, wherever triton may be installed here."""
    pytest.importorskip("lion_pytorch")
    config = TrainConfig.from_toml(case("systemexit-run", tmp_path))
    config = config.with_values({"data.folder": str(tmp_path / "systemexit-run" / "pictures")})
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "lion_pytorch.triton", raising=False)
    jobs = make_jobs(tmp_path)
    run = jobs.submit(config)
    assert jobs.wait(run, LIMIT)
    on_disk = manifest(tmp_path, "lion")
    assert on_disk["state"] == run.state == "failed"
    assert "lion_pytorch wanted to end the whole program" in on_disk["message"]
    other = jobs.submit(TrainConfig.from_dict(document(tmp_path, "other", training__steps=1)))
    assert jobs.wait(other, LIMIT)
    assert other.state == "done"
    assert jobs.resume("lion").name == "lion"
    assert jobs.wait(run, LIMIT)


@pytest.mark.parametrize("error", [SystemExit("no licence"), SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    jobs = make_jobs(tmp_path)
    monkeypatch.setattr("lora_trainer.training.trainer.Trainer.step", fail)
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path)))
    assert jobs.wait(run, LIMIT)
    assert run.state == "failed"
    assert run.manifest["error"]["template"]
    assert run.manifest["message"]


def _task(jobs: Any, fail: Callable[..., Any]) -> str:
    task = jobs.tools._tasks[FILES].start("merge", "x", fail)
    assert jobs.tools.wait(task, LIMIT)
    return f"{task.state}: {task.error}"


def test_a_library_that_calls_exit_fails_a_task_with_a_sentence(tmp_path: Path) -> None:
    def fail(progress: object) -> Any:
        sys.exit("missing part")

    assert "failed: The library" in _task(make_jobs(tmp_path), fail)


def test_a_library_that_calls_exit_does_not_end_the_looking_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_trainer.jobs.waiting.LOOK_SECONDS", 0.01)
    asked: list[str] = []

    def resume(name: str) -> None:
        asked.append(name)
        sys.exit()

    class Named:
        name = "a"

    suspended, run = CheckpointWatcher(resume), Named()
    for _ in range(2):
        suspended.add(run)  # type: ignore[arg-type]
        until(lambda: not suspended.has(run))  # type: ignore[arg-type]
    assert asked == ["a", "a"]


def test_the_sentences_of_what_nobody_has_foreseen() -> None:
    assert str(unexpected(ValueError("it is odd."))) == "Unexpected error, ValueError: it is odd."
    assert explain(SystemExit(2))["error"]["values"] == {"library": "?", "code": 2}


def test_a_manifest_that_cannot_be_written_at_the_end_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_trainer.core import files

    jobs = make_jobs(tmp_path)
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, training__steps=2000)))
    until(lambda: run.manifest["step"] >= 1)
    with monkeypatch.context() as patch:

        def full(**options: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(files.tempfile, "mkstemp", full)
        jobs.training.current().control.ask(StopRequest.STOP)
        assert jobs.wait(run, LIMIT)
        assert run.state == "failed"
        assert "disk is full" in run.manifest["message"]
        assert manifest(tmp_path, "zorp")["state"] == "running"
        with pytest.raises(files.RunError, match="disk is full"):
            jobs.resume("zorp")
        assert run.state in ("failed", "stopped")  # not in line, as nothing could be noted
    again = make_jobs(tmp_path)
    assert again.settled("zorp").state == "stopped"
    resumed = again.resume("zorp")
    until(lambda: resumed.manifest["step"] >= 1)
    again.stop("zorp")
    assert again.wait(resumed, LIMIT)
    assert resumed.state == "stopped"
