"""``python -m benchmarks.operations``: how many operations a step dispatches, a figure that needs no graphics card.

Small batches on a card are bound by launches, not by arithmetic, so what is counted here is what a card has to start:
every operation that reaches a kernel. Views, which start nothing, are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import report
from benchmarks.material import Material, prepare
from benchmarks.step_profile import trainer_on

_NO_KERNEL = ("_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "alias")
GROUPS: dict[str, tuple[str, ...]] = {
    "casts": ("_to_copy", "_foreach_copy_"),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "convolutions": ("convolution", "convolution_backward", "mkldnn_linear"),
    "attention": ("_scaled_dot_product", "_softmax"),
    "norms": ("native_group_norm", "native_layer_norm"),
}
"""Kinds of operations by the beginning of their names; what the optimizer does is counted apart."""
MIXES = {
    "fp32": (torch.float32, "fp32"),
    "bf16": (torch.bfloat16, "bf16"),
    "bf16 on fp32": (torch.float32, "bf16"),
}
"""Type of the checkpoint's weights and precision of the run, as people have them."""
SIDE = 64
"""Of the pictures; the count hardly depends on it."""


class Counted(TorchDispatchMode):
    """Counts operations by name while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and carry it out."""
        name = func._schema.name.partition("::")[2]
        if not _is_view(func) and name not in _NO_KERNEL:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether an operation returns its argument's own memory unchanged."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def count_step(trainer: Any, step: Any) -> dict[str, Any]:
    """Operations of one step: ``total``, those in each group of :data:`GROUPS`, ``optimizer``, and all ``names``.

    Args:
        trainer: whose optimizer has its state already, so that making it is not counted.
        step: of its plan.
    """
    everything, optimizer = Counted(), Counted()
    apply = trainer._apply

    def counted_apply() -> None:
        with optimizer:
            apply()

    trainer._apply = counted_apply
    try:
        with everything:
            float(trainer.step(step))
    finally:
        del trainer._apply
    names = everything.names - optimizer.names
    return {
        "total": sum(everything.names.values()),
        "optimizer": sum(optimizer.names.values()),
        **grouped(names),
        "names": dict(everything.names.most_common()),
    }


def grouped(names: Mapping[str, int]) -> dict[str, int]:
    """Number of operations in each group, and of all ``others``."""
    found = {group: sum(n for name, n in names.items() if name.startswith(starts)) for group, starts in GROUPS.items()}
    return {**found, "others": sum(names.values()) - sum(found.values())}


def table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a kind, one column a count."""
    kinds = [kind for kind in next(iter(counts.values())) if kind != "names"]
    lines = [f"{'operations of a step':24}" + "".join(f"{name:>18}" for name in counts)]
    lines += [f"{kind:24}" + "".join(f"{count[kind]:>18,}" for count in counts.values()) for kind in kinds]
    return "\n".join(lines)


def measure(material: Material, side: int = SIDE) -> dict[str, Any]:
    """Count a step of batch 1 for each of :data:`MIXES`, on the full-size model."""
    counts = {}
    for name, (weights, precision) in MIXES.items():
        trainer, plan = trainer_on(material, side, precision, weights)
        trainer.step(plan.step(1))
        counts[name] = count_step(trainer, plan.step(2))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    args = parser.parse_args()
    counts = measure(prepare(SIDE))
    print(table(counts))
    if args.save:
        print(report.save("operations", {**report.machine(), "torch": torch.__version__, "counts": counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
