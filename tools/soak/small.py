"""Short runs on the small checkpoint, for events that can be repeated a hundred times."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.demo import drawings
from lora_trainer.demo.run import CHECKPOINT
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs


def draw_pictures(folder: Path, count: int = 6, size: int = 64) -> Path:
    """Some captioned pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for index in range(count):
        scene = drawings.zorp_scene(rng)
        drawings.draw(scene, size, size, rng).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(", ".join(scene.tags()), encoding="utf-8")
    return folder


def document(name: str, pictures: Path, steps: int, **training: Any) -> dict[str, Any]:
    """A run that touches everything: text encoder, shuffling, samples, held-out pictures, files, states."""
    return {
        "name": name,
        "data": {"folder": str(pictures), "resolution": 64, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 4, "alpha": 2, "dropout": 0.1},
        "training": {"steps": steps, "batch_size": 2, "unet_lr": 1e-3, "text_lr": 1e-4, "warmup": 3, **training},
        "save": {"every_epochs": 0, "every_steps": 10, "state_steps": 3},
        "samples": {"prompts": ["zorp"], "every_epochs": 4, "steps": 2, "sampler": "Euler"},
        "validation": {"share": 0.2, "every_epochs": 4, "timesteps": 2},
    }


def make_jobs(root: Path, loaded: Any = None) -> Jobs:
    """Jobs of the embedded host, on the small checkpoint."""
    host = StandaloneHost(root, str(CHECKPOINT))
    if loaded is None:
        host._load(CHECKPOINT)
    else:
        host._loaded = loaded
    return Jobs(host)


def go_on(root: Path, values: dict[str, Any], loaded: Any, jobs: Jobs | None = None) -> str:
    """Begin the run, or go on with it; returns its state at the end."""
    jobs = jobs or make_jobs(root, loaded)
    name = values["name"]
    if name in jobs.runs.names():
        run = jobs.settled(name)
        if run.state == "done":
            return run.state
        if jobs.training.find(run) is None:
            try:
                run = jobs.resume(name)
            except InputError:  # it waited, and has been put into the line meanwhile
                if jobs.training.find(run) is None:
                    raise
    else:
        run = jobs.submit(TrainConfig.from_dict(values))
    jobs.wait(run)
    return run.state


def digests(root: Path, name: str) -> dict[str, str]:
    """SHA-256 over the tensors of each LoRA file of a run; reading them shows that each is whole."""
    found = {}
    for path in sorted((root / "models" / "Lora" / name).glob("*.safetensors")):
        digest = hashlib.sha256()
        for key, tensor in sorted(load_file(path).items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
        found[path.name] = digest.hexdigest()
    return found
