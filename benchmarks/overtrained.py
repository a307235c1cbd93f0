"""``python -m benchmarks.overtrained``: a run trained far too long on the small checkpoint, and what is recommended.

The epoch and weight are chosen by the loss on pictures that the run kept aside. Whether that was right is measured on
fresh pictures, which neither the run nor the choice has seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from lora_trainer.core.errors import RunError
from lora_trainer.demo.run import WEIGHTS, demo_config, make_pictures
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.validation.grid.numbers import add_losses
from lora_trainer.validation.grid.verdict import judge
from lora_trainer.validation.metrics.held_out_loss import HeldOutLoss, Losses, held_out_losses
from lora_trainer.validation.metrics.paired import paired

PICTURES = 6
"""Of the new thing, and as many known ones; half of them are kept aside."""
FRESH = 8
FRESH_SEED = 1234
EPOCHS, EVERY = 40, 4


def overtrain(root: Path, seed: int = 1, epochs: int = EPOCHS, every: int = EVERY) -> tuple[StandaloneHost, Run]:
    """Train far too long: six pictures, a high constant rate, each seen about 200 times.

    Args:
        root: folder of pictures, run and files.
        seed: of the training.
        epochs: of eight steps each.
        every: a file after so many of them.

    Raises:
        RunError: the training failed.
    """
    make_pictures(root / "pictures", count=PICTURES)
    host = StandaloneHost(root)
    config = demo_config(root / "pictures").with_values(
        {
            "training.epochs": epochs,
            "training.unet_lr": 3e-3,
            "training.text_lr": 1e-3,
            "training.scheduler": "constant",
            "training.seed": seed,
            "samples.prompts": [],
            "save.every_epochs": every,
            "save.state_minutes": 0,
            "validation.share": 0.5,
            "validation.every_epochs": epochs,
        }
    )
    jobs = Jobs(host)
    run = jobs.submit(config)
    jobs.wait(run)
    if run.state != "done":
        raise RunError("The training failed: {message}", message=run.manifest["message"])
    return host, run


def fresh_losses(host: StandaloneHost, run: Run, weights: Sequence[float], count: int = FRESH) -> Losses:
    """The losses of a run's files on pictures that nobody has seen before."""
    folder = host.folders.runs.parent / "fresh"
    make_pictures(folder, count=count, seed=FRESH_SEED)
    config = run.config().with_values({"data.folder": str(folder), "validation.share": 0})
    with host.session(ModelRequest.of(config)) as session:
        return held_out_losses(host, session, config, files(run), weights)


def files(run: Run) -> list[Path]:
    """The run's files in order."""
    return [Path(entry["path"]) for entry in run.manifest["files"]]


def document(run: Run, weights: Sequence[float]) -> dict[str, Any]:
    """A grid without pictures."""
    columns = [{"label": "no LoRA", "file": None, "name": "", "epoch": 0, "step": 0}]
    for entry in run.manifest["files"]:
        label = f"epoch {entry['epoch']}"
        columns.append({**entry, "label": label, "file": entry["path"], "name": Path(entry["path"]).stem})
    places = [(0, 0.0), *((column, weight) for column in range(1, len(columns)) for weight in weights)]
    groups = [{"column": column, "weight": weight, "numbers": {}} for column, weight in places]
    return {"run": run.name, "columns": columns, "weights": list(weights), "prompts": [], "cells": [], "groups": groups}


def main() -> int:
    args = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.seed)
    _print(result)
    if args.save:
        print(f"\n{report.save('overtrained', result)}")
    return 0 if result["is_before_the_turn"] and result["fresh"]["is_better_than_last"] else 1


def measure(root: Path, seed: int = 1) -> dict[str, Any]:
    """Train, choose, and measure the choice on fresh pictures."""
    about, began = report.machine(), time.time()
    host, run = overtrain(root, seed)
    trained = time.time()
    grid = document(run, WEIGHTS)
    with host.session(ModelRequest.of(run.config())) as session:
        fingerprint = run.manifest["dataset"]["fingerprint"]
        add_losses(grid, held_out_losses(host, session, run.config(), files(run), WEIGHTS, fingerprint=fingerprint))
    verdict = judge(grid)
    measured = time.time()
    column, weight = verdict["column"], verdict["weight"]
    fresh = fresh_losses(host, run, [weight]).entries
    epochs = [c["epoch"] for c in grid["columns"]]
    trained_on = run.manifest["dataset"]["pictures"] - run.manifest["dataset"]["held_out"]
    return {
        "command": "python -m benchmarks.overtrained",
        "what": "a run trained far too long; epoch and weight chosen on held-out pictures, measured on fresh ones",
        "machine": about,
        "seed": seed,
        "pictures": {"trained": trained_on, "held_out": grid["measured"]["pictures"], "fresh": 2 * FRESH},
        "steps": run.manifest["steps"],
        "held_out_loss": {
            "without_lora": grid["groups"][0]["numbers"]["loss"],
            "by_epoch_and_weight": [
                {"epoch": epochs[g["column"]], "weight": g["weight"], **g["numbers"]} for g in grid["groups"][1:]
            ],
            "by_picture": [[round(loss, 6) for loss in g["losses"]] for g in grid["groups"]],
        },
        "recommended": {"epoch": epochs[column], "weight": weight},
        "state": verdict["state"],
        "turn": verdict["turn"],
        "is_before_the_turn": verdict["turn"] is not None and epochs[column] < verdict["turn"],
        "sentences": [s["template"].format(**s["values"]) for s in verdict["sentences"]],
        "fresh": _on_fresh(fresh, column, epochs),
        "seconds": {
            "training": round(trained - began, 1),
            "held_out": round(measured - trained, 1),
            "fresh": round(time.time() - measured, 1),
        },
    }


def _on_fresh(entries: Sequence[HeldOutLoss], column: int, epochs: Sequence[int]) -> dict[str, Any]:
    """The recommended file and the last against each other, on the fresh pictures at the recommended weight."""
    rise = paired(dict(enumerate(entries[column].losses)), dict(enumerate(entries[-1].losses)))
    assert rise is not None
    lowest = min(range(1, len(entries)), key=lambda index: entries[index].loss)
    return {
        "without_lora": entries[0].loss,
        "recommended": entries[column].loss,
        "last": entries[-1].loss,
        "last_minus_recommended": {"mean": rise.mean, "se": rise.se, "chance": rise.chance},
        "is_better_than_last": rise.is_higher,
        "lowest": {"epoch": epochs[lowest], "loss": entries[lowest].loss},
        "by_epoch": {str(epoch): entry.loss for epoch, entry in zip(epochs, entries, strict=True)},
    }


def _print(result: dict[str, Any]) -> None:
    fresh = result["fresh"]
    print("\n".join(result["sentences"]))
    print(f"Recommended epoch {result['recommended']['epoch']}, turn at epoch {result['turn']}")
    print(
        f"On fresh pictures: {fresh['without_lora']:.4f} without LoRA, {fresh['recommended']:.4f} recommended, "
        f"{fresh['last']:.4f} last; lowest {fresh['lowest']['loss']:.4f} at epoch {fresh['lowest']['epoch']}"
    )
    print(result["seconds"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overtrained", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the training (default: 1)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="write no file into benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
