"""Short whole runs on the small checkpoint, for the tests of runs, jobs, REST and command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from tests.helpers import CHECKPOINT, LIMIT, draw_pictures

_loaded: list[Any] = []


def make_jobs(root: Path, *, confined: bool = False) -> Jobs:
    """Jobs of an embedded host below ``root``; the checkpoint is loaded once for all tests."""
    host = StandaloneHost(root, str(CHECKPOINT))
    if _loaded:
        host._loaded = _loaded[0]
    else:
        host._load(CHECKPOINT)
        _loaded.append(host._loaded)
    return Jobs(host, confined=confined)


def document(root: Path, name: str = "zorp", **changes: Any) -> dict[str, Any]:
    """A run of a few steps at 64 px; ``training__steps=3`` sets ``training.steps``."""
    pictures = root / "pictures"
    if not pictures.exists():
        draw_pictures(pictures, count=5, size=(64, 64))
    values: dict[str, Any] = {
        "name": name,
        "data": {"folder": str(pictures), "resolution": 64, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 2, "alpha": 1},
        "training": {"steps": 3, "batch_size": 2, "unet_lr": 1e-2, "text_lr": 0, "scheduler": "constant"},
        "samples": {"steps": 1},
    }
    for key, value in changes.items():
        section, _, option = key.partition("__")
        values.setdefault(section, {})[option] = value
    return values


def run_to_end(root: Path, name: str = "zorp", **changes: Any) -> Run:
    """Do a run; returns it when it has ended."""
    jobs = make_jobs(root)
    run = jobs.submit(TrainConfig.from_dict(document(root, name, **changes)))
    assert jobs.wait(run, LIMIT)
    return run


def weights(run: Run, index: int = -1) -> dict[str, bytes]:
    """The tensors of one of a run's files as bytes."""
    return {k: v.numpy().tobytes() for k, v in load_file(run.manifest["files"][index]["path"]).items()}


def at_step(number: int) -> Callable[[Run], bool]:
    """For :func:`when`: a step is done."""
    return lambda run: run.manifest["step"] >= number


def when(jobs: Jobs, is_so: Callable[[Run], object], act: Callable[[], object]) -> None:
    """Do something once, as soon as a run tells that something is so, on the run's own thread.

    Then the run has not gone on meanwhile, however slow the machine is. To be called before the run is submitted.
    """
    done: list[bool] = []
    tell = jobs._on_change

    def look(run: Run) -> None:
        tell(run)
        if not done and is_so(run):
            done.append(True)
            act()

    jobs._on_change = look
