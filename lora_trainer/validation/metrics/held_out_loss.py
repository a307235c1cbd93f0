"""Numbers beside the pictures: the loss of each file at each weight, without drawing anything.

Noise and timesteps are fixed, so two files differ on a picture by nothing but what they have learned: their losses are
compared picture by picture (:mod:`lora_trainer.validation.metrics.paired`), which shows differences far below the
spread of the losses themselves.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.files import file_hash
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.fingerprint import dataset_fingerprint
from lora_trainer.dataset.latents import LatentCache, encode_each
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import Dataset, Item, scan
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.hosts.base import Host, Session
from lora_trainer.model.conditioning import Conditioning
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.precision import resolve_precision
from lora_trainer.network.adapters import (
    Adapters,
    adapters_for,
    file_shapes,
    remove_adapters,
)
from lora_trainer.network.lora_file import read_lora
from lora_trainer.validation.metrics.cache import NumberCache, cache_key
from lora_trainer.validation.metrics.paired import Difference, paired

MOST_PICTURES = 24
SLICE = 1.0
"""Seconds after which the model is handed to whoever waits for it."""
_AREA = {"cpu": 64 * 64, "cuda": 8 * 64 * 64}
"""Latent pixels that are measured at once, by the kind of device: a picture of 512 px, or eight."""


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared error with a file at a weight.

    Attributes:
        file: its path; ``None`` for the checkpoint alone.
        weight: of the LoRA.
        losses: one a picture, each the mean over its noise levels.
        difference: from the checkpoint alone, picture by picture; below 0 is better.
    """

    file: str | None
    weight: float
    losses: tuple[float, ...]
    difference: Difference

    @property
    def loss(self) -> float:
        """Mean over the pictures."""
        return statistics.fmean(self.losses)


@dataclass(frozen=True)
class Losses:
    """What was measured, and on what.

    Attributes:
        entries: the checkpoint alone first, then file by file at each weight.
        held_out: whether the pictures were kept aside; else they were trained on, and say nothing of over-fitting.
        pictures: how many were measured.
        of: how many there were.
        timesteps: noise levels of each.
        problems: a path (empty when it concerns all) and why it could not be measured.
    """

    entries: list[HeldOutLoss]
    held_out: bool
    pictures: int
    of: int
    timesteps: int
    problems: list[tuple[str, LoraTrainError]] = field(default_factory=list)


def held_out_losses(
    host: Host,
    session: Session,
    config: TrainConfig,
    files: Sequence[Path],
    weights: Sequence[float],
    on_cell: Callable[[int, int], object] = lambda done, of: None,
    *,
    cache: Path | None = None,
    most: int = MOST_PICTURES,
    fingerprint: str = "",
) -> Losses:
    """Measure files at weights on the pictures that the run kept aside, or on its training pictures if it kept none.

    The model's view must be free of adapters, and is free of them again at the end. A file that cannot be used is a
    problem of its own; the others are measured.

    Args:
        host: knows where latents are cached.
        session: the hold on the model; it is used in turns of about :data:`SLICE` seconds.
        config: of the run.
        files: LoRA files; their modules and ranks may differ.
        weights: LoRA weights; 0 is the checkpoint alone, which is measured once.
        on_cell: told how many cells are done; may raise to stop, and what was measured stays in the cache.
        cache: JSON file with what was measured before; only the rest is measured.
        most: pictures that are measured at most, 1 or more; of more, a fixed choice.
        fingerprint: of the data set in the run's manifest. When the pictures have changed since, those that would be
            kept aside now may have been trained on.

    Raises:
        InputError: no file, no weight, or no picture to measure on.
        CheckpointChanged: the host has another checkpoint now.
        RunError: the cache cannot be written.
    """
    if not files or not weights:
        raise InputError("There is nothing to measure: name at least one LoRA file and one weight.")
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError("weights: use numbers from -2 to 2.", field="weights")
    bench = _Bench(host, session, config, most, fingerprint)
    known = NumberCache(cache)
    try:
        entries = _measure(bench, known, list(files), list(dict.fromkeys(weights)), on_cell)
    finally:
        bench.clear()
        known.write()
    return Losses(entries, bench.held_out, len(bench.pictures), bench.of, config.validation.timesteps, bench.problems)


# ------------------------------------------------------------------ measuring
def _measure(
    bench: _Bench, known: NumberCache, files: list[Path], weights: list[float], on_cell: Callable[[int, int], object]
) -> list[HeldOutLoss]:
    """Cell by cell, what is not known yet."""
    total = 1 + len(files) * len(weights)
    base = _known_or_measured(bench, known, None, "", 0.0)
    entries = [_entry(None, 0.0, base, base)]
    on_cell(1, total)
    for number, file in enumerate(files):
        try:
            content = _content(file)
            for done, weight in enumerate(weights, start=2 + number * len(weights)):
                losses = _known_or_measured(bench, known, file, content, weight) if weight else base
                entries.append(_entry(str(file), weight, losses, base))
                on_cell(done, total)
        except _Unusable as error:
            bench.problems.append((str(file), error.why))
            on_cell(1 + (number + 1) * len(weights), total)
    return entries


class _Unusable(Exception):
    """A file cannot be measured."""

    def __init__(self, why: LoraTrainError) -> None:
        super().__init__(str(why))
        self.why = why


def _entry(file: str | None, weight: float, losses: Sequence[float], base: Sequence[float]) -> HeldOutLoss:
    difference = paired(dict(enumerate(base)), dict(enumerate(losses)))
    assert difference is not None
    return HeldOutLoss(file, weight, tuple(losses), difference)


