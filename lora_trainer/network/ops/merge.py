"""Several LoRAs in one: exactly by standing side by side, or at a chosen rank by singular values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.core.messages import Message
from lora_trainer.model.block_lists import Architecture
from lora_trainer.network.blocks.block_map import architecture_of, ldm_name
from lora_trainer.network.blocks.stack import sum_notices
from lora_trainer.network.modules import EMBEDDING, embeddings, group
from lora_trainer.network.ops.provenance import in_precision, widest_precision
from lora_trainer.network.types import LORA, lowrank, type_of
from lora_trainer.network.types.lora import lora_parts
from lora_trainer.network.types.lowrank import Factors

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Source:
    """One LoRA of a merge.

    Attributes:
        name: for sentences.
        tensors: of the file.
        weight: its weight, for the sum.
        ratios: module name → factor (with the weight in it); where it lacks a name, ``weight``.
        metadata: of the file, which may say for what it was trained.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    weight: float
    ratios: Mapping[str, float] | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def architecture(self) -> Architecture:
        """What it is for. Raises :class:`InputError` for none of Stable Diffusion's."""
        return architecture_of(group(self.tensors), self.metadata)

    def ratio(self, key: str) -> float:
        """A module's factor."""
        return self.weight if self.ratios is None else self.ratios.get(key, self.weight)


