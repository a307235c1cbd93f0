"""Trainers on the checkpoint, which is loaded once, and the stopwatch that a card needs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting
from lora_trainer.dataset.plan import Plan
from lora_trainer.dataset.scan import scan
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.conditioning import Conditioning
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.memory import free_memory
from lora_trainer.model.precision import resolve_precision
from lora_trainer.training.trainer import Trainer

GB = 1e9
WARM_UP = 3
"""Steps before any is counted: the optimizer's state is made, libraries choose their kernels."""


class Bench:
    """The common work on a host of its own.

    Args:
        setting: of the sitting.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config = setting.config({})
        self.host = StandaloneHost(setting.place / "host")
        self.device = self.model().device

    def model(self) -> LoadedModel:
        """A fresh view of the loaded weights."""
        with self.host.session(ModelRequest.of(self.config)) as session:
            return session.model

    def trainer(self, precision: str, values: Mapping[str, Any]) -> tuple[Trainer, Plan]:
        """A trainer on random latents and text states, and its plan.

        Args:
            precision: of the run.
            values: what differs from the common work, by dotted key.

        Raises:
            InputError: the device or the weights cannot do that precision.
        """
        config, model = self.config.with_values({"training.precision": precision, **values}), self.model()
        precision = resolve_precision(precision, model.device, model.unet.dtype)
        items = scan(config.data).items
        plan, captions = Plan(items, config), Captions(items, config.data, 1, 1)
        latents, states = RandomLatents(self.setting.side), random_states(model)

        def conditioning(captions: Sequence[str]) -> Conditioning:
            return Conditioning(states).repeated(len(captions))

        return Trainer(config, model, items, plan, latents, captions, conditioning, precision), plan


class RandomLatents:
    """Stands in for encoded pictures: the same random latent for the same picture."""

    def __init__(self, side: int) -> None:
        self._side = side // 8
        self._made: dict[Path, torch.Tensor] = {}

    def __getitem__(self, key: tuple[Path, bool]) -> torch.Tensor:
        """(4, H/8, W/8), fp32, on the CPU."""
        if key[0] not in self._made:
            generator = torch.Generator().manual_seed(len(self._made))
            self._made[key[0]] = torch.randn(4, self._side, self._side, generator=generator)
        return self._made[key[0]]


def random_states(model: LoadedModel) -> torch.Tensor:
    """Text states of one caption, (1, 77, C), fp32, where steps are computed."""
    width = model.unet.config["cross_attention_dim"]
    return torch.randn(1, 77, width, generator=torch.Generator().manual_seed(0)).to(model.device)


# ------------------------------------------------------------------ time
def time_calls(device: torch.device, calls: Iterable[Callable[[], object]]) -> list[float]:
    """Seconds of each call: by events on a card, without waiting for it in between; by the clock on a CPU."""
    if device.type != "cuda":
        return [_clocked(call) for call in calls]
    marks = [_event()]
    for call in calls:
        call()
        marks.append(_event())
    torch.cuda.synchronize(device)
    return [earlier.elapsed_time(later) / 1000 for earlier, later in itertools.pairwise(marks)]


def _clocked(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def steps_of(trainer: Trainer, plan: Plan, first: int, count: int) -> Iterator[Callable[[], object]]:
    """The calls of so many steps."""
    for number in range(first, first + count):
        yield lambda number=number: trainer.step(plan.step(number))  # type: ignore[misc]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and number."""
    return {
        "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "count": len(seconds),
    }  # fmt: skip


# ------------------------------------------------------------------ memory
@contextmanager
def peak(device: torch.device) -> Iterator[dict[str, Any]]:
    """Within, watch a card's memory; afterwards ``bytes`` tells how far the peak was above what was taken before."""
    found: dict[str, Any] = {"bytes": NOT_ON_A_CPU}
    if device.type != "cuda":
        yield found
        return
    free_memory()  # else what is left of the trainer before counts as taken
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    torch.cuda.synchronize(device)
    found["bytes"] = torch.cuda.max_memory_allocated(device) - before


def in_gb(size: int | str) -> str:
    """Bytes as a person reads them; what is no number stays."""
    return size if isinstance(size, str) else f"{size / GB:.3f} GB"