def _known_or_measured(
    bench: _Bench, known: NumberCache, file: Path | None, content: str, weight: float
) -> Sequence[float]:
    key = cache_key(bench.key, content, weight)
    losses = known.get(key)
    if losses is None or len(losses) != len(bench.pictures):
        bench.put(file, weight)
        losses = bench.losses()
        known.put(key, losses)
    return losses


def _content(file: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    try:
        stat = file.stat()
        return _hash(file, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise _Unusable(InputError("{path} does not exist; check the path.", path=file)) from error


@lru_cache(maxsize=1024)
def _hash(file: Path, changed: int, size: int) -> str:
    return file_hash(file)


class _Bench:
    """The pictures, and the model with a file on it.

    Attributes:
        pictures: index among all that could be measured (it is the key of their noise), and the picture.
        of: how many could be measured.
        held_out: whether they were kept aside.
        problems: what could not be used.
        key: everything that losses depend on, but file and weight.
    """

    def __init__(self, host: Host, session: Session, config: TrainConfig, most: int, fingerprint: str) -> None:
        self.problems: list[tuple[str, LoraTrainError]] = []
        self._session = session
        self._model = session.model
        self._latents = LatentCache(host.folders.cache / "latents", self._model.vae_key, self._model.info.family.latent)
        candidates = self._candidates(config, fingerprint)
        self.of = len(candidates)
        self.pictures = _choose(candidates, most, config.training.seed)
        precision = resolve_precision(config.training.precision, self._model.device, self._model.unet.dtype)
        self._denoiser = Denoiser(self._model, self._encode, precision)
        self._strata = self._denoiser.strata(config.validation.timesteps)
        contents = [(index, item.key, item.caption, item.fit) for index, item in self.pictures]
        self._area = _AREA.get(self._model.device.type, _AREA["cuda"])
        self.key = (_identity(self._model), precision, self._strata, self._area, contents)
        self._known: dict[str, Conditioning] = {}
        self._file: Path | None = None
        self._shapes: object = None
        self._adapters: Adapters | None = None

    def _candidates(self, config: TrainConfig, fingerprint: str) -> list[Item]:
        """The pictures kept aside, or all when there are none."""
        dataset = self._readable(scan(config.data))
        _, kept = held_out(dataset.items, config.validation.share, config.training.seed)
        self.held_out = bool(kept)
        if kept and fingerprint and dataset_fingerprint(dataset) != fingerprint:
            self.held_out = False
            self.problems.append(("", InputError(
                "The pictures or captions have changed since the run began, so nobody can tell which of them it kept "
                "aside; put them back to measure over-fitting."
            )))  # fmt: skip
        return kept if self.held_out else dataset.items

    def _readable(self, dataset: Dataset) -> Dataset:
        """The data set as the run had it: pictures that cannot be decoded were left out before the split."""
        wanted = self._latents.missing(dataset.items, flip=False)
        return encode_each(dataset, wanted, self._latents, self._model.encode, self._session.turn)

    def put(self, file: Path | None, weight: float) -> None:
        """Put a file's weights on the model; raises :class:`_Unusable` when it does not fit."""
        try:
            with self._session.turn():
                if file is not None and file != self._file:
                    self._load(file)
                if self._adapters is not None:
                    self._adapters.set_multiplier(weight)
        except InputError as error:
            self.clear()
            raise _Unusable(error) from error
        self._known.clear()

    def _load(self, file: Path) -> None:
        """Copy the weights into the adapters that are there, or make others if the modules or ranks are others."""
        tensors = read_lora(file)
        shapes = file_shapes(tensors)
        if self._adapters is None or shapes != self._shapes:
            self.clear()
            self._adapters = adapters_for(self._model.parts, tensors)
            self._shapes = shapes
        else:
            self._adapters.copy_from(tensors)
        self._file = file

    def clear(self) -> None:
        """Take the adapters off the model."""
        remove_adapters(*self._model.parts.values())
        self._adapters = self._file = self._shapes = None
        self._known.clear()

    def losses(self) -> list[float]:
        """The pictures' losses with the model as it is now, measured in short turns."""
        self._model.evaluate()
        found: list[list[float]] = [[] for _ in self.pictures]
        place = 0
        while place < len(found):
            with self._session.turn():
                ends = time.monotonic() + SLICE
                while place < len(found):
                    self._measure_some(place, found[place])
                    place += len(found[place]) == len(self._strata)
                    if time.monotonic() >= ends or self._session.wanted():
                        break
        return [statistics.fmean(losses) for losses in found]

    def _measure_some(self, place: int, losses: list[float]) -> None:
        """The next noise levels of a picture; how many at once its size alone says.

        A number is not the same to the last digit in another batch, so neither the clock nor what was measured before
        may have a say in it: a measuring that was stopped and one that was not must find the same.
        """
        index, item = self.pictures[place]
        latent = self._latents[item.path, False]
        together = max(1, self._area // (latent.shape[-1] * latent.shape[-2]))
        levels = self._strata[len(losses) : len(losses) + together]
        losses += self._denoiser.fixed_losses(index, latent, item.caption, levels).tolist()

    def _encode(self, captions: Sequence[str]) -> Conditioning:
        """Of captions that are all the same; encoded once as long as the weights stay."""
        caption = captions[0]
        if caption not in self._known:
            self._known[caption] = self._model.text([caption])
        return self._known[caption].repeated(len(captions))


def _choose(items: Sequence[Item], most: int, seed: int) -> list[tuple[int, Item]]:
    """At most so many of the items with their places, the same ones each time."""
    places: Sequence[int] = range(len(items))
    if len(items) > most:
        places = sorted(python_rng(seed, "measured pictures").sample(places, most))
    return [(place, items[place]) for place in places]


def _identity(model: LoadedModel) -> tuple[object, ...]:
    """What tells checkpoints apart."""
    info = model.info
    return (info.name, info.key, info.prediction, model.vae_key, model.clip_skip)
