"""Whether a step keeps copies of frozen weights for its backward, and what that would cost."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, in_gb, peak
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.speed import TYPES
from lora_trainer.core.errors import InputError

_HEAD = 8
"""So many first values of a tensor say where it is worth comparing all of them."""


def check(setting: Setting, notes: Notes) -> None:
    """Every mix of the weights' type and the run's; a change of the weights stays, so the loaded type comes first."""
    bench = Bench(setting)
    loaded = bench.model().unet.dtype
    for weights in sorted(TYPES.values(), key=lambda dtype: dtype != loaded):
        for precision in TYPES:
            name = str(weights).removeprefix("torch.")
            notes.part(f"{name} in {precision}", partial(mix, bench, weights, precision))


def mix(bench: Bench, weights: torch.dtype, precision: str) -> dict[str, Any]:
    """Saved copies of one mix and its peak memory, or the sentence that refuses it."""
    frozen = list(bench.model().unet.to(weights).parameters())  # shared by every view
    with peak(bench.device) as memory:
        try:
            trainer, plan = bench.trainer(precision, {})
        except InputError as refusal:
            return {"refused": str(refusal), "says": f"refused: {refusal}"}
        trainer.step(plan.step(1))
    copies = Copies(frozen)
    with torch.autograd.graph.saved_tensors_hooks(copies.pack, lambda tensor: tensor):
        trainer.step(plan.step(2))
    return {
        "saved": copies.saved,
        "copies": copies.count,
        "bytes": copies.bytes,
        "of_bytes": sum(p.numel() * p.element_size() for p in frozen),
        "peak": memory["bytes"],
        "says": f"{copies.saved} saved tensors, {copies.count} copies of weights ({in_gb(copies.bytes)}), "
        f"peak {in_gb(memory['bytes'])}",
        "holds": {"no saved tensor is a copy of a frozen weight": copies.count == 0},
    }


class Copies:
    """Counts saved tensors with the values of a frozen weight, as it is or transposed, in memory of their own.

    Args:
        frozen: the weights.
    """

    def __init__(self, frozen: Iterable[torch.Tensor]) -> None:
        self.saved = self.count = self.bytes = 0
        self._frozen = [each.detach() for each in frozen]
        self._storages = {each.untyped_storage().data_ptr() for each in self._frozen}
        self._heads: dict[torch.dtype, dict[tuple[Any, ...], torch.Tensor]] = {}
        self._shapes = {
            shape for each in self._frozen for shape in (each.shape, each.mT.shape if _flat(each) else None)
        }

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """A hook of autograd; keeps the tensor as it is."""
        self.saved += 1
        if tensor.shape in self._shapes and tensor.untyped_storage().data_ptr() not in self._storages:
            self._look(tensor.detach())
        return tensor

    def _look(self, tensor: torch.Tensor) -> None:
        weight = self._known(tensor.dtype).get(_head(tensor))
        if weight is not None and torch.equal(weight.to(tensor.dtype), tensor):
            self.count += 1
            self.bytes += tensor.numel() * tensor.element_size()

    def _known(self, dtype: torch.dtype) -> dict[tuple[Any, ...], torch.Tensor]:
        """The weights, as they are and transposed, by shape and first values in a type."""
        if dtype not in self._heads:
            ways = [way for each in self._frozen for way in ((each, each.mT) if _flat(each) else (each,))]
            self._heads[dtype] = {_head(way, dtype): way for way in ways}
        return self._heads[dtype]


def _flat(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2


def _head(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    values = tensor[(0,) * (tensor.ndim - 1)][:_HEAD] if tensor.ndim else tensor[None]
    return (tensor.shape, *values.to(dtype or tensor.dtype).tolist())
