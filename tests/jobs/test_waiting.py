"""Runs whose checkpoint is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import CheckpointChanged, InputError
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.hosts.standalone.session import StandaloneSession
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run
from lora_trainer.training.artifacts import Artifacts
from lora_trainer.training.preparation import PreparedRun
from tests.helpers import LIMIT, until
from tests.runs_helpers import at_step, document, make_jobs, run_to_end, weights, when

SETTINGS: dict[str, Any] = {"training__steps": 8}


class Checkpoint:
    """Can be put away, as a person does who chooses another one in the WebUI."""

    away = False


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    state = Checkpoint()
    turn, check = StandaloneSession.turn, StandaloneHost.check

    @contextmanager
    def guarded(self: StandaloneSession) -> Iterator[None]:
        if state.away:
            raise CheckpointChanged("another checkpoint")
        with turn(self):
            yield

    def checked(self: StandaloneHost, config: TrainConfig) -> object:
        if state.away:
            raise InputError("No checkpoint is loaded.")
        return check(self, config)

    monkeypatch.setattr(StandaloneSession, "turn", guarded)
    monkeypatch.setattr(StandaloneHost, "check", checked)
    monkeypatch.setattr("lora_trainer.jobs.waiting.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("lora_trainer.training.loop.SLICE_SECONDS", 0.0)
    return state


def put_away_during_a_run(jobs: Jobs, root: Path, checkpoint: Checkpoint) -> Run:
    when(jobs, at_step(2), lambda: setattr(checkpoint, "away", True))
    run = jobs.submit(TrainConfig.from_dict(document(root, **SETTINGS)))
    until(lambda: run.state in ("paused", "stopped"))
    until(lambda: jobs.training.current() is None)
    return run


def is_forgotten(jobs: Jobs) -> bool:
    """Whether nothing is waited for any more, as the thread that looks after such runs has seen itself."""
    return jobs._suspended._thread is None


def test_the_run_goes_on_by_itself_and_learns_the_same(tmp_path: Path, checkpoint: Checkpoint) -> None:
    reference = run_to_end(tmp_path / "reference", **SETTINGS)
    jobs = make_jobs(tmp_path)
    run = put_away_during_a_run(jobs, tmp_path, checkpoint)
    assert run.manifest["message"] == "another checkpoint"
    assert run.manifest["waits"] == "checkpoint"
    checkpoint.away = False
    until(lambda: run.state == "done")
    assert run.manifest["waits"] == ""
    assert weights(run) == weights(reference)


@pytest.mark.parametrize(("wish", "state"), [("stop", "stopped"), ("pause", "paused"), ("discard", "stopped")])
def test_a_person_can_end_the_waiting(tmp_path: Path, checkpoint: Checkpoint, wish: str, state: str) -> None:
    jobs = make_jobs(tmp_path)
    run = put_away_during_a_run(jobs, tmp_path, checkpoint)
    assert jobs.stop(run.name, StopRequest(wish)).state == state
    checkpoint.away = False
    until(lambda: is_forgotten(jobs))
    assert run.state == state


def test_other_runs_are_not_held_up(tmp_path: Path, checkpoint: Checkpoint) -> None:
    jobs = make_jobs(tmp_path)
    run = put_away_during_a_run(jobs, tmp_path, checkpoint)
    jobs._suspended._resume = lambda name: _refuse()  # its checkpoint stays away
    checkpoint.away = False
    other = jobs.submit(TrainConfig.from_dict(document(tmp_path, "other")))
    assert jobs.wait(other, LIMIT)
    assert (run.state, other.state) == ("paused", "done")


def _refuse() -> None:
    raise InputError("not yet")


def test_a_stop_that_comes_while_the_run_is_put_aside_counts(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(tmp_path)
    jobs._on_change = lambda changed: jobs.stop(changed.name) if changed.state == "paused" else None
    run = put_away_during_a_run(jobs, tmp_path, checkpoint)
    checkpoint.away = False
    until(lambda: is_forgotten(jobs))
    assert (run.state, run.manifest["waits"]) == ("stopped", "")


MEASURED: dict[str, Any] = {
    "training__steps": 6,
    "validation__share": 0.3,
    "samples__prompts": ["red circle", "zorp"],
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with samples and held-out pictures whose checkpoint stays."""
    return run_to_end(tmp_path_factory.mktemp("reference"), **MEASURED)


@pytest.mark.parametrize("at", [4, 6])
@pytest.mark.parametrize("part", ["validate", "save", "_draw"])
def test_what_was_due_when_the_checkpoint_went_is_done_when_it_is_back(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, reference: Run, part: str, at: int
) -> None:
    do, gone = getattr(Artifacts, part), []

    def interrupted(self: Artifacts, work: PreparedRun, step: Any, *more: Any, **options: Any) -> Any:
        number = step if isinstance(step, int) else step.number
        if number == at and not gone:
            gone.append(number)
            checkpoint.away = True
            with work.session.turn():
                pass
        return do(self, work, step, *more, **options)

    monkeypatch.setattr(Artifacts, part, interrupted)
    jobs = make_jobs(tmp_path)
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path, **MEASURED)))
    until(lambda: run.state == "paused")
    checkpoint.away = False
    until(lambda: run.state == "done")
    assert gone == [at]
    assert [(e["step"], e["epoch"]) for e in run.manifest["files"]] == [
        (e["step"], e["epoch"]) for e in reference.manifest["files"]
    ]
    for index in range(len(reference.manifest["files"])):
        assert weights(run, index) == weights(reference, index)
        metrics = (each.manifest["files"][index]["metrics"]["validation"] for each in (run, reference))
        assert len({*metrics}) == 1
    assert _drawn(run) == _drawn(reference)
    assert _measured(run) == _measured(reference)
    assert Path(run.manifest["files"][-1]["path"]).with_suffix(".png").is_file()


def _drawn(run: Run) -> list[tuple[str, bytes]]:
    return [(Path(s["path"]).name, Path(s["path"]).read_bytes()) for s in run.manifest["samples"]]


def _measured(run: Run) -> list[tuple[int, float]]:
    return [(e["step"], e["validation"]) for e in run.entries() if "validation" in e]
