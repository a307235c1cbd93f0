"""The stopwatch inside both programs: when steps end, what they hold in memory. Knows nothing of either.

It hangs on torch's own global hooks, so neither program is changed: the optimizer's ``step`` is the end of
a step, the first call of a UNet is the beginning of the first.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

STARTED = "LORA_TRAIN_BENCH_STARTED"
RESULT = "LORA_TRAIN_BENCH_RESULT"
_WATCHED = ("UNet2DConditionModel", "CLIPTextModel")
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


class Clock:
    """Collects the times of one run and the memory of this process.

    Attributes:
        marks: when what happened, in seconds of :func:`time.time`.
        steps: when each optimizer step ended.
        cpu: processor seconds of this process until then, all threads together.
        calls: seconds of each forward of UNet and text encoder.
        trained: number of trained parameters.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.steps: list[float] = []
        self.cpu: list[float] = []
        self.calls: dict[str, list[float]] = {name: [] for name in _WATCHED}
        self.trained = 0
        self.on_step: Callable[[int], object] = lambda count: None
        self._memory = _Memory()
        self._seen: set[str] = set()
        self._handle: Any = None
        register_optimizer_step_post_hook(self._step_ended)
        self.watch()

    def watch(self) -> None:
        """Wait for the first call of the UNet, of a new run."""
        self.marks.pop("first_step", None)
        self.steps = []
        self.cpu = []
        self.calls = {name: [] for name in _WATCHED}
        self._seen = set()
        if self._handle is None:
            self._handle = register_module_forward_pre_hook(self._called)

    def mark(self, name: str) -> None:
        """Note the time."""
        self.marks[name] = time.time()

    def result(self) -> dict[str, Any]:
        """All of it as plain values; times count from the start of the process."""
        start = float(os.environ[STARTED])
        return {
            "marks": {name: value - start for name, value in self.marks.items()},
            "steps": [value - start for value in self.steps],
            "cpu": list(self.cpu),
            "calls": self.calls,
            "trained": self.trained,
            "memory": self._memory.result(start),
        }

    def _step_ended(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.steps.append(time.time())
        self.cpu.append(time.process_time())
        self.trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        self.on_step(len(self.steps))

    def _called(self, module: torch.nn.Module, *_: object) -> None:
        name = type(module).__name__
        if name not in _WATCHED or name in self._seen:
            return
        self._seen.add(name)
        self._time(module, self.calls[name])
        if name == "UNet2DConditionModel":
            self.marks["first_step"] = time.time()
            self._handle.remove()
            self._handle = None

    @staticmethod
    def _time(module: torch.nn.Module, calls: list[float]) -> None:
        """Time the module's calls from the next one on."""
        began: list[float] = []

        def after(*_: object) -> None:
            if began:
                calls.append(time.time() - began.pop())

        module.register_forward_pre_hook(lambda *_: began.append(time.time()))
        module.register_forward_hook(after)


class _Memory:
    """Resident memory of this process, looked at 20 times a second."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def result(self, start: float) -> list[tuple[float, int]]:
        """(seconds since ``start``, bytes) of each look."""
        return [(when - start, size) for when, size in list(self._samples)]

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self._samples.append((time.time(), process.memory_info().rss))
            time.sleep(0.05)


def versions() -> dict[str, str]:
    """Of the packages that matter in this interpreter."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hand_in(runs: dict[str, Any]) -> None:
    """Give the result to the process that started this one."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    document = {
        "runs": runs,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_peak": peak,
    }
    Path(os.environ[RESULT]).write_text(json.dumps(document), encoding="utf-8")
