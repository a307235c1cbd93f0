"""The two programs, each started in a process of its own with the same work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import clock
from benchmarks.material import Material

SD_SCRIPTS = "SD_SCRIPTS"
SD_SCRIPTS_PYTHON = "SD_SCRIPTS_PYTHON"
ROOT = Path(__file__).resolve().parent.parent
RANK, ALPHA, RATE, SEED = 16, 8, 1e-4, 1


class ProgramFailed(Exception):
    """A program did not finish; the message is the end of what it said."""


@dataclass(frozen=True)
class Work:
    """What both programs do.

    Attributes:
        material: checkpoint, tokenizer and pictures.
        resolution: side of the pictures in pixels.
        steps: optimizer steps of a round.
        precision: fp32, bf16 or fp16.
        scratch: folder for caches and output, kept from round to round.
    """

    material: Material
    resolution: int
    steps: int
    precision: str
    scratch: Path


@dataclass(frozen=True)
class Press:
    """One press of Train: how many steps are awaited, and what differs from the common work."""

    name: str
    steps: int
    values: dict[str, Any] = field(default_factory=dict)


def presses(steps: int) -> list[Press]:
    """The first has the common work; those behind it show what is known the second time, and other settings."""
    return [
        Press("train", steps),
        Press("again", 1),
        Press("shuffled", 1, {"data.shuffle": True}),
        Press("text", 1, {"data.shuffle": True, "training.text_lr": 5e-6}),
    ]


def run_ours(work: Work, planned: list[Press]) -> dict[str, Any]:
    """One process of ours, with one or several presses of Train."""
    root = work.scratch / "ours"
    shutil.rmtree(root / "runs", ignore_errors=True)
    config = {
        "checkpoint": str(work.material.checkpoint),
        "data": {"folder": str(work.material.pictures), "resolution": work.resolution, "shuffle": False},
        "network": {"rank": RANK, "alpha": ALPHA},
        "training": {
            "steps": 1000,
            "unet_lr": RATE,
            "text_lr": 0.0,
            "scheduler": "constant",
            "seed": SEED,
            "precision": work.precision,
            "min_snr_gamma": 0.0,
            "clip_skip": 1,
        },
        "name": "bench",
    }
    settings = {
        "config": config,
        "root": str(root),
        "presses": [{"name": p.name, "steps": p.steps, "values": p.values} for p in planned],
    }
    environment = {"LORA_TRAIN_CLIP": str(work.material.tokenizer)}
    return _run([sys.executable, "-m", "benchmarks.ours", json.dumps(settings)], environment)


def peer_installed() -> bool:
    """Whether both variables name something."""
    folder, python = os.environ.get(SD_SCRIPTS, ""), os.environ.get(SD_SCRIPTS_PYTHON, "")
    return bool(python) and (Path(folder) / "train_network.py").is_file() and shutil.which(python) is not None


def run_peer(work: Work, steps: int, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One process of sd-scripts; ``environment`` has variables of it alone."""
    arguments = {
        "pretrained_model_name_or_path": work.material.checkpoint,
        "train_data_dir": work.material.pictures,
        "tokenizer_cache_dir": work.material.tokenizer.parent,
        "output_dir": work.scratch / "peer",
        "output_name": "bench",
        "caption_extension": ".txt",
        "resolution": f"{work.resolution},{work.resolution}",
        "network_module": "networks.lora",
        "network_dim": RANK,
        "network_alpha": ALPHA,
        "learning_rate": RATE,
        "unet_lr": RATE,
        "optimizer_type": "AdamW",
        "optimizer_args": "weight_decay=0.01",
        "lr_scheduler": "constant",
        "max_train_steps": steps,
        "train_batch_size": 1,
        "mixed_precision": {"fp32": "no"}.get(work.precision, work.precision),
        "save_precision": "fp16",
        "seed": SEED,
        "max_data_loader_n_workers": 0,  # a worker on a busy CPU would only cost it time
    }
    flags = ["--network_train_unet_only", "--cache_latents", "--cache_latents_to_disk", "--sdpa"]
    options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    folder = str(Path(os.environ[SD_SCRIPTS]).resolve())
    command = [os.environ[SD_SCRIPTS_PYTHON], "-m", "benchmarks.peer", folder, *options, *flags]
    return _run(command, {"HF_HUB_OFFLINE": "1", **(environment or {})})


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a program that hands in its result; what it says is shown only when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder, "result.json"), Path(folder, "said.txt")
        variables = {**os.environ, **environment, clock.RESULT: str(result), clock.STARTED: str(time.time())}
        with said.open("wb") as output:
            code = subprocess.run(
                command, cwd=ROOT, env=variables, stdout=output, stderr=output, check=False
            ).returncode
        if code or not result.is_file():
            tail = said.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise ProgramFailed(f"{command[2]} ended with {code}:\n{tail}")
        return json.loads(result.read_text(encoding="utf-8"))
