"""Grids as validation/grid.py leaves them, without drawing: small pictures in colours that tell the cells apart."""

from __future__ import annotations

import colorsys
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

from lora_trainer.core.files import write_json, write_text
from lora_trainer.network.lora_file import save_lora
from lora_trainer.runs.run import Run
from tests.network.made import lora

WEIGHTS = (0.3, 0.6, 0.8, 1.0)
PROMPTS = ("zorp, blue background", "blue background")
BEST = (3, 0.8)


def make_files(run: Run, folder: Path, epochs: int) -> None:
    """LoRA files of a run, tiny but real."""
    tensors = {f"lora_unet_mid_block_attentions_0_proj_in.{k}": v for k, v in lora(8, 8, 2, 1.0).items()}
    entries = []
    for epoch in range(1, epochs + 1):
        path = folder / (f"{run.name}-{epoch:06d}.safetensors" if epoch < epochs else f"{run.name}.safetensors")
        digest = save_lora(path, tensors, {"ss_output_name": path.stem}, "fp32")
        entries.append({"path": str(path), "epoch": epoch, "step": 40 * epoch, "sha256": digest})
    run.update(files=entries, now=True)


def make_grid(
    run: Run,
    *,
    weights: Sequence[float] = WEIGHTS,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (1, 2),
    drawn: int | None = None,
    measured: bool = True,
    size: tuple[int, int] = (64, 64),
) -> dict[str, Any]:
    """Write the grid of a run's files, of which the first ``drawn`` cells are there; returns its document."""
    folder = run.grids / "plain"
    files = [
        {"label": f"epoch {f['epoch']}", "file": f["path"], "name": Path(f["path"]).stem, **_only(f, "epoch", "step")}
        for f in run.manifest["files"]
    ]
    columns = [{"label": "no LoRA", "file": None, "name": "", "epoch": 0, "step": 0}, *files]
    groups = [(0, 0.0), *((column, weight) for column in range(1, len(columns)) for weight in weights)]
    places = [(*group, p, s) for group in groups for p in range(len(prompts)) for s in range(len(seeds))]
    cells = []
    for number, (column, weight, prompt, seed) in enumerate(places):
        shows = (columns[column]["file"], weight) if weight else ()
        key = hashlib.sha256(repr((shows, prompts[prompt], seeds[seed])).encode()).hexdigest()[:16]
        path = folder / "cells" / f"{key}.png"
        there = drawn is None or number < drawn
        if there and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture((column, weight, prompt, seed), len(columns), size).save(path)
        place = {"column": column, "weight": weight, "prompt": prompt, "seed": seed, "key": key}
        numbers = {"effect": _effect(column, weight) + 0.01 * seed, "copy": _novelty(column, weight)}
        cells.append(
            {**place, "picture": str(path) if there else None, "numbers": numbers if measured and there else {}}
        )
    document = {
        "version": 2,
        "run": run.name,
        "trigger": "zorp",
        "columns": columns,
        "weights": list(weights),
        "prompts": [{"text": text, "trigger": "zorp" in text} for text in prompts],
        "seeds": list(seeds),
        "size": list(size),
        "negative": "blurry",
        "sampler": "Euler a",
        "steps": 20,
        "cfg": 7.0,
        "cells": cells,
        "groups": [
            {"column": c, "weight": w, "numbers": _numbers(c, w) if measured else {}} for c, w in groups
        ],
        "verdict": _verdict() if measured and len(columns) > BEST[0] and BEST[1] in weights else None,
        "measured": {"held_out": True},
        "problems": [],
        "sheets": [],
        "csv": None,
    }  # fmt: skip
    if drawn is None:
        Image.new("RGB", (32, 32)).save(folder / "grid.png")
        write_text(folder / "grid.csv", "epoch,weight\n")
        write_text(folder / "grid-cells.csv", "epoch,weight,prompt,seed\n")
        document |= {"sheets": [str(folder / "grid.png")], "csv": str(folder / "grid.csv")}
    write_json(folder / "grid.json", document)
    name, done = ("done", len(places)) if drawn is None else ("running", drawn)
    state: dict[str, Any] = {"state": name, "done": done}
    if drawn is not None:  # by another program, as far as its manifest tells
        state["process"] = [os.getppid(), psutil.Process(os.getppid()).create_time()]
    run.update(grid={**state, "of": len(places), "message": "", "seconds_left": 75.0}, now=True)
    return document


def _only(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: entry[key] for key in keys}


def _effect(column: int, weight: float) -> float:
    return 0.06 * column * weight


def _novelty(column: int, weight: float) -> float:
    return max(0.02, 1.1 - 0.12 * column * weight)


def _numbers(column: int, weight: float) -> dict[str, float]:
    away = abs(column * weight - BEST[0] * BEST[1])
    found = {"loss": 0.1 + 0.012 * away, "loss_se": 0.002}
    if column:
        found |= {
            "effect": _effect(column, weight),
            "effect_sd": 0.01,
            "leak": 0.03 * column * weight,
            "leak_sd": 0.004,
        }
    return {**found, "copy": _novelty(column, weight), "copy_sd": 0.02}


def _verdict() -> dict[str, Any]:
    sentences = [
        {"template": "{name} is in line.", "values": {"name": "zorp-000003"}},
        {"template": "The grid is being drawn.", "values": {}},
    ]
    return {"state": "over", "column": BEST[0], "weight": BEST[1], "turn": 4, "sentences": sentences}


def _picture(place: tuple[int, float, int, int], columns: int, size: tuple[int, int]) -> Image.Image:
    column, weight, prompt, seed = place
    light = 0.35 + 0.5 * min(weight, 1.2) / 1.2
    color = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(column / columns, 0.25 + 0.6 * light, light))
    image = Image.new("RGB", size, color)
    pen = ImageDraw.Draw(image)
    left, top = size[0] // 4 + 4 * seed, size[1] // 4 + 6 * prompt
    pen.ellipse((left, top, left + size[0] // 3, top + size[1] // 3), fill="white")
    return image
