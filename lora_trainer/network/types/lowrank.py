"""Linear algebra on ΔW = up @ down without ever building ΔW, in float64.

With up = Q₁R₁ and downᵀ = Q₂R₂ (QR), everything about ΔW stands in the small matrix R₁R₂ᵀ: its norm, and its singular
values; the singular vectors are Q₁U and Q₂V. The cost is that of the rank, not of the layer.
"""

from __future__ import annotations

import torch

Factors = tuple[torch.Tensor, torch.Tensor]
"""``up`` [out, rank] and ``down`` [rank, in]; convolutions have their kernel within ``in``."""


def norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """The Frobenius norm ‖up @ down‖, exact also where large parts cancel."""
    _, left = torch.linalg.qr(up.double(), mode="r")
    _, right = torch.linalg.qr(down.double().T, mode="r")
    return float(torch.linalg.norm(left @ right.T))


def svd(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reduced singular value decomposition of up @ down.

    Returns:
        U [out, k], S [k] descending, Vh [k, in] with k = min(rank, out, in), float64.
    """
    q1, r1 = torch.linalg.qr(up.double())
    q2, r2 = torch.linalg.qr(down.double().T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T, full_matrices=False)
    return q1 @ u, s, vh @ q2.T


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first ``rank`` singular vectors and values of a full matrix.

    From the eigenvectors of the smaller Gram matrix: in float64 the values are right to about 1e-8 of the largest, far
    below what a file keeps, and it is several times faster than the whole decomposition.

    Returns:
        U [out, rank], S [rank] descending, Vh [rank, in], float64.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.T if wide else matrix).double()
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    right = vectors.flip(1)[:, :rank]
    left = tall @ right
    values = torch.linalg.vector_norm(left, dim=0)
    order = torch.argsort(values, descending=True)
    values, right = values[order], right[:, order]
    left = left[:, order] / values.clamp_min(torch.finfo(torch.float64).tiny)
    return (right, values, left.T) if wide else (left, values, right.T)


def balanced(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> Factors:
    """``up`` = U√S and ``down`` = √S·Vh: equal sizes on both sides, so that neither falls below what fp16 resolves."""
    root = s.sqrt()
    return u * root, root[:, None] * vh


def difference(first: Factors, second: Factors) -> float:
    """‖up₁ down₁ − up₂ down₂‖."""
    return norm(
        torch.cat([first[0].double(), -second[0].double()], dim=1),
        torch.cat([first[1].double(), second[1].double()], dim=0),
    )
