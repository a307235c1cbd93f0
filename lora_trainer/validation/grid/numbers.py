"""What is measured of a grid, put into its document: the losses of its files, and numbers of its pictures."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.validation.grid.document import GridCell, GridDocument, Numbers
from lora_trainer.validation.metrics.cache import NumberCache, cache_key
from lora_trainer.validation.metrics.clip import ClipScorer
from lora_trainer.validation.metrics.held_out_loss import Losses
from lora_trainer.validation.metrics.pictures import TrainingPictures, rms_difference, stamp_of

PICTURE_NUMBERS = ("effect", "leak", "copy", "clip")


# ------------------------------------------------------------------ losses
def add_losses(document: GridDocument, losses: Losses) -> None:
    """Put losses into a grid's document: ``loss`` and ``loss_se`` (of the difference to the checkpoint alone) into
    ``groups[].numbers``, the pictures' own into ``groups[].losses``, and on what they were measured into ``measured``.

    A loss that is no number (half precision can give NaN, as a broken training does) is left out, and its group is
    marked as ``broken``.
    """
    found = {(entry.file, entry.weight if entry.file else 0.0): entry for entry in losses.entries}
    for group in document["groups"]:
        entry = found.get((document["columns"][group["column"]]["file"], group["weight"]))
        for name in ("loss", "loss_se"):
            group["numbers"].pop(name, None)
        group.pop("losses", None)
        group.pop("broken", None)
        if entry is None:
            continue
        if not math.isfinite(entry.loss):
            group["broken"] = True
            continue
        group["losses"] = list(entry.losses)
        group["numbers"]["loss"] = entry.loss
        if entry.file is not None and entry.difference.se is not None and math.isfinite(entry.difference.se):
            group["numbers"]["loss_se"] = entry.difference.se
    document["measured"] = {
        "held_out": losses.held_out,
        "pictures": losses.pictures,
        "of": losses.of,
        "timesteps": losses.timesteps,
        "problems": [{"file": file, **error.message.to_dict()} for file, error in losses.problems],
    }


# ------------------------------------------------------------------ pictures
def add_picture_numbers(
    document: GridDocument,
    training_pictures: Sequence[Path],
    *,
    clip: Path | None = None,
    clip_device: str = "cpu",
    cache: Path | None = None,
    on_cell: Callable[[int, int], object] = lambda done, of: None,
) -> None:
    """Fill ``cells[].numbers``, and their means and spreads over prompts and seeds into ``groups[].numbers``.

    A cell has ``effect`` (prompts with the trigger) or ``leak`` (prompts without), the difference from the picture
    without LoRA; and ``copy`` and ``clip``, whose means are of the prompts with the trigger, or of all when none has
    it. Cells that are not drawn yet, or whose picture cannot be read, have no numbers.

    Args:
        document: of a grid; changed in place.
        training_pictures: of the run; those that cannot be read are left out.
        clip: folder of a CLIP model; without one there is no ``clip``.
        clip_device: where CLIP is computed.
        cache: JSON file with the numbers of earlier calls.
        on_cell: told how many cells are done; may raise to stop.

    Raises:
        InputError: ``clip`` is no folder of a CLIP model that can be used.
        RunError: the cache cannot be written.
    """
    scorer = ClipScorer(clip, clip_device) if clip is not None else None
    known = NumberCache(cache)
    measure = _Measure(document, TrainingPictures(training_pictures), scorer, known)
    try:
        for done, cell in enumerate(document["cells"], start=1):
            cell["numbers"] = measure(cell)
            on_cell(done, len(document["cells"]))
    finally:
        known.write()
    _average(document)


class _Measure:
    """Measures cells; what was measured before is known by what it depends on."""

    def __init__(
        self, document: GridDocument, training: TrainingPictures, scorer: ClipScorer | None, known: NumberCache
    ) -> None:
        self._prompts = document["prompts"]
        self._bases = {
            (cell["prompt"], cell["seed"]): Path(cell["picture"])
            for cell in document["cells"]
            if cell["column"] == 0 and cell["picture"]
        }
        self._training = training
        self._scorer = scorer
        self._known = known

    def __call__(self, cell: GridCell) -> Numbers:
        """The numbers of a cell that can be measured."""
        if not cell["picture"]:
            return {}
        path, prompt = Path(cell["picture"]), self._prompts[cell["prompt"]]
        base = self._bases.get((cell["prompt"], cell["seed"]))
        wanted: dict[str, tuple[object, Callable[[], float | None]]] = {
            "copy": (self._training.key, lambda: self._training.copy_ratio(_read(path)))
        }
        if base and cell["column"]:
            name = "effect" if prompt["trigger"] else "leak"
            wanted[name] = (stamp_of(base), lambda: _difference(_read(path), _read_base(base, stamp_of(base))))
        if scorer := self._scorer:
            wanted["clip"] = ((scorer.key, prompt["text"]), lambda: scorer.score(_read(path), prompt["text"]))
        return {
            n: value for n, (on, measure) in wanted.items() if (value := self._value(n, path, on, measure)) is not None
        }

    def _value(self, name: str, path: Path, depends_on: object, measure: Callable[[], float | None]) -> float | None:
        key = cache_key("difference" if name in ("effect", "leak") else name, stamp_of(path), depends_on)
        numbers = self._known.get(key)
        if numbers is None:
            try:
                value = measure()
            except PictureError:
                return None
            numbers = [] if value is None else [value]
            self._known.put(key, numbers)
        return numbers[0] if numbers else None


def _difference(first: Image.Image, second: Image.Image) -> float | None:
    return rms_difference(first, second) if first.size == second.size else None


def _read(path: Path) -> Image.Image:
    return _read_once(path, stamp_of(path))


@lru_cache(maxsize=1)
def _read_once(path: Path, stamp: object) -> Image.Image:
    """The picture that is being measured, for all of its numbers."""
    return read_picture(path)


@lru_cache(maxsize=16)
def _read_base(path: Path, stamp: object) -> Image.Image:
    """The pictures without LoRA, which all columns and weights are compared with."""
    return read_picture(path)


def _average(document: GridDocument) -> None:
    """Means and sample standard deviations of the cells of each group."""
    called = any(prompt["trigger"] for prompt in document["prompts"])
    found: dict[tuple[int, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in document["cells"]:
        counts = document["prompts"][cell["prompt"]]["trigger"] or not called
        for name, value in cell["numbers"].items():
            if value is not None and (counts or name == "leak"):
                found[cell["column"], cell["weight"]][name].append(value)
    for group in document["groups"]:
        numbers = group["numbers"]
        for name in PICTURE_NUMBERS:
            numbers.pop(name, None)
            numbers.pop(f"{name}_sd", None)
        for name, values in found[group["column"], group["weight"]].items():
            numbers[name] = statistics.fmean(values)
            if len(values) > 1:
                numbers[f"{name}_sd"] = statistics.stdev(values)
