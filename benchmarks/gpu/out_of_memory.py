"""What happens when memory is full, and whether a run gives back what it took."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.gpu.bench import Bench, in_gb, peak
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting
from lora_trainer.jobs.service import Jobs

SAME_LOSS = 0.02
"""Relative difference of the mean loss; noise belongs to each picture's number, so only the kernels differ."""


def check(setting: Setting, notes: Notes) -> None:
    """A full card in two degrees, then what is left behind."""
    bench = Bench(setting)
    runs = Runs(bench)
    free = notes.part("without a limit", runs.run, "free", {})
    sizes = notes.part("what steps need", needs, bench)
    for name, changed in (("half", ("pictures are now computed",)), ("least", ("computed 1 at", "checkpointing"))):
        notes.part(f"limited: {name}", partial(limited, runs, name, changed, free, sizes))
    notes.part("memory given back", given_back, runs)
    notes.part("one run after another", many, Runs(Bench(Setting(setting.folder, cpu=True))), 2 if setting.cpu else 20)


class Runs:
    """Short runs of the common work at batch 4.

    Args:
        bench: gives host and device.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.jobs = Jobs(bench.host, on_change=self._changed)
        self._said: list[str] = []

    def run(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One run: its steps, their mean loss, pictures a step and what it said of its memory."""
        self._said = []
        steps = 2 if self.bench.setting.cpu else 4
        settings = {"name": name, "training.steps": steps, "training.batch_size": 4, **values}
        run = self.jobs.submit(self.bench.config.with_values(settings))
        self.jobs.wait(run)
        if run.state != "done":
            raise RuntimeError(f"The run ended as {run.state}: {run.manifest['message']}")
        losses = [entry["loss"] for entry in run.entries() if "loss" in entry]
        mean = sum(losses) / len(losses)
        return {
            "steps": len(losses),
            "loss": mean,
            "said": self._said,
            "says": f"{len(losses)} steps, mean loss {mean:.4f}",
        }

    def _changed(self, run: Any) -> None:
        message = run.manifest.get("message", "")
        if message and message not in self._said:
            self._said.append(message)


def needs(bench: Bench) -> dict[str, Any]:
    """Bytes that a step needs above the weights: of four pictures together, of two, of one, and of one checkpointed."""
    kinds = {"4": (4, False), "2": (2, False), "1": (1, False), "1 checkpointed": (1, True)}
    found: dict[str, Any] = {}
    for name, (batch, checkpointing) in kinds.items():
        found[name] = _need(bench, batch, checkpointing)
        gc.collect()
    return {"bytes": found, "says": ", ".join(f"{name}: {in_gb(size)}" for name, size in found.items())}


def _need(bench: Bench, batch: int, checkpointing: bool) -> int | str:
    if bench.device.type != "cuda":
        return NOT_ON_A_CPU
    with peak(bench.device) as memory:
        values = {"training.batch_size": batch, "training.checkpointing": checkpointing}
        trainer, plan = bench.trainer("auto", values)
        trainer.step(plan.step(1))
        trainer.step(plan.step(2))
    return memory["bytes"]


def limited(
    runs: Runs, name: str, changes: tuple[str, ...], free: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The same run with memory for two pictures together, or for one with checkpointing only."""
    device = runs.bench.device
    with _card_limited(device, name, sizes) if device.type == "cuda" else _injected(name):
        found = runs.run(name, {})
    off = abs(found["loss"] - free["loss"]) / free["loss"]
    kind = "" if device.type == "cuda" else " (an injected error: there is no card to fill)"
    return {
        **found,
        "loss_off": off,
        "says": f"{found['says']}, {off:.2%} away{kind}; said: {' '.join(found['said']) or 'nothing'}",
        "holds": {
            "every step was done": found["steps"] == free["steps"],
            f"the loss is that of the unlimited run within {SAME_LOSS:.0%}": off <= SAME_LOSS,
            "it says what it changed": all(change in " ".join(found["said"]) for change in changes),
        },
    }


@contextmanager
def _card_limited(device: torch.device, name: str, sizes: Mapping[str, Any]) -> Iterator[None]:
    """Only so much of the card's memory for this process that the next larger kind of step does not fit."""
    small, large = ("2", "4") if name == "half" else ("1 checkpointed", "1")
    gc.collect()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(device) + (sizes["bytes"][small] + sizes["bytes"][large]) / 2
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def _injected(name: str) -> Iterator[None]:
    """A UNet that runs out of memory in training with more pictures than fit."""

    def full(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ != "UNet2DConditionModel" or not module.training:
            return
        too_many = len(inputs[0]) > (2 if name == "half" else 1)
        if too_many or (name == "least" and not module.is_gradient_checkpointing):
            raise torch.cuda.OutOfMemoryError("injected")

    handle = register_module_forward_pre_hook(full)
    try:
        yield
    finally:
        handle.remove()


# ------------------------------------------------------------------ what is left behind
def _held(device: torch.device) -> dict[str, int | str]:
    """Bytes allocated on the card and reserved, after everything that is free was given back; resident ones besides."""
    import psutil

    gc.collect()
    resident = psutil.Process().memory_info().rss
    if device.type != "cuda":
        return {"allocated": NOT_ON_A_CPU, "reserved": NOT_ON_A_CPU, "resident": resident}
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "resident": resident,
    }


def given_back(runs: Runs) -> dict[str, Any]:
    """What is held before and after a run; one goes before, for what libraries keep from their first use on."""
    runs.run("before", {})
    before = _held(runs.bench.device)
    runs.run("after", {})
    after = _held(runs.bench.device)
    holds = _same_bytes([before["allocated"], after["allocated"]])
    reserved = f"reserved {in_gb(before['reserved'])} → {in_gb(after['reserved'])}"
    allocated = f"allocated {before['allocated']} → {after['allocated']} bytes"
    return {"before": before, "after": after, "says": f"{allocated}, {reserved}", "holds": holds}


def many(runs: Runs, count: int) -> dict[str, Any]:
    """The small checkpoint's runs in one process, and what is held after each; the first makes what is kept."""
    held: list[dict[str, int | str]] = []
    for number in range(1, count + 1):
        runs.run(f"run-{number}", {"training.steps": 2, "training.batch_size": 1})
        held.append(_held(runs.bench.device))
    grown = int(held[-1]["resident"]) - int(held[0]["resident"])
    allocated = [each["allocated"] for each in held]
    return {
        "held": held,
        "says": f"{count} runs; allocated after the first {allocated[0]}, after the last {allocated[-1]}; "
        f"the process grew by {grown / 1e6:.1f} MB",
        "holds": _same_bytes(allocated),
    }


def _same_bytes(sizes: list[int | str]) -> dict[str, bool]:
    """On a CPU nothing is promised: what the process holds there is not known to the byte."""
    if NOT_ON_A_CPU in sizes:
        return {}
    return {"allocated is the same to the byte": len(set(sizes)) == 1}
