"""What every type of network is to those that use it, pinned by surfaces that do not know how types are told apart.

Weights are small whole numbers, whose products are exact in float64 in whatever order they are summed, so that results
can be compared bit by bit on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.a1111.network_views import network_view
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.families import SD1
from lora_trainer.model.targets import ATTENTION, CONVOLUTION, TEXT
from lora_trainer.network.blocks.block_map import SD
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.network.formats import require_kohya_names
from lora_trainer.network.lora_file import save_lora
from lora_trainer.network.ops.bake import baked_parts
from lora_trainer.network.ops.checkpoint_weights import open_checkpoint
from lora_trainer.network.ops.extract import extract, metadata
from lora_trainer.network.ops.info import block_infos, info
from tests.helpers import CHECKPOINT
from tests.network.made import KEYS, Parts, array, tensors
from tests.network.plain import key_of

KEY = KEYS[1]


def whole(*shape: int, seed: int = 0) -> torch.Tensor:
    """Whole numbers of −4 … 4, none of them zero."""
    drawn = np.random.default_rng([seed, *shape]).integers(1, 5, shape) * 1.0
    return torch.tensor(drawn * np.random.default_rng([seed + 1, *shape]).choice([-1, 1], shape)).float()


def matrices(**shapes: tuple[int, ...]) -> Parts:
    return {name: whole(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


HADA = matrices(hada_w1_a=(8, 2), hada_w1_b=(2, 6), hada_w2_a=(8, 2), hada_w2_b=(2, 6))
TUCKER = matrices(hada_w1_a=(2, 8), hada_w1_b=(2, 6), hada_w2_a=(2, 8), hada_w2_b=(2, 6))
LORA = {"lora_up.weight": whole(8, 2), "lora_down.weight": whole(2, 6, seed=1)}
TYPES: dict[str, tuple[str, int | None, Parts]] = {
    "linear": ("LoRA", 2, {**LORA, "alpha": torch.tensor(4.0)}),
    "3x3": ("LoRA", 2, {"lora_up.weight": whole(8, 2, 1, 1), "lora_down.weight": whole(2, 6, 3, 3)}),
    "tucker": ("LoRA", 2, {"lora_up.weight": whole(8, 2, 1, 1), "lora_down.weight": whole(2, 6, 1, 1)}
               | {"lora_mid.weight": whole(2, 2, 3, 3), "alpha": torch.tensor(1.0)}),
    "hada": ("LoHa", 2, {**HADA, "alpha": torch.tensor(1.0)}),
    "hada tucker": ("LoHa", 2, {**TUCKER, "hada_t1": whole(2, 2, 3, 3), "hada_t2": whole(2, 2, 3, 3, seed=7)}),
    "kron": ("LoKr", None, {**matrices(lokr_w1=(2, 3), lokr_w2=(4, 2)), "alpha": torch.tensor(9.0)}),
    "kron conv": ("LoKr", None, matrices(lokr_w1=(2, 3), lokr_w2=(4, 2, 3, 3))),
    "kron a": ("LoKr", 2, {**matrices(lokr_w1_a=(2, 2), lokr_w1_b=(2, 3), lokr_w2=(4, 2)), "alpha": torch.tensor(4.0)}),
    "kron b": ("LoKr", 2, {**matrices(lokr_w1=(2, 3), lokr_w2_a=(4, 2), lokr_w2_b=(2, 2)), "alpha": torch.tensor(1.0)}),
    "kron ab": ("LoKr", 2, matrices(lokr_w1_a=(2, 2), lokr_w1_b=(2, 3), lokr_w2_a=(4, 2), lokr_w2_b=(2, 2))),
    "kron tucker": ("LoKr", 2, matrices(lokr_w1=(2, 3), lokr_w2_a=(2, 4), lokr_w2_b=(2, 2), lokr_t2=(2, 2, 3, 3))),
    "diff": ("Full", None, {**matrices(diff=(8, 6), diff_b=(8,)), "scale": torch.tensor(0.5)}),
    "norm": ("Norm", None, matrices(w_norm=(8,), b_norm=(8,))),
    "glora": ("GLoRA", None, {f"{n}.weight": whole(6, 6, seed=i) for i, n in enumerate(("a1", "a2", "b1", "b2"))}),
    "ia3": ("IA3", None, {"weight": whole(6), "on_input": torch.tensor(True)}),
    "oft": ("OFT", None, {"oft_blocks": whole(2, 4, 4), "alpha": torch.tensor(1.0)}),
    "oft diag": ("OFT", None, {"oft_diag": whole(2, 4, 4)}),
}  # fmt: skip
"""Name → what it is called, its rank, and its tensors, for each set of tensors that the WebUI knows."""
EVERY = pytest.mark.parametrize("name", TYPES)


def product(parts: Parts, number: int, prefix: str) -> np.ndarray:
    """A factor of LoHa or LoKr, whole or from its two matrices and core."""
    p = {name: array(tensor) for name, tensor in parts.items()}
    if f"{prefix}_w{number}" in p:
        return p[f"{prefix}_w{number}"]
    a, b = p[f"{prefix}_w{number}_a"], p[f"{prefix}_w{number}_b"]
    core = p.get(f"{prefix}_t{number}")
    return a @ b if core is None else np.einsum("ijkl,jr,ip->prkl", core, b, a)


def difference(name: str) -> np.ndarray | None:
    """ΔW by the definition; ``None`` where it depends on the checkpoint."""
    _, rank, parts = TYPES[name]
    scale = float(parts["alpha"]) / rank if rank and "alpha" in parts else float(parts.get("scale", 1.0))
    if name in ("linear", "3x3"):
        up, down = array(parts["lora_up.weight"]), array(parts["lora_down.weight"])
        return scale * np.tensordot(up.reshape(8, 2), down, axes=1)
    if name == "tucker":
        p = {part: array(tensor) for part, tensor in parts.items()}
        down = np.einsum("nmkl,mj->njkl", p["lora_mid.weight"], p["lora_down.weight"].reshape(2, 6))
        return scale * np.tensordot(p["lora_up.weight"].reshape(8, 2), down, axes=1)
    if name.startswith("hada"):
        return scale * product(parts, 1, "hada") * product(parts, 2, "hada")
    if name.startswith("kron"):
        first, second = product(parts, 1, "lokr"), product(parts, 2, "lokr")
        if second.ndim == 2:
            return scale * np.kron(first, second)
        return scale * np.einsum("ab,cdkl->acbdkl", first, second).reshape(8, -1, *second.shape[2:])
    return {"diff": scale * array(parts.get("diff", whole(1))), "norm": array(parts.get("w_norm", whole(1)))}.get(name)


# ------------------------------------------------------------------ recognised, measured
@EVERY
@pytest.mark.parametrize("dora", [False, True])
def test_each_is_called_by_its_name_with_its_rank(name: str, dora: bool, tmp_path: Path) -> None:
    called, rank, parts = TYPES[name]
    parts = {**parts, "dora_scale": torch.ones(1, 6)} if dora else parts
    save_lora(tmp_path / "a.safetensors", {f"{KEY}.{part}": tensor for part, tensor in parts.items()}, {}, "fp32")
    found = info(tmp_path / "a.safetensors")
    assert found["kinds"] == {f"DoRA ({called})" if dora else called: 1}
    assert found["blocks"][0]["ranks"] == [rank] * (rank is not None)
    wanted = difference(name)
    known = wanted is not None and not dora
    assert found["blocks"][0]["unknown"] == (not known)
    assert found["norm"] == pytest.approx(np.linalg.norm(wanted) if known else 0, rel=1e-12)


ORDER = ["LoRA", "LoHa", "LoKr", "GLoRA", "IA3", "Full", "Norm", "OFT"]


@pytest.mark.parametrize(("first", "second"), itertools.pairwise(ORDER))
def test_of_two_types_in_one_module_the_first_counts(first: str, second: str, tmp_path: Path) -> None:
    """In an order of our own, which files of other programs never need."""
    one, other = (next(parts for name, _, parts in TYPES.values() if name == called) for called in (first, second))
    made = {f"{KEY}.{part}": tensor for part, tensor in {**other, **one}.items()}
    save_lora(tmp_path / "a.safetensors", made, {}, "fp32")
    assert info(tmp_path / "a.safetensors")["kinds"] == {first: 1}


# ------------------------------------------------------------------ block weights
SCALED = {
    **dict.fromkeys(("linear", "3x3", "tucker", "hada", "hada tucker", "kron a", "kron b"), ("alpha",)),
    **dict.fromkeys(("kron ab", "kron tucker"), ("alpha",)),
    **dict.fromkeys(("kron", "kron conv"), ("lokr_w1",)),
    "diff": ("scale",),
    "norm": ("w_norm", "b_norm"),
    "glora": ("a1.weight", "b1.weight"),
    "ia3": ("weight",),
}
"""The only tensors that a block weight multiplies."""


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("ratio", [0.5, -0.75])
def test_a_block_weight_multiplies_only_what_the_effect_is_proportional_to(name: str, ratio: float) -> None:
    _, rank, parts = TYPES[name]
    made = baked_parts(KEY, {**parts, "bias": whole(8)} if rank is None else parts, ratio)
    for part in (*parts, *made):
        before = parts.get(part, whole(8) if part == "bias" else torch.tensor(float(rank or 0)))
        scaled = part in SCALED[name] or (part == "bias" and SCALED[name] not in (("alpha",), ("scale",)))
        assert torch.equal(made[part], before * ratio if scaled else before)


@pytest.mark.parametrize(
    "name", ["linear", "3x3", "tucker", "hada", "hada tucker", "kron", "kron conv", "kron a", "kron tucker", "diff"]
)
@pytest.mark.parametrize("ratio", [0.5, -0.75])
def test_a_dora_in_between_is_written_as_its_difference(name: str, ratio: float) -> None:
    wanted = difference(name)
    assert wanted is not None
    weight, magnitude = whole(*wanted.shape, seed=5), whole(1, *wanted.shape[1:2], *(1,) * (wanted.ndim - 2)).abs()
    made = baked_parts(KEY, {**TYPES[name][2], "dora_scale": magnitude}, ratio, {KEY: weight}.get)
    moved = array(weight) + wanted
    over = tuple(axis for axis in range(moved.ndim) if axis != 1)
    full = array(magnitude) * moved / np.sqrt((moved**2).sum(axis=over, keepdims=True)) - array(weight)
    assert list(made) == ["diff"]
    assert np.allclose(array(made["diff"]), ratio * full, rtol=1e-6)


# ------------------------------------------------------------------ the host's view
HOST = {
    "NetworkModuleLora": (("up",), ()),
    "NetworkModuleHada": (("w1a", "w2a"), ()),
    "NetworkModuleLokr": (("w1", "w2", "bias"), ("w1", "bias")),
    "NetworkModuleGLora": (("w1a", "w1b", "w2a", "w2b", "bias"), ("w1a", "w1b", "bias")),
    "NetworkModuleIa3": (("w", "bias"), ("w", "bias")),
    "NetworkModuleFull": (("weight", "ex_bias", "bias"), ("weight", "ex_bias", "bias")),
    "NetworkModuleNorm": (("w_norm", "b_norm", "bias"), ("w_norm", "b_norm", "bias")),
    "NetworkModuleOFT": (("oft_blocks",), None),
    "NetworkModuleOfNextYear": (("w",), None),
}
"""The host's class → its tensors, and those that its effect is proportional to; ``None`` where there are none."""


