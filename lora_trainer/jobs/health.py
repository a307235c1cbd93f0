"""What the host is ready for."""

from __future__ import annotations

from typing import Any

from lora_trainer import __version__
from lora_trainer.core.errors import LoraTrainError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.jobs.service import Jobs


def health_report(jobs: Jobs) -> dict[str, Any]:
    """What the server can do now."""
    try:
        info = jobs.host.check(ModelRequest(work="health"))
        checkpoint: dict[str, Any] = info.to_dict()
        problem = ""
    except LoraTrainError as error:
        checkpoint, problem = {}, str(error)
    current = jobs.current()
    return {
        "status": "ok",
        "version": __version__,
        "host": jobs.host.name,
        "checkpoint": checkpoint,
        "problem": problem,
        "running": current.name if current else None,
        "queue": [run.name for run in jobs.waiting()],
    }
