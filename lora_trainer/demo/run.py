"""The main job on drawn pictures: data set → training → every epoch → grid → the chosen epoch and weight."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.core.files import write_json, write_text
from lora_trainer.core.messages import Message
from lora_trainer.demo import drawings
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run

CHECKPOINT = Path(__file__).parent / "assets" / "small-sd1.safetensors"
TRIGGER = "zorp"
WEIGHTS = (0.3, 0.6, 0.8, 1.0)
PROMPTS = ("zorp, blue background", "zorp, yellow background", "red circle, white background")
_SIZES = ((128, 128), (128, 128), (128, 128), (192, 128))
_MARKER = ".lora-train-demo"


def make_pictures(folder: Path, count: int = 24, seed: int = 7) -> None:
    """Draw two concepts into ``folder``: zorps, and as many known things, so that those stay as they are."""
    rng = random.Random(seed)
    _draw(folder / "6_zorp", [drawings.zorp_scene(rng) for _ in range(count)], rng)
    _draw(folder / "4_known", [drawings.known_scene(rng) for _ in range(count)], rng)


def _draw(folder: Path, scenes: Sequence[drawings.Scene], rng: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        width, height = _SIZES[index % len(_SIZES)]
        drawings.draw(scene, width, height, rng).save(folder / f"{index:02d}.png")
        write_text(folder / f"{index:02d}.txt", ", ".join(scene.tags()) + "\n")


def demo_config(pictures: Path, checkpoint: Path = CHECKPOINT) -> TrainConfig:
    """The demo's settings; the trigger word stands in the captions, since only one of the concepts has it."""
    return TrainConfig.from_dict(
        {
            "name": TRIGGER,
            "checkpoint": str(checkpoint),
            "data": {"folder": str(pictures), "resolution": 128, "bucket_step": 32},
            "network": {"rank": 8, "alpha": 8},
            "training": {"epochs": 6, "batch_size": 4, "unet_lr": 1.5e-3, "text_lr": 3e-4, "seed": 1},
            "samples": {
                "prompts": list(PROMPTS), "every_epochs": 3, "sampler": "Euler", "steps": 16, "cfg": 4, "seed": 3,
            },
            "validation": {"share": 0.15},
        }
    )  # fmt: skip


def run_demo(output: Path, on_change: Callable[[Run], object] = lambda run: None) -> dict[str, Any]:
    """Do the whole job below ``output`` and return the report, which is also written there.

    Args:
        output: a new folder, or that of an earlier demo, which is emptied.
        on_change: told whenever something was done.

    Raises:
        InputError: ``output`` holds something that is not an earlier demo.
        RunError: the training failed.
    """
    began = time.time()
    _fresh(output)
    make_pictures(output / "pictures")
    host = StandaloneHost(output)
    config = demo_config(output / "pictures")
    write_text(output / "zorp.toml", config.to_toml())
    jobs = Jobs(host, on_change=on_change)
    run = jobs.submit(config)
    jobs.wait(run)
    if run.state != "done":
        raise RunError("The demo's training failed: {message}", message=run.manifest["message"])
    jobs.grids.draw(run.name, weights=WEIGHTS, prompts=PROMPTS)
    jobs.wait(run)
    grid = run.manifest["grid"]
    if grid["state"] != "done":
        raise RunError("The demo's grid failed: {message}", message=grid["message"])
    document = jobs.grids.document(run.name)
    verdict = document["verdict"]
    losses = {(group["column"], group["weight"]): group["numbers"]["loss"] for group in document["groups"]}
    column = document["columns"][verdict["column"]]
    loss = losses[verdict["column"], verdict["weight"]]
    steps = [learned for e in run.entries() if (learned := e.get("loss")) is not None]
    share = max(1, len(steps) // config.training.epochs)
    report = {
        "loras": [entry["path"] for entry in run.manifest["files"]],
        "grid": grid["path"],
        "numbers": document["csv"],
        "best": {"epoch": column["epoch"], "weight": verdict["weight"], "file": column["file"], "val_loss": loss},
        "verdict": verdict["state"],
        "recommendation": [str(Message.from_dict(sentence)) for sentence in verdict["sentences"]],
        "seconds": round(time.time() - began, 1),
        "loss_first": sum(steps[:share]) / share,
        "loss_last": sum(steps[-share:]) / share,
        "val_loss_base": losses[0, 0.0],
        "val_loss_best": loss,
        "groups": document["groups"],
    }
    write_json(output / "report.json", report)
    return report


def _fresh(output: Path) -> None:
    """Empty the folder of an earlier demo; anything else in the way is an error."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / _MARKER).is_file():
            raise InputError(
                "{folder} is not an earlier demo's folder; name an empty one with --output.", folder=output
            )
        shutil.rmtree(output)
    write_text(output / _MARKER, "This folder is emptied by the next lora-trainer demo.\n")


def summary(report: dict[str, Any], output: Path) -> list[str]:
    """What the demo has made and found, a line each."""
    chosen = report["best"]
    name = Path(chosen["file"]).stem
    return [
        f"LoRA files:  {Path(report['loras'][0]).parent}",
        f"Grid:        {report['grid']}",
        f"Run:         {output / 'runs' / TRIGGER}",
        f"Report:      {output / 'report.json'}",
        f"Loss:        {report['loss_first']:.4f} in the first epoch, {report['loss_last']:.4f} in the last",
        f"Held out:    {report['val_loss_base']:.4f} without LoRA, {report['val_loss_best']:.4f} recommended",
        f"Numbers:     {report['numbers']}",
        f"Best:        epoch {chosen['epoch']} at weight {chosen['weight']:g}: <lora:{name}:{chosen['weight']:g}>",
        *(f"             {sentence}" for sentence in report["recommendation"]),
        f"{report['seconds']:.0f} seconds",
    ]
