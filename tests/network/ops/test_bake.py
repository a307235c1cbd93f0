"""Baking: each module's ΔW is its factor times the old one, and a preview computes the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.core.files import free_path
from lora_trainer.model.block_lists import SD
from lora_trainer.network.blocks.weights import factors, resolve
from lora_trainer.network.lora_file import read_lora, read_metadata
from lora_trainer.network.modules import group
from lora_trainer.network.ops.bake import bake, baked_parts
from lora_trainer.network.ops.provenance import (
    RECORD,
    check_output,
    derived_metadata,
    network_entries,
    widest_precision,
    write_derived,
)
from lora_trainer.network.types import type_of
from lora_trainer.network.types.base import preview_scale
from tests.network.made import EVERY, KEYS, array, delta, lora, randn, some_lora, tensors

HALVED = {
    name: {part: t if part in ("alpha", "scale") else t.half() for part, t in parts.items()}
    for name, parts in EVERY.items()
}


@pytest.mark.parametrize("ratio", [0.3, 1.0, -0.7, 2.5])
@pytest.mark.parametrize("name", EVERY)
def test_effect_is_the_factor_times_the_old_one(name: str, ratio: float) -> None:
    parts = HALVED[name]
    baked = baked_parts("a", parts, ratio)
    assert np.allclose(array_of(baked), ratio * delta(parts), rtol=1e-6, atol=1e-7)
    for bias in ("diff_b", "b_norm"):
        if bias in parts:
            assert np.allclose(array(baked[bias]), ratio * array(parts[bias]), rtol=1e-6)


def array_of(parts: dict[str, torch.Tensor]) -> np.ndarray:
    return delta(parts)


@pytest.mark.parametrize("name", [n for n, parts in HALVED.items() if "lora_up.weight" in parts or n == "loha"])
def test_weights_keep_their_bits_and_only_the_scale_changes(name: str) -> None:
    parts, baked = HALVED[name], baked_parts("a", HALVED[name], 0.3)
    changed = {part for part in baked if part not in parts or not torch.equal(baked[part], parts[part])}
    assert changed == ({"scale"} if "scale" in parts else {"alpha"})
    assert baked[changed.pop()].dtype == torch.float32


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.77])
@pytest.mark.parametrize("name", EVERY)
def test_preview_has_the_scale_that_the_file_will_have(name: str, ratio: float) -> None:
    parts = HALVED[name]
    kind = type_of("a", parts)
    stored = {part: tensor.clone() for part, tensor in baked_parts("a", parts, ratio).items()}
    alpha, scale = (float(parts[number]) if number in parts else None for number in ("alpha", "scale"))
    assert preview_scale(alpha, scale, kind.dim(parts), ratio) == kind.scale(stored)


def test_zero_leaves_the_module_out_and_one_leaves_it_alone() -> None:
    dora = {**lora(8, 6, 2, 1.0, seed=3), "dora_scale": torch.ones(1, 6)}
    oft = {"oft_blocks": randn(2, 4, 4), "alpha": torch.tensor(1.0)}
    file = tensors({"a": EVERY["linear"], "b": dora, "c": oft, "d": dora, "e": oft})
    file["bundle_emb.x.emb_params"] = randn(1, 4)
    baked = bake(file, {"a": 0.0, "b": 0.0, "c": 0.0})
    assert baked.dropped == ("a", "b", "c")
    assert baked.modules.keys() == {"d", "e", "bundle_emb"}
    assert all(torch.equal(baked.modules["d"][part], dora[part]) for part in dora)
    assert baked.counts() == {"kept": 3, "changed": 0, "dropped": 3, "expanded": 0}


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te2_"])
def test_a_part_of_attention_at_zero_stays_while_the_others_need_it(prefix: str) -> None:
    layer = f"{prefix}text_model_encoder_layers_{{}}_self_attn_{{}}_proj"
    keys = [layer.format(number, part) for number in (1, 11) for part in ("q", "k", "v", "out")]
    ratios = {key: float(key.endswith("_v_proj") and "_1_" in key) for key in keys}
    baked = bake(tensors({key: lora(6, 6, 3, 1.5) for key in keys}), ratios)
    assert list(baked.modules) == keys[:4]
    assert [float(parts["alpha"]) for parts in baked.modules.values()] == [0, 0, 1.5, 0]
    assert baked.dropped == tuple(keys[4:])


def test_alpha_is_fp32_even_where_nothing_changes() -> None:
    file = tensors({"a": {**EVERY["linear"], "alpha": torch.tensor(0.1).half()}})
    alpha = bake(file, {}).modules["a"]["alpha"]
    assert alpha.dtype == torch.float32
    assert float(alpha) == float(torch.tensor(0.1).half())


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3, 3)], ids=["linear", "3x3"])
@pytest.mark.parametrize("per_output", [False, True], ids=["inputs", "outputs"])
def test_dora_in_between_is_the_full_difference(shape: tuple[int, ...], per_output: bool) -> None:
    weight = randn(*shape, seed=8)
    parts = lora(8, 6, 2, 1.0, kernel=3 if len(shape) == 4 else 0)
    axis = 0 if per_output else 1
    size = [1] * len(shape)
    size[axis] = shape[axis]
    parts["dora_scale"] = randn(*size, seed=5).abs()
    baked = baked_parts("a", parts, 0.4, {"a": weight}.get)
    moved = array(weight) + delta(parts)
    others = tuple(a for a in range(len(shape)) if a != axis)
    length = np.sqrt((moved**2).sum(axis=others, keepdims=True))
    wanted = 0.4 * (array(parts["dora_scale"]) * moved / length - array(weight))
    assert list(baked) == ["diff"]
    assert np.allclose(array(baked["diff"]), wanted, atol=1e-6)
    whole = bake(tensors({"a": parts}), {"a": 0.4}, {"a": weight}.get)
    assert whole.expanded == ("a",)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({**EVERY["linear"], "dora_scale": torch.ones(1, 6)}, "is a DoRA module, whose effect at 0.5 depends on"),
        ({"oft_blocks": randn(2, 4, 4)}, "is an OFT module, which can only be baked at 0 or 1"),
        ({"alpha": torch.tensor(1.0)}, "no LoRA or LyCORIS module"),
    ],
)
def test_what_cannot_be_exact_is_refused(parts: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        bake(tensors({"a": parts}), {"a": 0.5})


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="nothing of the LoRA is left"):
        bake(some_lora(), dict.fromkeys(KEYS, 0.0))


def test_glora_and_ia3_are_scaled_in_fp32() -> None:
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    glora = {name: randn(4, 4, seed=i, dtype=torch.float16) for i, name in enumerate(names)}
    baked = baked_parts("a", {**glora, "alpha": torch.tensor(1.0)}, 0.3)
    weight = array(randn(4, 4, seed=9))

    def effect(p: dict[str, torch.Tensor]) -> np.ndarray:
        a1, a2, b1, b2 = (array(p[name]) for name in names)
        return b2 @ b1 + weight @ a2 @ a1

    assert np.allclose(effect(baked), 0.3 * effect(glora), rtol=1e-6, atol=1e-7)
    assert {t.dtype for t in baked.values()} == {torch.float32}
    ia3 = {"weight": randn(6, dtype=torch.float16), "on_input": torch.tensor(True)}
    baked = baked_parts("a", ia3, 0.3)
    assert np.allclose(array(baked["weight"]), 0.3 * array(ia3["weight"]), rtol=1e-6)
    assert baked["on_input"].dtype == torch.bool


def test_blocks_reach_the_file() -> None:
    file = some_lora()
    ratios = factors(group(file), resolve("0.5,0.25,1,1,1,1,1,0,1,1,1,1,1,1,1,1,1", SD), te=2.0)
    baked = bake(file, ratios)
    found = {key: float(np.linalg.norm(delta(baked.modules[key]))) for key in baked.modules}
    old = {key: float(np.linalg.norm(delta(parts))) for key, parts in group(file).items()}
    assert baked.dropped == (KEYS[2],)
    assert found == pytest.approx({KEYS[0]: old[KEYS[0]], KEYS[1]: 0.25 * old[KEYS[1]], KEYS[3]: old[KEYS[3]]})


# ------------------------------------------------------------------ derived files
def test_metadata_is_kept_and_extended(tmp_path: Path) -> None:
    old = {"ss_seed": "42", "ss_output_name": "old", "modelspec.title": "old", "sshs_model_hash": "x", RECORD: "[{}]"}
    path = tmp_path / "new.safetensors"
    made = derived_metadata(old, path, {"made": "baked", "lbw": "1,0"})
    write_derived(path, group(some_lora(dtype=torch.float16)), made)
    found = read_metadata(path)
    assert (found["ss_seed"], found["ss_output_name"], found["modelspec.title"]) == ("42", "new", "new")
    assert found["sshs_model_hash"] not in ("x", "")
    first, second = json.loads(found[RECORD])
    assert first == {}
    assert (second["made"], second["lbw"]) == ("baked", "1,0")
    assert all(torch.equal(t, read_lora(path)[n]) for n, t in some_lora(dtype=torch.float16).items())


def test_damaged_record_does_not_stand_in_the_way() -> None:
    for damaged in ("{", "3"):
        assert len(json.loads(derived_metadata({RECORD: damaged}, Path("a.safetensors"), {})[RECORD])) == 1


def test_output_is_never_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert check_output(path) == path
    path.write_bytes(b"x")
    (tmp_path / "a-2.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"never overwritten; .*a-3\.safetensors is free"):
        check_output(path)
    with pytest.raises(InputError, match="never overwritten"):
        check_output(tmp_path / "sub" / ".." / "a.safetensors", [path])
    with pytest.raises(InputError, match=r"must be named \.safetensors"):
        check_output(tmp_path / "a.ckpt")
    assert free_path(tmp_path / "b.safetensors").name == "b.safetensors"


def test_nan_is_not_written(tmp_path: Path) -> None:
    modules = group(some_lora())
    modules[KEYS[0]]["lora_up.weight"][0, 0] = torch.nan
    with pytest.raises(RunError, match="is NaN"):
        write_derived(tmp_path / "a.safetensors", modules, {})
    assert not list(tmp_path.iterdir())


def test_name_that_no_file_can_have_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("a" * 300, "a\0", "loop"):
        with pytest.raises(InputError, match="cannot be the name of a file"):
            check_output(tmp_path / f"{name}.safetensors", [tmp_path])


def test_weight_that_is_no_number_is_refused() -> None:
    for ratio in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="is not a number"):
            bake(some_lora(), {KEYS[0]: ratio})


def test_precision_of_a_result_is_that_of_its_sources() -> None:
    half, whole = some_lora(dtype=torch.float16), some_lora()
    assert widest_precision(half.values()) == "fp16"
    assert widest_precision([*half.values(), *whole.values()]) == "fp32"
    assert network_entries([4, 4], [2.0, 1.0]) == {"ss_network_dim": "4", "ss_network_alpha": "Dynamic"}