@dataclass(frozen=True)
class Merged:
    """The result of a merge or resize.

    Attributes:
        modules: name → part → tensor in the stored precision.
        error: ‖stored − exact‖ / ‖exact‖ over all modules (Frobenius), rounding of the precision included.
        notices: remarks.
        embeddings: that came with the files, as they were.
    """

    modules: dict[str, dict[str, torch.Tensor]]
    error: float
    notices: tuple[Message, ...] = ()
    embeddings: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that the file shall have."""
        return {**self.modules, **self.embeddings}

    @property
    def ranks(self) -> list[int]:
        """The ranks of all modules."""
        return [parts["lora_down.weight"].shape[0] for parts in self.modules.values()]

    @property
    def alphas(self) -> list[float]:
        """The alphas of all modules."""
        return [float(parts["alpha"]) for parts in self.modules.values()]


def merge(
    sources: Sequence[Source],
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
    progress: Progress = lambda done, of: None,
) -> Merged:
    """The weighted sum of LoRAs.

    Args:
        sources: at least one; of types with :meth:`NetworkType.factors`, LoRA and LoCon, of one architecture.
        rank: of the result, by singular values; ``None`` puts the LoRAs side by side, which is exact and has the sum of
            their ranks.
        conv_rank: of 3×3 convolutions; ``rank`` by default.
        precision: ``fp16``, ``bf16`` or ``fp32``; by default that of the files.
        progress: called with modules done and in all.

    Raises:
        InputError: other network types, different architectures or layer sizes, or nothing is left.
    """
    architecture = _check(sources, rank, conv_rank)
    stored = precision or widest_precision(tensor for source in sources for tensor in source.tensors.values())
    members = _members(sources, architecture)
    made: dict[str, dict[str, torch.Tensor]] = {}
    errors = ErrorSum()
    for done, (key, found) in enumerate(members.items(), 1):
        terms, row = _terms(key, found)
        if terms:
            exact = (torch.cat([s * up for s, up, _ in terms], 1), torch.cat([down for _, _, down in terms]))
            parts = _side_by_side(terms, row) if rank is None else _truncated(exact, row, rank, conv_rank)
            made[key] = in_precision(parts, stored)
            errors.add(key, exact, made[key])
        progress(done, len(members))
    if not made:
        raise InputError("With these weights nothing is left to merge; give at least one LoRA a weight other than 0.")
    notices = sum_notices([source.weight for source in sources])
    return Merged(made, errors.relative, notices, embeddings(*(source.tensors for source in sources)))


class ErrorSum:
    """Adds up the difference of stored modules from the exact ones."""

    def __init__(self) -> None:
        self._wrong = self._whole = 0.0

    def add(self, key: str, exact: Factors, parts: Mapping[str, torch.Tensor]) -> None:
        """Count one module, as it is stored."""
        self._wrong += lowrank.difference(exact, LORA.factors(key, parts, finite=False)[0]) ** 2
        self._whole += lowrank.norm(*exact) ** 2

    @property
    def relative(self) -> float:
        """‖difference‖ / ‖exact‖."""
        return math.sqrt(self._wrong / self._whole) if self._whole else 0.0


Term = tuple[float, torch.Tensor, torch.Tensor]
"""A number, ``up`` as in the file, ``down``: the number · up @ down is what it adds."""


def _members(
    sources: Sequence[Source], architecture: Architecture
) -> dict[str, list[tuple[Source, str, Mapping[str, torch.Tensor]]]]:
    """Module → who has it; files that spell one module in two ways (diffusers', LDM's) meet."""
    spelled: dict[str, str] = {}
    members: dict[str, list[tuple[Source, str, Mapping[str, torch.Tensor]]]] = {}
    for source in sources:
        for key, parts in group(source.tensors).items():
            if key != EMBEDDING:
                members.setdefault(spelled.setdefault(ldm_name(key, architecture), key), []).append(
                    (source, key, parts)
                )
    return members


def _terms(
    key: str, found: Sequence[tuple[Source, str, Mapping[str, torch.Tensor]]]
) -> tuple[list[Term], tuple[int, ...]]:
    """What each source adds to one layer; the kernel's shape is the first's."""
    terms: list[Term] = []
    row: tuple[int, ...] = ()
    for source, own, parts in found:
        kind = type_of(own, parts)
        (up, down), shape = kind.factors(own, parts)
        if terms and (up.shape[0], down.shape[1]) != (terms[0][1].shape[0], terms[0][2].shape[1]):
            raise InputError(
                "{key} has another size in {name} than in the files before it; merge LoRAs of one architecture.",
                key=key,
                name=source.name,
            )
        scale = kind.scale(parts)
        if source.ratio(own) * scale:
            row = row or shape
            terms.append((source.ratio(own) * scale, up / scale, down))
    return terms, row


def _side_by_side(terms: Sequence[Term], row: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """[s₁U₁ | s₂U₂ …] over [D₁; D₂; …]. The largest |s| goes into alpha, so that its weights stay to the bit."""
    largest = max((scale for scale, _, _ in terms), key=abs)
    up = torch.cat([(scale / largest) * up for scale, up, _ in terms], dim=1)
    down = torch.cat([down for _, _, down in terms])
    return lora_parts((up, down), row, largest * down.shape[0])


def _truncated(exact: Factors, row: tuple[int, ...], rank: int, conv_rank: int | None) -> dict[str, torch.Tensor]:
    u, s, vh = lowrank.svd(*exact)
    kept = min(conv_rank or rank if row[1:] and row[1:] != (1, 1) else rank, len(s))
    return lora_parts(lowrank.balanced(u[:, :kept], s[:kept], vh[:kept]), row, kept)


def _check(sources: Sequence[Source], rank: int | None, conv_rank: int | None) -> Architecture:
    """See that numbers are in their range; returns the one architecture of all sources."""
    for asked in (rank, conv_rank):
        if asked is not None and asked < 1:
            raise InputError("A rank must be at least 1, not {rank}.", rank=asked)
    for source in sources:
        if not all(map(math.isfinite, (source.weight, *(source.ratios or {}).values()))):
            raise InputError("The weight of {name} is not a number; give one.", name=source.name)
    found: dict[Architecture, str] = {}
    for source in sources:
        found.setdefault(source.architecture, source.name)
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise InputError(
            "{one} is for {first} and {other} for {second}; only LoRAs of one architecture can be merged.",
            one=one,
            first=first.name,
            other=other,
            second=second.name,
        )
    return next(iter(found))
