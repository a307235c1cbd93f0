"""Kinds of modules: formulas against numpy, norms against the full ΔW."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.network.modules import group
from lora_trainer.network.ops.bake import bake
from lora_trainer.network.ops.info import block_infos
from lora_trainer.network.ops.merge import Source, merge
from lora_trainer.network.ops.resize import Rule, resize
from lora_trainer.network.types import LORA, lowrank, type_of
from tests.network.made import EVERY, KEYS, array, delta, lora, randn

SOME = pytest.mark.parametrize("parts", EVERY.values(), ids=EVERY)


@SOME
def test_difference_is_that_of_the_definition(parts: dict[str, torch.Tensor]) -> None:
    wanted = delta(parts)
    found = type_of("a", parts).delta("a", parts, torch.zeros(wanted.shape))
    assert np.allclose(array(found), wanted, rtol=1e-12, atol=1e-12)


@SOME
def test_norm_needs_no_full_matrix(parts: dict[str, torch.Tensor]) -> None:
    assert type_of("a", parts).norm("a", parts) == pytest.approx(float(np.linalg.norm(delta(parts))), rel=1e-12)


@pytest.mark.parametrize(
    "parts",
    [
        {**EVERY["linear"], "dora_scale": torch.ones(1, 6)},
        {"weight": randn(6), "on_input": torch.tensor(True)},
        {"oft_blocks": randn(2, 4, 4), "alpha": torch.tensor(1.0)},
    ],
    ids=["DoRA", "IA3", "OFT"],
)
def test_norms_that_depend_on_the_checkpoint_are_unknown(parts: dict[str, torch.Tensor]) -> None:
    assert type_of("a", parts).norm("a", parts) is None
    with pytest.raises(InputError):
        type_of("a", parts).factors("a", parts)


def test_ranks_are_what_a_person_chose() -> None:
    assert [type_of("a", parts).dim(parts) for parts in EVERY.values()] == [
        3,
        3,
        3,
        3,
        3,
        3,
        2,
        None,
        2,
        2,
        2,
        None,
        None,
    ]


def test_unknown_and_damaged_modules_are_one_sentence() -> None:
    with pytest.raises(InputError, match="a is no LoRA or LyCORIS module that is known here \\(it has alpha\\)"):
        type_of("a", {"alpha": torch.tensor(1.0)})
    with pytest.raises(InputError, match="a is damaged"):
        LORA.factors("a", {"lora_up.weight": randn(4, 3), "lora_down.weight": randn(2, 5)})
    with pytest.raises(InputError, match="only LoRA and LoCon files can be merged"):
        type_of("a", EVERY["loha"]).factors("a", EVERY["loha"])


def test_names_end_at_the_first_dot() -> None:
    assert group({"a.lora_down.weight": torch.ones(1), "b.alpha": torch.ones(1)}).keys() == {"a", "b"}


# ------------------------------------------------------------------ linear algebra
@pytest.mark.parametrize(("out", "rank", "into"), [(20, 4, 30), (5, 9, 30), (30, 9, 4), (1, 1, 1)])
def test_svd_of_a_product(out: int, rank: int, into: int) -> None:
    up, down = randn(out, rank), randn(rank, into, seed=3)
    u, s, vh = lowrank.svd(up, down)
    wanted = array(up) @ array(down)
    assert np.allclose(array(u * s @ vh), wanted, atol=1e-12)
    assert np.allclose(array(s), np.linalg.svd(wanted)[1][: len(s)], atol=1e-10)
    assert np.allclose(array(u.T @ u), np.eye(len(s)), atol=1e-12)
    assert lowrank.norm(up, down) == pytest.approx(np.linalg.norm(wanted), rel=1e-12)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (7, 7)])
def test_truncated_svd_of_a_matrix(shape: tuple[int, int]) -> None:
    matrix = randn(*shape)
    u, s, vh = lowrank.truncated_svd(matrix, 5)
    left, values, right = np.linalg.svd(array(matrix), full_matrices=False)
    assert np.allclose(array(s), values[:5], rtol=1e-10)
    assert np.allclose(array(u * s @ vh), left[:, :5] * values[:5] @ right[:5], atol=1e-10)


def test_truncated_svd_of_a_matrix_of_lower_rank_has_no_nan() -> None:
    matrix = torch.outer(randn(6), randn(9))
    u, s, vh = lowrank.truncated_svd(matrix, 4)
    assert torch.isfinite(u).all()
    assert np.allclose(array(u * s @ vh), array(matrix), atol=1e-6)


def test_difference_is_exact_where_almost_everything_cancels() -> None:
    up, down = randn(20, 4).double(), randn(4, 30).double()
    moved = up.clone()
    moved[0, 0] += 1e-10
    wanted = np.linalg.norm((array(moved) - array(up)) @ array(down))
    assert lowrank.difference((up, down), (moved, down)) == pytest.approx(wanted, rel=1e-4)


def test_tucker_keeps_the_rank() -> None:
    (up, down), row = LORA.factors("a", lora(8, 6, 3, 1.5, kernel=3, tucker=True))
    assert (up.shape, down.shape, row) == ((8, 3), (3, 54), (6, 3, 3))


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
PARTS = sorted(
    {part for parts in EVERY.values() for part in parts} | {"dora_scale", "weight", "on_input", "oft_blocks"}
)


@given(st.dictionaries(st.sampled_from(PARTS), SHAPES.map(torch.ones), min_size=1), st.sampled_from([0.5, 1.0, -1.0]))
def test_damaged_modules_are_input_errors(parts: dict[str, torch.Tensor], ratio: float) -> None:
    file = {f"{KEYS[1]}.{part}": tensor for part, tensor in parts.items()}
    with suppress(InputError):
        block_infos(file)
    with suppress(InputError):
        bake(file, {KEYS[1]: ratio}, lambda key: torch.ones(2, 3))
    with suppress(InputError):
        merge([Source("a", file, ratio)])
    with suppress(InputError):
        resize(file, Rule(1))


def test_light_modules_bring_no_torch() -> None:
    """Prompts are read in the WebUI's start and on every picture."""
    modules = "lora_trainer.network.blocks.lora_tag, lora_trainer.cli.lora_files"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
