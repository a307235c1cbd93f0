"""The modules of a LoRA or LyCORIS file: which kind each is, and what its tensors mean.

Kinds and formulas are those of the WebUI's built-in Lora extension (v1.10.1, ``network_*.py``), which is where the
files are used: ΔW = scale · f(tensors) with scale = alpha / dim, or 1 where a kind has no dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network.lora_file import is_finite
from lora_trainer.network.lowrank import Factors, norm

Parts = Mapping[str, torch.Tensor]
Tensors = Mapping[str, torch.Tensor]

LORA, LOHA, LOKR, GLORA, IA3, FULL, NORM, OFT = "LoRA", "LoHa", "LoKr", "GLoRA", "IA3", "Full", "Norm", "OFT"
EMBEDDING = "bundle_emb"
_LARGEST = 1e150
"""Norms beyond it cannot be squared, and mean nothing."""

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (LORA, ("lora_up.weight", "lora_down.weight")),
    (LOHA, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    (LOKR, ("lokr_w1", "lokr_w2")),
    (LOKR, ("lokr_w1_a", "lokr_w1_b", "lokr_w2")),
    (LOKR, ("lokr_w1", "lokr_w2_a", "lokr_w2_b")),
    (LOKR, ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")),
    (GLORA, ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    (IA3, ("weight", "on_input")),
    (FULL, ("diff",)),
    (NORM, ("w_norm", "b_norm")),
    (OFT, ("oft_blocks",)),
    (OFT, ("oft_diag",)),
)


def group(tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """Module name → part → tensor; a name ends at its first dot, as the WebUI has it."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        modules.setdefault(key, {})[part] = tensor
    return modules