def viewed(name: str, tensors: Mapping[str, torch.Tensor], **values: Any) -> Any:
    """The view with the weight 0.25 of a module of the host's class with these tensors."""
    module = type(name, (), {"multiplier": lambda self: 1.5})()
    vars(module).update({"sd_module": None, "alpha": None, "scale": None, "dim": None, "dora_scale": None, **values})
    vars(module).update(tensors)
    key = "diffusion_model_input_blocks_5_1_proj_in"
    network = SimpleNamespace(name="net", mtime=1.0, modules={key: module})
    weights = resolve(",".join(["1", "1", "1", "1", "0.25", *["1"] * 12]), SD)
    return network_view(network, weights, 1, 1).modules[key]


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("dora", [False, True])
def test_a_view_scales_what_baking_scales(name: str, dora: bool) -> None:
    names, proportional = HOST[name]
    tensors = {part: whole(4, seed=seed).half() for seed, part in enumerate(names)}
    numbers = {"dora_scale": torch.ones(1)} if dora else {}
    view = viewed(name, tensors, **numbers)
    if proportional is None or dora:
        assert view.multiplier() == 1.5 * 0.25
        assert all(getattr(view, part) is tensors[part] for part in names)
        return
    assert view.multiplier() == 1.5
    for part in names:
        assert torch.equal(getattr(view, part), tensors[part].float() * (0.25 if part in proportional else 1))
        assert getattr(view, part).dtype == torch.float32
    view = viewed(name, tensors, dim=4, alpha=2.0)
    assert (view.alpha, view.dim, view.scale) == (0.5, 4, None)
    view = viewed(name, tensors, dim=4, alpha=2.0, scale=3.0)
    assert (view.alpha, view.dim, view.scale) == (2.0, 4, 0.75)
    assert all(getattr(view, part) is tensors[part] for part in names)


