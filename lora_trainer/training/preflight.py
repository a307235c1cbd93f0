"""What a run will take: real steps at its largest shapes, on the loaded model, with nothing kept.

First by arithmetic (:mod:`lora_trainer.training.footprint`), so that what is far too much is not even tried; then
measured.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lora_trainer.config.train import TrainConfig, require_warmup
from lora_trainer.core.errors import LoraTrainError
from lora_trainer.dataset.plan import Plan, Step, held_out
from lora_trainer.dataset.scan import Dataset, Item
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import Encode, frozen_conditioning
from lora_trainer.hosts.base import ModelHost, ModelRequest, Session
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.memory import free_memory
from lora_trainer.model.precision import resolve_precision
from lora_trainer.training import footprint
from lora_trainer.training.trainer import StepOutOfMemory, Trainer

log = logging.getLogger(__name__)
STEPS = 3
"""Measured steps; the first makes the optimizer's state and warms up, the fastest of the others counts."""
SHARE = 0.95
"""Of the free memory that a run may take."""
FAR_BEYOND = 1.1
"""Times the free memory; a way that is expected to need more is not tried. What is counted is the least: a card takes
workspaces and holes on top, and a CPU took 1.6 times as much (SD1.5, 256², fp32). The tenth is for kernels that keep
less than those of the stand-in, and for memory that other programs give back meanwhile."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        device: where it is computed.
        steps: how many.
        step_seconds: of a usual step; ``None`` when not even one fits.
        seconds: of all steps, without samples, validation and files; ``None`` likewise.
        needed: bytes at the peak, beyond the loaded checkpoint, measured, on a CPU no less than expected; ``None`` when
            it was not tried, since what is expected is far beyond what is free.
        free: bytes that can be had now.
        changes: settings by dotted key that have to change so that it fits; empty when it does as asked.
        fits: whether it fits, with these changes.
        expected: the needed bytes by arithmetic, before anything is tried; ``None`` when that was not possible.
    """

    device: str
    steps: int
    step_seconds: float | None
    seconds: float | None
    needed: int | None
    free: int
    changes: dict[str, Any] = field(default_factory=dict)
    fits: bool = True
    expected: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(config: TrainConfig, dataset: Dataset, host: ModelHost) -> Estimate:
    """Try the settings, and when they do not fit, those that need less.

    Raises:
        InputError: the warm-up is longer than the run, or what the host and the trainer refuse.
    """
    items, _ = held_out(dataset.items, config.validation.share, config.training.seed)
    require_warmup(config, Plan(items, config).total_steps)
    found = None
    for changes in _ways(config):
        found = _try(config.with_values(changes), items, host, changes)
        if found.fits:
            return found
    assert found is not None  # the first way is the settings as they are
    return found


