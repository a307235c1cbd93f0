"""What autograd keeps for backward, searched for copies of frozen weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Found:
    """How many tensors were kept, and the weights that some of them are copies of."""

    seen: int = 0
    copies: list[str] = field(default_factory=list)


@contextmanager
def copies_of_weights(parts: Sequence[nn.Module]) -> Iterator[Found]:
    """Look at every tensor that autograd keeps within.

    A copy is a tensor in other memory that has the values of a frozen weight, also when they were cast or transposed.
    """
    frozen = [(n, p) for part in parts for n, p in part.named_parameters() if not p.requires_grad and p.numel() > 1]
    by_size: dict[int, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, parameter in frozen:
        by_size[parameter.numel()].append((name, parameter))
    own = {parameter.untyped_storage().data_ptr() for _, parameter in frozen}
    found = Found()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.seen += 1
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
            found.copies += [name for name, weight in by_size[tensor.numel()] if _is_copy(tensor.detach(), weight)]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _is_copy(tensor: torch.Tensor, weight: torch.Tensor) -> bool:
    wanted = weight.detach().to(tensor.dtype).flatten()
    if torch.equal(tensor.flatten(), wanted):
        return True
    return tensor.ndim == 2 and torch.equal(tensor.t().flatten(), wanted)