# ------------------------------------------------------------------ names
PARTS = {
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "scale", "dora_scale"),
    *("diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag", "on_input"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    *(f"hada_w{number}_{side}" for number in (1, 2) for side in "ab"),
    *("hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_t2"),
    *(f"lokr_w{number}_{side}" for number in (1, 2) for side in "ab"),
}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_types_tensors_are_told_behind_names_with_dots(part: str) -> None:
    require_kohya_names(Path("a"), [f"lora_unet_x.{part}"])
    with pytest.raises(InputError, match="whose names have dots"):
        require_kohya_names(Path("a"), [f"clip_l.encoder.x.{part}"])


def test_the_layers_of_an_extraction_are_those_that_are_trained(standalone: StandaloneHost, tmp_path: Path) -> None:
    """Module by module of the small checkpoint, by their names in the view and in the file."""
    with standalone.session(ModelRequest()) as session:
        unet, text = session.model.unet, session.model.text[0].model
    linear = {key_of("lora_unet_", name) for name, _ in unet.named_modules() if ATTENTION.fullmatch(name)}
    linear |= {key_of("lora_te_", name) for name, _ in text.named_modules() if TEXT.fullmatch(name)}
    convolutions = {key_of("lora_unet_", name) for name, _ in unet.named_modules() if CONVOLUTION.fullmatch(name)}
    with open_checkpoint(CHECKPOINT) as base:
        moved = Moved(base)
        assert set(extract(base, moved, 1).modules) == linear  # type: ignore[arg-type]
        assert set(extract(base, moved, 1, conv_rank=1).modules) == linear | convolutions  # type: ignore[arg-type]
    assert (len(linear), len(convolutions)) == (264, 86)


class Moved:
    """Weights of a checkpoint, each changed."""

    def __init__(self, base: Any) -> None:
        self._base, self.path, self.keys = base, Path("moved"), base.keys

    def __call__(self, key: str) -> torch.Tensor:
        return self._base(key) + 0.5


def test_metadata_of_an_extraction_is_sd_scripts() -> None:
    expected = {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"}
    expected |= {"ss_network_dim": "4", "ss_network_alpha": "4.0"}
    assert metadata(SD1, 4, None) == {**expected, "ss_network_args": "{}"}
    assert list(metadata(SD1, 4, 2).items()) == [
        *expected.items(),
        ("ss_network_args", '{"conv_dim": "2", "conv_alpha": "2.0"}'),
    ]


def test_norm_of_several_types_in_a_block_is_the_root_of_their_squares() -> None:
    known = [name for name in TYPES if difference(name) is not None]
    made = {f"{KEY.replace('to_q', 'to_k')}{index}": TYPES[name][2] for index, name in enumerate(known)}
    (found,) = block_infos(tensors(made))
    wanted = np.sqrt(sum(float((difference(name) ** 2).sum()) for name in known))
    assert (found.norm, found.unknown) == (pytest.approx(wanted, rel=1e-12), 0)
