"""Small things that many tests make: configurations, drawn pictures, items without a file."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_trainer import demo
from lora_trainer.config.train import DataConfig, TrainConfig
from lora_trainer.dataset.buckets import fit
from lora_trainer.dataset.scan import Item
from lora_trainer.demo import drawings

CHECKPOINT = Path(demo.__file__).parent / "assets" / "small-sd1.safetensors"
"""The only checkpoint; its weights may be replaced, so no test may pin values that depend on them."""
ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "cases"
"""Small inputs that failed once, each in a folder with a README; never written to."""


def config(**values: Any) -> TrainConfig:
    """A checked configuration; ``network__rank=8`` sets ``network.rank``."""
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    return TrainConfig(name="test").with_values(dotted)


def data(**values: Any) -> DataConfig:
    """The data section alone, unchecked."""
    return DataConfig(**values)


def item(
    name: str = "a.png",
    size: tuple[int, int] = (512, 512),
    caption: str = "a caption",
    repeats: int = 1,
    concept: str = "folder",
    settings: DataConfig | None = None,
) -> Item:
    """An item of a picture that need not exist."""
    return Item(Path(name), concept, caption, repeats, size, fit(*size, settings or DataConfig()))


def draw_pictures(folder: Path, count: int = 4, size: tuple[int, int] = (96, 96), captions: bool = True) -> list[Path]:
    """Drawn pictures 00.png, 01.png, … with captions beside them, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    paths = []
    for index in range(count):
        scene = drawings.known_scene(rng)
        path = folder / f"{index:02d}.png"
        drawings.draw(scene, *size, rng).save(path)
        if captions:
            path.with_suffix(".txt").write_text(", ".join(scene.tags()), encoding="utf-8")
        paths.append(path)
    return paths


def temporary_files(folder: Path) -> list[Path]:
    """What an unfinished write would leave behind."""
    return [path for path in folder.rglob("*") if path.name.endswith(".lora-train-tmp")]


LIMIT = 240.0
"""Seconds that a test waits for what must happen: no test leans on them, what is not there by then never comes."""


def until(true: Callable[[], object]) -> None:
    """Wait for something that happens on another thread."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def start(work: Callable[[], object]) -> threading.Thread:
    """Do work beside the test's own; a program that ends does not wait for it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    """Wait until all are over, which they are unless they wait for each other."""
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "deadlock"
