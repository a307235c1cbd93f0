"""Peak memory of a training step by arithmetic: the real step on tensors that have shapes, but no memory.

torch's fake tensors carry shape, type and strides through every operation, forward and backward, so the trainer's own
step runs in seconds on a model of any size, and whatever is changed in the step changes the figure by itself. The
stand-in computes on the CPU, whatever the model does: there, too, attention takes a fused kernel that keeps no matrix
of (positions × positions), as on a card.

What is not in the figure: a kernel's inner workspace (cuBLAS and cuDNN take some ten MB), blocks that the allocator
hands out too large, and holes between blocks. A card needs that on top.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.text import TextEncoders

BLOCK = 512
"""Bytes; CUDA's caching allocator hands out multiples (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""
_DEVICE = torch.ops.prim.device.default
_NUMBER = torch.ops.aten._local_scalar_dense.default
_FROM_DATA = torch.ops.aten.lift_fresh.default
"""``torch.tensor([…])``, of which nothing else is dispatched."""
PLAIN_OPTIMIZER: dict[str, dict[str, Any]] = {
    "AdamW8bit": {"training.optimizer": "AdamW", "training.optimizer_args": {}}
}
"""Settings to compute with in place of an optimizer whose library works on addresses, which fake tensors have none of.
AdamW has 8 bytes of state a parameter, its 8-bit kind 2: for rank 16 on SD1.5 that is 38 MB too much."""
_EXCHANGED = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a step, beyond the loaded weights, by when they were allocated.

    Attributes:
        adapters: with the trainer.
        optimizer: in the optimizer: its state.
        gradients: of the adapters.
        forward: in forward, for backward: activations.
        backward: in backward: gradients of activations, and what checkpointing computes anew.
    """

    adapters: int = 0
    optimizer: int = 0
    gradients: int = 0
    forward: int = 0
    backward: int = 0

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


class _Fake(FakeTensorMode):
    """torch's mode, in which modules can be moved: ``Module.to`` refuses tensors that its memo has references to.

    The memo is for tensors from outside that come more than once, which there are none of.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out one operation and forget it; numbers that depend on contents are 1."""
        if func is _DEVICE:  # asked for about as often as all else together
            return args[0].fake_device
        if func is _NUMBER:
            return 1.0 if args[0].dtype.is_floating_point else 1
        kwargs = dict(kwargs or {})
        if "generator" in kwargs:  # it draws nothing, and some versions of torch refuse it
            kwargs["generator"] = None
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.fake_tensor_converter.meta_converter.tensor_memo.clear()
        return result


class Tracker(TorchDispatchMode):
    """Sums up the storages that are made while it is entered, as long as they live.

    Python's own weak references to storages crash torch 2.1, so torch's are asked; but only when the sum of those that
    lived when they were last asked would be a new peak.

    Attributes:
        kind: field of :class:`Footprint` that storages made now belong to; backward is noticed without being told.
        peak: the largest sum since :meth:`reset`, by kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = "forward"
        self._storages: dict[int, tuple[StorageWeakRef, str, int]] = {}
        self._live: Counter[str] = Counter()
        self._total = 0
        self.reset()

    def reset(self) -> None:
        """Forget the peak."""
        self._sweep()
        self._highest, self.peak = self._total, dict(self._live)

    def move(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage as another kind from now on."""
        number = tensor.untyped_storage()._cdata
        if number in self._storages:
            reference, before, size = self._storages[number]
            self._storages[number] = (reference, kind, size)
            self._live[before] -= size
            self._live[kind] += size

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out one operation and count what it has allocated."""
        result = func(*args, **(kwargs or {}))
        if func is _DEVICE:
            return result
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            known = storage._cdata in self._storages  # its number is not given to another one while we refer to it
            if not known and (func is _FROM_DATA or not _is_of(storage, (args, kwargs))):
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        kind = "backward" if torch._C._current_graph_task_id() != -1 else self.kind
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[storage._cdata] = (StorageWeakRef(storage), kind, size)
        self._live[kind] += size
        self._total += size
        if self._total > self._highest:
            self._sweep()
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self._live)

    def _sweep(self) -> None:
        """Take out what lives no more."""
        expired = torch.UntypedStorage._expired
        for number in [number for number, (alive, _, _) in self._storages.items() if expired(alive.cdata)]:
            _, kind, size = self._storages.pop(number)
            self._live[kind] -= size
            self._total -= size


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    return (value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor))


def _is_of(storage: torch.UntypedStorage, arguments: Any) -> bool:
    """Whether an operation was given this storage: a view or itself."""
    return any(tensor.untyped_storage()._cdata == storage._cdata for tensor in _tensors(arguments))


def track(make: Callable[[], Any], step: Callable[[Any], object]) -> Footprint:
    """Peak of one of a trainer's steps, its optimizer having its state.

    Args:
        make: makes the trainer (with ``parameters`` and ``optimizer``).
        step: does one of its steps.
    """
    tracker = Tracker()
    with tracker:
        tracker.kind = "adapters"
        trainer = make()
        tracker.kind = "optimizer"
        _make_state(trainer)
        tracker.kind = "forward"
        hooks = _hooks(tracker, trainer)
        try:
            tracker.reset()
            step(trainer)
        finally:
            for hook in hooks:
                hook.remove()
    return Footprint(**tracker.peak)


def _make_state(trainer: Any) -> None:
    """Let the optimizer make its state, as the first step does; from the second on it is there all the time."""
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)


def _hooks(tracker: Tracker, trainer: Any) -> list[Any]:
    """Tell the tracker when the optimizer works, and which storages are the parameters' gradients."""

    def works(*_: object) -> None:
        tracker.kind = "optimizer"

    def worked(*_: object) -> None:
        tracker.kind = "forward"

    def accumulated(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            tracker.move(parameter.grad, "gradients")

    optimizer = trainer.optimizer
    hooks = [optimizer.register_step_pre_hook(works), optimizer.register_step_post_hook(worked)]
    return hooks + [p.register_post_accumulate_grad_hook(accumulated) for p in trainer.parameters]


def expected(
    model: LoadedModel,
    precision: str,
    make: Callable[[LoadedModel, str], Any],
    step: Callable[[Any], object],
) -> Footprint:
    """Peak of a training step on a model, by arithmetic; nothing is allocated, and the model is only looked at.

    Args:
        model: the loaded checkpoint; its weights may be anywhere, also on the meta device.
        precision: fp16, bf16 or fp32. For fp16 bf16 stands in, which has the same sizes and is known to every CPU.
        make: makes the trainer on the stand-in that it is given, in the precision that it is given.
        step: does one of its steps.
    """
    exchanged = precision == "fp16"
    with fake_tensors():
        fake = _stand_in(model, _EXCHANGED if exchanged else {})
        return track(lambda: make(fake, "bf16" if exchanged else precision), step)


def fake_tensors() -> AbstractContextManager[object]:
    """Within, every new tensor has a shape, but no memory."""
    return _Fake()


def fake_copy(part: nn.Module, types: Mapping[torch.dtype, torch.dtype]) -> Any:
    """A module with fake tensors in place of its own; call it in :func:`fake_tensors`.

    Args:
        part: what to look at; its tensors may be anywhere.
        types: types to put in place of others.
    """
    tensors = [*part.parameters(), *part.buffers()]
    return copy.deepcopy(part, {id(tensor): _fake(tensor, types) for tensor in tensors})


def _fake(tensor: torch.Tensor, types: Mapping[torch.dtype, torch.dtype]) -> torch.Tensor:
    dtype = types.get(tensor.dtype, tensor.dtype)
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cpu")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _stand_in(model: LoadedModel, types: Mapping[torch.dtype, torch.dtype]) -> LoadedModel:
    return replace(
        model,
        unet=fake_copy(model.unet, types),
        text=TextEncoders(encoder.on(fake_copy(encoder.model, types)) for encoder in model.text),
        alphas_cumprod=_fake(model.alphas_cumprod, {}),
        device=torch.device("cpu"),
    )