def _ways(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """The settings as they are, then with less and less memory and the same effective batch."""
    yield {}
    changes: dict[str, Any] = {}
    if config.training.batch_size > 1:
        effective = config.training.batch_size * config.training.accumulate
        changes = {"training.batch_size": 1, "training.accumulate": effective}
        yield changes
    if not config.training.checkpointing:
        changes = {**changes, "training.checkpointing": True}
        yield changes
    if config.training.text_lr and config.training.unet_lr:
        yield {**changes, "training.text_lr": 0.0}


def _try(config: TrainConfig, items: Sequence[Item], host: ModelHost, changes: dict[str, Any]) -> Estimate:
    plan = Plan(items, config)
    step, share = _largest(plan, items)
    with host.session(ModelRequest.of(config)) as session:
        expected = _expected(config, items, plan, step, session.model)
        memory = _Memory(session.model.device, expected or 0)
        tries = expected is None or not _is_far_beyond(expected, memory)
        usual = None
        if tries:
            with contextlib.suppress(StepOutOfMemory), memory.watched():
                usual = _steps(config, items, plan, step, session) / share
    free_memory()
    return Estimate(
        str(memory.device),
        plan.total_steps,
        usual,
        usual and usual * plan.total_steps,
        memory.needed if tries else None,
        memory.free,
        changes,
        fits=usual is not None and memory.needed <= SHARE * memory.free,
        expected=expected,
    )


def _is_far_beyond(expected: int, memory: _Memory) -> bool:
    return expected > FAR_BEYOND * memory.free


def _expected(config: TrainConfig, items: Sequence[Item], plan: Plan, step: Step, model: LoadedModel) -> int | None:
    """Bytes that a step needs, by arithmetic; ``None`` when this torch cannot do it, which is no reason to stop."""
    config = config.with_values(footprint.PLAIN_OPTIMIZER.get(config.training.optimizer, {}))
    precision = resolve_precision(config.training.precision, model.device, model.unet.dtype)
    try:
        found = footprint.expected(
            model,
            precision,
            lambda stand_in, its_precision: trainer_on_noise(config, items, plan, stand_in, its_precision),
            lambda trainer: trainer.step(step),
        )
    except LoraTrainError:
        raise
    except Exception as error:  # noqa: BLE001
        log.warning(
            "The memory of a step cannot be computed here (%s: %s); it is measured.", type(error).__name__, error
        )
        return None
    return found.peak


def _largest(plan: Plan, items: Sequence[Item]) -> tuple[Step, float]:
    """A step of the batch that needs the most memory, and how many times the work of a usual step that is."""

    def work(batch: Sequence[Any]) -> int:
        width, height = items[batch[0].item].fit.bucket
        return width * height * len(batch)

    steps = [plan.step(number) for number in range(1, min(plan.steps_per_epoch, plan.total_steps) + 1)]
    batches = list(chain.from_iterable(step.batches for step in steps))
    largest = max(batches, key=work)
    usual = sum(map(work, batches)) / len(steps)
    return Step(1, 1, (largest,), ends_epoch=False), work(largest) / usual


def _steps(config: TrainConfig, items: Sequence[Item], plan: Plan, step: Step, session: Session) -> float:
    """Seconds of one step; the adapters are gone with the session's view."""
    model = session.model
    precision = resolve_precision(config.training.precision, model.device, model.unet.dtype)
    with session.turn():
        size = items[step.batches[0][0].item].fit.bucket
        model.encode(torch.zeros(1, 3, size[1], size[0]))
        trainer = trainer_on_noise(config, items, plan, model, precision)
    seconds = []
    for _ in range(STEPS):
        with session.turn():
            began = time.monotonic()
            float(trainer.step(step))  # waits for the device
            seconds.append(time.monotonic() - began)
    return min(seconds[1:])


def trainer_on_noise(
    config: TrainConfig, items: Sequence[Item], plan: Plan, model: LoadedModel, precision: str
) -> Trainer:
    """A run's trainer, with noise in place of its pictures' latents."""
    captions = Captions(items, config.data, config.training.seed, config.data.caption_variants)
    encode: Encode = model.text
    if not config.training.text_lr:
        encode = frozen_conditioning(model.text, model.device, precision)
    return Trainer(config, model, items, plan, _Noise(items, model), captions, encode, precision)


class _Noise:
    """Stands in for the latents, which need not be encoded to know what a step takes."""

    def __init__(self, items: Sequence[Item], model: LoadedModel) -> None:
        self._shapes = {item.path: model.info.family.latent.shape(*item.fit.bucket) for item in items}

    def __getitem__(self, key: tuple[Path, bool]) -> torch.Tensor:
        return torch.randn(self._shapes[key[0]], generator=torch.Generator().manual_seed(0))


class _Memory:
    """Bytes that are taken at the peak, and that could be had before.

    A card counts what is allocated. Of a CPU only the growth of the process is seen, and that is less where the process
    takes again what it had given back to its own store: there the arithmetic is the least.
    """

    def __init__(self, device: torch.device, least: int) -> None:
        self.device = device
        self.needed = 0 if device.type == "cuda" else least
        free_memory()
        self.free = self._free()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure what happens within."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            try:
                yield
            finally:
                self.needed = torch.cuda.max_memory_allocated(self.device) - before
            return
        ended = threading.Event()
        before = _resident()
        watcher = threading.Thread(target=self._watch, args=(before, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _watch(self, before: int, ended: threading.Event) -> None:
        while not ended.wait(0.005):
            self.needed = max(self.needed, _resident() - before)

    def _free(self) -> int:
        if self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + cached
        import psutil

        return psutil.virtual_memory().available


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss
