"""Merging and resizing, held against plain matrix algebra in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.stack import sum_notices
from lora_trainer.network.modules import group
from lora_trainer.network.ops.merge import Source, merge
from lora_trainer.network.ops.resize import Rule, resize
from tests.network.made import EVERY, KEYS, delta, lora, some_lora, tensors

Modules = dict[str, dict[str, torch.Tensor]]


def deltas(modules: Modules) -> dict[str, np.ndarray]:
    return {key: delta(parts).reshape(delta(parts).shape[0], -1) for key, parts in modules.items()}


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def relative(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    wrong = sum(np.linalg.norm(found[key] - wanted[key]) ** 2 for key in wanted)
    return float(np.sqrt(wrong / sum(np.linalg.norm(w) ** 2 for w in wanted.values())))


def sums(files: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file, weight in zip(files, weights, strict=True):
        for key, change in deltas(group(file)).items():
            found[key] = found.get(key, 0.0) + weight * change
    return found


# ------------------------------------------------------------------ merge
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, -0.8], [0.5, 0.0]])
def test_side_by_side_is_exact(weights: list[float]) -> None:
    files = [some_lora(4, 2.0), some_lora(3, 0.7, seed=100)]
    merged = merge([Source(str(i), f, w) for i, (f, w) in enumerate(zip(files, weights, strict=True))])
    assert relative(deltas(merged.modules), sums(files, weights)) < 1e-6
    assert merged.error < 1e-6
    assert set(merged.ranks) == {7 if all(weights) else 4}


def test_weights_of_the_strongest_keep_their_bits_in_fp16() -> None:
    files = [some_lora(4, 2.0, dtype=torch.float16), some_lora(4, 2.0, seed=100, dtype=torch.float16)]
    merged = merge([Source("a", files[0], 0.6), Source("b", files[1], 0.6)])
    for key, parts in merged.modules.items():
        wanted = torch.cat([f[f"{key}.lora_up.weight"] for f in files], 1)
        assert parts["lora_up.weight"].dtype == torch.float16
        assert torch.equal(parts["lora_up.weight"], wanted)
        assert parts["alpha"].dtype == torch.float32
    assert merged.error < 1e-7


def test_told_error_has_the_rounding_of_the_precision() -> None:
    files = [some_lora(4, 2.0), some_lora(3, 0.7, seed=100)]
    merged = merge([Source("a", files[0], 0.3), Source("b", files[1], 0.8)], precision="fp16")
    wanted = relative(deltas(merged.modules), sums(files, [0.3, 0.8]))
    assert merged.error == pytest.approx(wanted, rel=1e-6)
    assert 1e-6 < merged.error < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 5, 50])
def test_merge_to_a_rank_is_the_best_one_and_tells_its_error(rank: int) -> None:
    files = [some_lora(4, 2.0), some_lora(3, 0.7, seed=100)]
    wanted = sums(files, [0.3, 0.8])
    merged = merge([Source("a", files[0], 0.3), Source("b", files[1], 0.8)], rank=rank)
    found = deltas(merged.modules)
    for key in wanted:
        assert np.allclose(found[key], best(wanted[key], rank), atol=1e-5)
    assert merged.error == pytest.approx(relative(found, wanted), rel=1e-4, abs=1e-7)
    assert max(merged.ranks) == min(rank, 7)


def test_convolutions_have_their_own_rank() -> None:
    file = tensors({KEYS[1]: lora(9, 9, 4, 2.0), "lora_unet_mid_block_resnets_0_conv1": lora(9, 9, 4, 2.0, kernel=3)})
    merged = merge([Source("a", file, 1.0)], rank=3, conv_rank=2)
    assert merged.ranks == [3, 2]
    assert merged.modules["lora_unet_mid_block_resnets_0_conv1"]["lora_down.weight"].shape == (2, 9, 3, 3)
    assert merged.modules["lora_unet_mid_block_resnets_0_conv1"]["lora_up.weight"].shape == (9, 2, 1, 1)


def test_files_with_other_layers_and_spellings_meet() -> None:
    one = tensors({KEYS[2]: lora(9, 9, 2, 2.0, kernel=1), KEYS[1]: lora(5, 6, 2, 2.0)})
    other = tensors({"lora_unet_middle_block_1_proj_in": lora(9, 9, 3, 1.0, seed=9)})
    merged = merge([Source("a", one, 1.0), Source("b", other, 0.5)])
    assert merged.modules.keys() == {KEYS[2], KEYS[1]}
    wanted = deltas(group(one))[KEYS[2]] + 0.5 * deltas(group(other))["lora_unet_middle_block_1_proj_in"]
    assert np.allclose(deltas(merged.modules)[KEYS[2]], wanted, atol=1e-5)
    assert merged.modules[KEYS[2]]["lora_down.weight"].shape == (5, 9, 1, 1)


def test_factors_of_blocks_are_used() -> None:
    file = some_lora()
    merged = merge([Source("a", file, 0.5, {KEYS[0]: 0.0, KEYS[1]: 2.0})])
    assert KEYS[0] not in merged.modules
    wanted = deltas(group(file))
    found = deltas(merged.modules)
    assert np.allclose(found[KEYS[1]], 2 * wanted[KEYS[1]], atol=1e-5)
    assert np.allclose(found[KEYS[2]], 0.5 * wanted[KEYS[2]], atol=1e-5)


def test_embeddings_come_along() -> None:
    one, two = ({**some_lora(), "bundle_emb.x.emb_params": torch.full((1, 4), v)} for v in (1.0, 2.0))
    two["bundle_emb.y.emb_params"] = torch.zeros(1, 4)
    merged = merge([Source("a", one, 1.0), Source("b", two, 1.0)])
    assert float(merged.stored["bundle_emb"]["x.emb_params"][0, 0]) == 1.0
    assert merged.embeddings["bundle_emb"].keys() == {"x.emb_params", "y.emb_params"}
    assert resize(one, Rule(2)).stored.keys() == {*KEYS, "bundle_emb"}


@pytest.mark.parametrize(
    ("sources", "arguments", "sentence"),
    [
        ([(some_lora(), 0.0)], {}, "nothing is left to merge"),
        ([(some_lora(), float("nan"))], {}, "is not a number"),
        ([(some_lora(), 1.0)], {"rank": 0}, "rank must be at least 1"),
        ([(tensors({KEYS[0]: EVERY["loha"]}), 1.0)], {}, "not a plain LoRA module"),
        ([({"x.lora_up.weight": torch.ones(1)}, 1.0)], {}, "belongs to a block"),
        ([(some_lora(), 1.0), (tensors({KEYS[0]: lora(5, 5, 2, 1.0)}), 1.0)], {}, "has another size in 1"),
        (
            [(some_lora(), 1.0), (tensors({"lora_te2_text_model_encoder_layers_0_mlp_fc1": lora(4, 4, 1, 1.0)}), 1.0)],
            {},
            "0 is for SD1/SD2 and 1 for SDXL",
        ),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(sources, arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        merge([Source(str(i), file, weight) for i, (file, weight) in enumerate(sources)], **arguments)


@pytest.mark.parametrize(
    ("weights", "warned"), [([1.3], False), ([0.6, 0.6], False), ([0.6, 0.61], True), ([1.0, -0.5], True)]
)
def test_sum_of_weights_is_warned_about(weights: list[float], warned: bool) -> None:
    notices = sum_notices(weights)
    assert bool(notices) == warned
    assert not warned or "sum up to" in str(notices[0])


# ------------------------------------------------------------------ resize
def reference_rank(values: np.ndarray, method: str, value: float, most: int) -> int:
    """``rank_resize`` of sd-scripts, on all singular values of the full matrix."""
    if method == "sv_ratio":
        index = int((values > values[0] / value).sum())
    elif method == "sv_fro":
        index = int(np.searchsorted(np.cumsum(values**2) / (values**2).sum(), value**2)) + 1
    else:
        index = int(np.searchsorted(np.cumsum(values) / values.sum(), value)) + 1
    return min(max(1, min(index, len(values) - 1)) + 1, most)


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("sv_fro", 0.5),
        ("sv_fro", 0.9),
        ("sv_fro", 1.0),
        ("sv_cumulative", 0.4),
        ("sv_cumulative", 0.9),
        ("sv_ratio", 1.5),
        ("sv_ratio", 4.0),
        ("sv_ratio", 1.0),
    ],
)
def test_ranks_are_those_of_sd_scripts(method: str, value: float) -> None:
    file = some_lora(6, 3.0)
    resized = resize(file, Rule(method=method, value=value))
    for key, parts in group(file).items():
        unscaled = delta({**parts, "alpha": torch.tensor(6.0)}).reshape(parts["lora_up.weight"].shape[0], -1)
        wanted = reference_rank(np.linalg.svd(unscaled)[1], method, value, 6)
        assert resized.modules[key]["lora_down.weight"].shape[0] == wanted, key


@given(st.integers(1, 9), st.integers(1, 9))
def test_resized_is_the_best_of_its_rank_and_keeps_the_scale(rank: int, old: int) -> None:
    file = some_lora(old, 0.5 * old)
    resized = resize(file, Rule(rank))
    wanted = deltas(group(file))
    found = deltas(resized.modules)
    for key in wanted:
        assert np.allclose(found[key], best(wanted[key], rank), atol=1e-5)
    assert resized.error == pytest.approx(relative(found, wanted), rel=1e-4, abs=1e-6)
    assert resized.alphas == [0.5 * r for r in resized.ranks]
    assert set(resized.ranks) == {min(rank, old)} or rank > 8


def test_same_rank_keeps_every_bit() -> None:
    file = some_lora(4, 0.3, dtype=torch.float16)
    resized = resize(file, Rule(4))
    assert resized.error < 1e-14
    for name, tensor in file.items():
        key, _, part = name.partition(".")
        assert torch.equal(resized.modules[key][part], tensor.float() if part == "alpha" else tensor), name


@pytest.mark.parametrize(
    ("rule", "noted"),
    [(Rule(4), True), (Rule(9), True), (Rule(3), False), (Rule(9, method="sv_fro", value=0.3), False)],
)
def test_a_rank_that_is_not_smaller_is_noted(rule: Rule, noted: bool) -> None:
    notices = [str(notice) for notice in resize(some_lora(4, 2.0), rule).notices]
    assert notices == (
        ["The LoRA has rank 4 already: nothing was left out, and its effect stays the same."] if noted else []
    )


def test_modules_that_say_nothing_are_not_missed() -> None:
    """As in the files of runs that leave the text encoder alone: they get rank 1, and the others stay as they are."""
    zero = lora(6, 6, 4, 2.0)
    zero["lora_up.weight"].zero_()
    resized = resize(tensors({KEYS[0]: zero, KEYS[1]: lora(6, 6, 4, 2.0)}), Rule(4))
    assert (resized.ranks, len(resized.notices)) == ([1, 4], 1)


def test_small_singular_values_survive_fp16() -> None:
    """U·S and Vh apart, the small ones would fall below fp16's resolution of 6e-8."""
    file = {n: t * (1e-4 if "up" in n else 1.0) for n, t in some_lora(8, 8.0).items()}
    resized = resize(file, Rule(6), precision="fp16")
    in_full = resize(file, Rule(6), precision="fp32")
    assert resized.error == pytest.approx(in_full.error, rel=1e-3)