def embeddings(*files: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """The embeddings that come with LoRAs, as one module; of two with one name the first stays."""
    found = [parts for tensors in files for key, parts in group(tensors).items() if key == EMBEDDING]
    together: dict[str, torch.Tensor] = {}
    for parts in found:
        together = {**parts, **together}
    return {EMBEDDING: together} if together else {}


def kind_of(key: str, parts: Parts) -> str:
    """``LoRA`` (also of convolutions), ``LoHa``, ``LoKr``, ``GLoRA``, ``IA3``, ``Full``, ``Norm`` or ``OFT``.

    Raises:
        InputError: the WebUI could not load it either.
    """
    for kind, needed in _KINDS:
        if all(part in parts for part in needed):
            if any(parts[number].numel() != 1 for number in ("alpha", "scale") if number in parts):
                raise damaged(key)
            if kind in (LORA, LOHA, LOKR) and any(not parts[part].numel() or parts[part].ndim < 2 for part in needed):
                raise damaged(key)
            return kind
    raise InputError(
        "{key} is no LoRA or LyCORIS module that is known here (it has {parts}); the file may be incomplete.",
        key=key,
        parts=", ".join(sorted(parts))[:200],
    )


def require_finite(key: str, parts: Parts) -> None:
    """Refuse weights that nothing can be computed from; all that fp32 can say, float64 can multiply.

    Raises:
        InputError: NaN or infinity in it, which a training leaves that went wrong.
    """
    if not all(is_finite(part.float()) for part in parts.values()):
        raise _no_numbers(key)


def require_sound(key: str, parts: Parts) -> None:
    """Refuse a module that the WebUI could not load: a copy of it would be as damaged, and nobody would know why.

    Raises:
        InputError: an unknown kind, NaN or infinity, or tensors that do not fit each other.
    """
    delta_norm(key, {name: part for name, part in parts.items() if name != "dora_scale"})
    if is_dora(parts):
        require_finite(key, parts)
        if not parts["dora_scale"].numel():
            raise damaged(key)


def _no_numbers(key: str) -> InputError:
    return InputError(
        "{key} has weights that are no numbers (NaN or infinity), as a training leaves them that went wrong; use an "
        "earlier file of it.",
        key=key,
    )


def damaged(key: str) -> InputError:
    """The sentence for tensors of impossible sizes."""
    return InputError("{key} is damaged: its tensors do not fit each other; get the file again.", key=key)


def is_dora(parts: Parts) -> bool:
    """Does it hold a magnitude (DoRA), so that its effect is not proportional to its scale?"""
    return "dora_scale" in parts


def dim_of(kind: str, parts: Parts) -> int | None:
    """What alpha is divided by; ``None`` where the WebUI disregards alpha."""
    if kind == LORA:
        return parts["lora_down.weight"].shape[0]
    if kind == LOHA:
        return parts["hada_w1_b"].shape[0]
    if kind == LOKR:
        inner = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
        return None if inner is None else inner.shape[0]
    return None


def scale_of(kind: str, parts: Parts) -> float:
    """``scale`` if the module has one, else alpha / dim, else 1."""
    if "scale" in parts:
        return float(parts["scale"])
    dim = dim_of(kind, parts)
    return float(parts["alpha"]) / dim if dim and "alpha" in parts else 1.0


def lora_factors(key: str, parts: Parts, *, finite: bool = True) -> tuple[Factors, tuple[int, ...]]:
    """A LoRA or LoCon module as up [out, rank] and down [rank, in·kernel] with its scale in ``up``, float64.

    A Tucker middle (``lora_mid``) is multiplied into ``down``, which keeps the rank.

    Args:
        key: the module's name.
        parts: its tensors.
        finite: refuse NaN and infinity.

    Returns:
        The factors, and the shape of one row of ``down`` ([in] or [in, kh, kw]).

    Raises:
        InputError: another kind, a DoRA, or damaged.
    """
    if kind_of(key, parts) != LORA or is_dora(parts):
        raise InputError(
            "{key} is not a plain LoRA module ({kind}); only LoRA and LoCon files can be merged, resized or joined.",
            key=key,
            kind="DoRA" if is_dora(parts) else kind_of(key, parts),
        )
    if finite:
        require_finite(key, parts)
    up, down = parts["lora_up.weight"].double(), parts["lora_down.weight"].double()
    if "lora_mid.weight" in parts:
        try:
            down = torch.einsum("nmkl,mj->njkl", parts["lora_mid.weight"].double(), down.flatten(1))
        except RuntimeError as error:
            raise damaged(key) from error
    up = up.flatten(1)
    if down.ndim not in (2, 4) or up.shape[1] != down.shape[0] or not down.numel():
        raise damaged(key)
    return (up * scale_of(LORA, parts), down.flatten(1)), tuple(down.shape[1:])


def lora_parts(factors: Factors, row: tuple[int, ...], alpha: float) -> dict[str, torch.Tensor]:
    """The tensors of a module; convolutions with a 1×1 ``up``, as kohya writes them."""
    up, down = factors
    rank = down.shape[0]
    return {
        "lora_down.weight": down.reshape(rank, *row),
        "lora_up.weight": up.reshape(up.shape[0], rank, *(1 for _ in row[1:])),
        "alpha": torch.tensor(float(alpha)),
    }


def full_delta(key: str, kind: str, parts: Parts, shape: tuple[int, ...]) -> torch.Tensor:
    """ΔW of a layer of this shape for the kinds that need no base weights, float64.

    Raises:
        InputError: GLoRA, IA3 and OFT, which are factors of the base.
    """
    try:
        return _full_delta(key, kind, parts).reshape(shape)
    except RuntimeError as error:
        raise damaged(key) from error


def _full_delta(key: str, kind: str, parts: Parts) -> torch.Tensor:
    scale = scale_of(kind, parts)
    if kind == LORA:
        (up, down), _ = lora_factors(key, {name: part for name, part in parts.items() if name != "dora_scale"})
        return up @ down
    if kind == LOHA:
        return _hada(parts, 1) * _hada(parts, 2) * scale
    if kind == LOKR:
        first, second = _kron(parts, 1), _kron(parts, 2)
        return torch.kron(first[:, :, None, None] if second.ndim == 4 else first, second) * scale
    if kind in (FULL, NORM):
        return parts["diff" if kind == FULL else "w_norm"].double() * scale
    raise InputError(
        "{key}: {kind} is a factor of the checkpoint's weights and has no difference of its own.", key=key, kind=kind
    )


def delta_norm(key: str, parts: Parts) -> float | None:
    """‖ΔW‖ (Frobenius) of a module at weight 1; ``None`` for the kinds that depend on the checkpoint."""
    kind = kind_of(key, parts)
    require_finite(key, parts)
    if is_dora(parts) or kind in (GLORA, IA3, OFT):
        return None
    try:
        size = norm(*lora_factors(key, parts)[0]) if kind == LORA else _scaled_norm(kind, parts)
    except RuntimeError as error:
        raise damaged(key) from error
    if size > _LARGEST:
        raise _no_numbers(key)
    return size


def _scaled_norm(kind: str, parts: Parts) -> float:
    if kind == LOHA:
        size = torch.linalg.norm(_hada(parts, 1) * _hada(parts, 2))
    elif kind == LOKR:  # ‖A ⊗ B‖ = ‖A‖·‖B‖
        size = torch.linalg.norm(_kron(parts, 1)) * torch.linalg.norm(_kron(parts, 2))
    else:
        size = torch.linalg.norm(parts["diff" if kind == FULL else "w_norm"].double())
    return abs(scale_of(kind, parts)) * float(size)


def rank_of(key: str, parts: Parts) -> int | None:
    """The rank that a person chose for it; ``None`` for the kinds without one."""
    return dim_of(kind_of(key, parts), parts)


def _tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Tucker product: core [i, j, k, l], a [i, p], b [j, r] → [p, r, k, l]."""
    return torch.einsum("ijkl,jr,ip->prkl", core.double(), b.double(), a.double())


def _hada(parts: Parts, number: int) -> torch.Tensor:
    a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is not None:
        return _tucker(core, a, b)
    return a.double().flatten(1) @ b.double().flatten(1)


def _kron(parts: Parts, number: int) -> torch.Tensor:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        return whole.double()
    a, b = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
    core = parts.get("lokr_t2") if number == 2 else None
    return a.double() @ b.double() if core is None else _tucker(core, a, b)
