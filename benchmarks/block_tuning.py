"""``python -m benchmarks.block_tuning``: do learned block weights help a run that was trained far too long?

Six pictures are learned by heart. Block weights are fitted to the pictures that the run kept aside, and once more to a
larger folder of others; what they are worth is measured on fresh drawings that nothing has seen.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import RunError
from lora_trainer.core.files import write_text
from lora_trainer.demo import drawings
from lora_trainer.demo.run import CHECKPOINT, TRIGGER
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.validation.blocks.report import tune
from lora_trainer.validation.blocks.tuner import Effort, Gain, Tuner
from lora_trainer.validation.metrics.evaluation_set import find_pictures

SIDE = 96
LEARNED, OTHERS, FRESH = 12, 16, 24
EPOCHS = 150


def draw_zorps(folder: Path, count: int, seed: int) -> None:
    """Pictures of the demo's new thing, with captions."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        scene = drawings.zorp_scene(rng)
        drawings.draw(scene, SIDE, SIDE, rng).save(folder / f"{index:02d}.png")
        write_text(folder / f"{index:02d}.txt", ", ".join(scene.tags()) + "\n")


def overtrain(root: Path, seed: int) -> tuple[StandaloneHost, Run]:
    """A run that sees six pictures 150 times each, at a high constant rate, and keeps six aside."""
    draw_zorps(root / "pictures", LEARNED, seed)
    config = TrainConfig.from_dict(
        {
            "name": "overtrained",
            "checkpoint": str(CHECKPOINT),
            "data": {"folder": str(root / "pictures"), "resolution": SIDE, "bucket_step": 32},
            "network": {"rank": 16, "alpha": 16},
            "training": {
                "epochs": EPOCHS, "batch_size": 2, "unet_lr": 3e-3, "text_lr": 5e-4, "scheduler": "constant",
                "seed": seed,
            },
            "save": {"every_epochs": EPOCHS // 5, "state_minutes": 0},
            "samples": {"every_epochs": 0, "steps": 1, "prompts": [TRIGGER]},
            "validation": {"share": 0.5, "every_epochs": EPOCHS // 5},
        }
    )  # fmt: skip
    host = StandaloneHost(root)
    jobs = Jobs(host)
    run = jobs.submit(config)
    jobs.wait(run)
    if run.state != "done":
        raise RunError("The training failed: {message}", message=run.manifest["message"])
    return host, run


def measure(root: Path, seed: int) -> dict[str, Any]:
    """Train, tune on held-out pictures and on others, and measure both on fresh ones."""
    about, began = report.machine(), time.time()
    host, run = overtrain(root, seed)
    draw_zorps(root / "others", OTHERS, seed + 1000)
    draw_zorps(root / "fresh", FRESH, seed + 2000)
    trained = time.time()
    tuned = {name: _tuned(host, run, folder) for name, folder in (("held out", ""), ("others", str(root / "others")))}
    done = time.time()
    return {
        "command": f"python -m benchmarks.block_tuning --seed {seed} --save",
        **about,
        "seed": seed,
        "pictures": {"learned": LEARNED // 2, "held out": LEARNED // 2, "others": OTHERS, "fresh": FRESH},
        "epochs": {f["epoch"]: f["metrics"]["validation"] for f in run.manifest["files"]},
        "tuned": tuned,
        "fresh": _fresh(host, run, str(root / "fresh"), tuned),
        "seconds": {"training": trained - began, "both tunings": done - trained, "fresh": time.time() - done},
    }


def _last(run: Run) -> Path:
    return Path(run.manifest["files"][-1]["path"])


def _tuned(host: StandaloneHost, run: Run, folder: str) -> dict[str, Any]:
    config = run.config()
    with host.session(ModelRequest.of(config)) as session:
        document = tune(session, _last(run), find_pictures(host, session, config, folder))
    return {key: value for key, value in document.items() if key not in ("file", "sentences", "prompt")}


def _fresh(host: StandaloneHost, run: Run, folder: str, tuned: dict[str, Any]) -> dict[str, Any]:
    """Losses on pictures that neither the run nor any choice has seen, each gain paired by picture."""
    config = run.config()
    with host.session(ModelRequest.of(config)) as session:
        tuner = Tuner(session, _last(run), find_pictures(host, session, config, folder), effort=Effort(seed=99))
        every = range(tuner.count)
        before = dict(enumerate(tuner.losses(tuner.ones, every)))
        found: dict[str, Any] = {"before": statistics.fmean(before.values())}
        for name, document in tuned.items():
            single = float(document["single"]["name"])
            for kind, weights in (
                ("block weights", tuple(document["weights"].values())),
                ("one weight", (single,) * len(tuner.blocks)),
            ):
                after = dict(enumerate(tuner.losses(weights, every)))
                found[f"{kind}, {name}"] = Gain(before, after).to_dict()
        tuner.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.block_tuning", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.seed)
    for name, document in result["tuned"].items():
        gain = document["tuned"]
        print(f"cross-fitted, {name}: {gain['relative']:+.2%} ± {gain['error'] / gain['before']:.2%} ({gain['state']})")
    for name, gain in result["fresh"].items():
        if name != "before":
            error = gain["error"] / gain["before"]
            print(f"on fresh pictures, {name}: {gain['relative']:+.2%} ± {error:.2%} ({gain['state']})")
    if args.save:
        print(report.save("block-tuning", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