def test_zero_and_negative_modules() -> None:
    zero = lora(6, 6, 4, 2.0)
    zero["lora_up.weight"].zero_()
    file = tensors({KEYS[0]: zero, KEYS[1]: lora(6, 6, 4, -2.0), KEYS[2]: lora(6, 6, 4, 0.0)})
    resized = resize(file, Rule(method="sv_fro", value=0.6))
    assert resized.modules[KEYS[0]]["lora_down.weight"].shape[0] == 1
    assert not deltas(resized.modules)[KEYS[0]].any()
    assert not deltas(resized.modules)[KEYS[2]].any()
    rank = resized.modules[KEYS[1]]["lora_down.weight"].shape[0]
    assert np.allclose(deltas(resized.modules)[KEYS[1]], best(deltas(group(file))[KEYS[1]], rank), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "Say how far to resize"),
        ({"rank": 0}, "must be at least 1"),
        ({"conv_rank": -1}, "must be at least 1"),
        ({"method": "sv_x", "value": 1}, "no method sv_x"),
        ({"method": "sv_fro", "value": 0}, "above 0 and at most 1"),
        ({"method": "sv_cumulative", "value": 1.1}, "above 0 and at most 1"),
        ({"method": "sv_ratio", "value": 0.5}, "at least 1"),
    ],
)
def test_wrong_rule_is_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Rule(**arguments)


def test_file_without_lora_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no LoRA modules"):
        resize({}, Rule(2))


def test_two_spellings_of_sdxls_first_upsampler_are_one_layer() -> None:
    """SDXL's is in another place of the block than SD1's."""
    told = {"ss_base_model_version": "sdxl_base_v1-0"}
    spelled = ["lora_unet_up_blocks_0_upsamplers_0_conv", "lora_unet_output_blocks_2_2_conv"]
    files = [tensors({key: lora(6, 6, 2, 1.0, seed=n, kernel=3)}) for n, key in enumerate(spelled)]
    merged = merge([Source(str(n), file, 0.5, metadata=told) for n, file in enumerate(files)])
    assert (list(merged.modules), merged.ranks) == (spelled[:1], [4])


def test_the_metadata_says_what_a_lora_is_for_before_its_names() -> None:
    key = "lora_unet_middle_block_1_proj_in"
    files = [tensors({key: lora(6, 6, 2, 1.0)})] * 2
    headers: list[dict[str, str]] = [{"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}]
    with pytest.raises(InputError, match="only LoRAs of one architecture"):
        merge([Source("a", file, 1.0, metadata=header) for file, header in zip(files, headers, strict=True)])
