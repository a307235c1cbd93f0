"""A LoRA from two checkpoints, and what is told about a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import InputError
from lora_trainer.model.families import SD1
from lora_trainer.network.lora_file import read_metadata, save_lora
from lora_trainer.network.ops.checkpoint_weights import open_checkpoint
from lora_trainer.network.ops.extract import Extracted, extract, metadata
from lora_trainer.network.ops.files import extract_file
from lora_trainer.network.ops.info import block_infos, info
from tests.helpers import CHECKPOINT
from tests.network.made import EVERY, KEYS, array, delta, lora, some_lora, tensors

TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
UNET = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CHANGED = {
    TEXT: "lora_te_text_model_encoder_layers_0_mlp_fc1",
    UNET: Q,
    CONV: "lora_unet_down_blocks_0_resnets_0_conv1",
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with three layers changed."""
    state = load_file(CHECKPOINT)
    rng = torch.Generator().manual_seed(4)
    for name in CHANGED:
        state[name] = state[name].float() + 0.01 * torch.randn(state[name].shape, generator=rng)
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    save_file(state, path)
    return path


def extracted(tuned: Path, rank: int, **arguments) -> Extracted:
    with open_checkpoint(CHECKPOINT) as base, open_checkpoint(tuned) as changed:
        return extract(base, changed, rank, precision="fp32", **arguments)


def difference(tuned: Path, name: str) -> np.ndarray:
    return array(load_file(tuned)[name]) - array(load_file(CHECKPOINT)[name])


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_is_the_best_of_its_rank(tuned: Path, rank: int) -> None:
    found = extracted(tuned, rank, conv_rank=rank)
    assert found.modules.keys() == set(CHANGED.values())
    wrong = whole = 0.0
    for name, key in CHANGED.items():
        wanted = difference(tuned, name)
        u, s, vh = np.linalg.svd(wanted.reshape(wanted.shape[0], -1), full_matrices=False)
        best = ((u[:, :rank] * s[:rank]) @ vh[:rank]).reshape(wanted.shape)
        made = delta(found.modules[key]).reshape(wanted.shape)
        assert np.allclose(made, best, atol=1e-6)
        wrong += np.linalg.norm(made - wanted) ** 2
        whole += np.linalg.norm(wanted) ** 2
    assert found.error == pytest.approx(np.sqrt(wrong / whole), rel=1e-5)
    assert found.covered == pytest.approx(1.0)
    assert found.unchanged > 200


def test_convolutions_are_left_out_unless_asked_for(tuned: Path) -> None:
    found = extracted(tuned, 4)
    assert found.modules.keys() == {CHANGED[TEXT], CHANGED[UNET]}
    sizes = {name: np.linalg.norm(difference(tuned, name)) ** 2 for name in CHANGED}
    assert found.covered == pytest.approx(np.sqrt((sizes[TEXT] + sizes[UNET]) / sum(sizes.values())))


def test_text_encoder_below_the_threshold_is_left_out(tuned: Path) -> None:
    assert extracted(tuned, 2, text_threshold=1.0).modules.keys() == {Q}


def test_clamp_is_that_of_sd_scripts(tuned: Path) -> None:
    found = extracted(tuned, 4, clamp_quantile=0.9).modules[Q]
    u, s, vh = np.linalg.svd(difference(tuned, UNET), full_matrices=False)
    up, down = u[:, :4] * s[:4], vh[:4]
    signs = np.sign((up * array(found["lora_up.weight"])).sum(0))  # a pair of vectors may be turned round
    limit = np.quantile(np.concatenate([(up * signs).ravel(), (down.T * signs).T.ravel()]), 0.9)
    assert np.allclose(array(found["lora_up.weight"]), np.clip(up * signs, -limit, limit), atol=1e-6)
    assert np.allclose(array(found["lora_down.weight"]), np.clip((down.T * signs).T, -limit, limit), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 1, "conv_rank": 0}, "rank must be at least 1"),
        ({"rank": 1, "clamp_quantile": 0.2}, "clamp quantile must be above 0.5"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(tuned: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        extracted(tuned, **arguments)


def test_checkpoints_that_do_not_fit_are_one_sentence(tmp_path: Path, tuned: Path) -> None:
    with pytest.raises(InputError, match="does not differ from"):
        extracted(CHECKPOINT, 2)
    state = load_file(tuned)
    save_file({name: t for name, t in state.items() if name != UNET}, tmp_path / "less.safetensors")
    save_file({**state, UNET: torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    for name in ("less", "other"):
        with pytest.raises(InputError, match=f"not of one shape \\({Q} differs\\)"):
            extracted(tmp_path / f"{name}.safetensors", 2)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.ckpt", b"x", "is not a .safetensors checkpoint"),
        ("a.safetensors", None, "is not a .safetensors checkpoint"),
        ("a.safetensors", b"garbage!!", "is damaged"),
    ],
)
def test_unusable_checkpoint_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence), open_checkpoint(tmp_path / name):
        pass


def test_metadata_of_an_extracted_lora() -> None:
    made = metadata(SD1, 8, 4)
    assert (made["ss_network_dim"], json.loads(made["ss_network_args"])["conv_dim"]) == ("8", "4")
    assert all(isinstance(value, str) for value in made.values())


def test_an_extracted_file_has_what_modelspec_requires(tmp_path: Path, tuned: Path) -> None:
    made = read_metadata(extract_file(CHECKPOINT, tuned, tmp_path / "difference.safetensors", 2).path)
    wanted = {"sai_model_spec": "1.0.1", "architecture": "stable-diffusion-v1/lora", "title": "difference"}
    assert {key: made[f"modelspec.{key}"] for key in wanted} == wanted
    assert (made["modelspec.resolution"], made["modelspec.implementation"][:8]) == ("512x512", "https://")


@pytest.mark.parametrize("name", list(CHANGED))
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_checkpoint_with_what_is_no_number_is_named(tmp_path: Path, tuned: Path, name: str, number: float) -> None:
    state = load_file(tuned)
    state[name].view(-1)[3] = number
    save_file(state, tmp_path / "burnt.safetensors")
    with pytest.raises(InputError, match=r"burnt.safetensors has weights that are no numbers"):
        extracted(tmp_path / "burnt.safetensors", 2, conv_rank=2)


# ------------------------------------------------------------------ info
def test_blocks_have_the_norm_of_their_modules() -> None:
    file = some_lora(3, 2.0) | tensors({"lora_unet_mid_block_resnets_0_conv1": lora(6, 6, 2, 1.0, kernel=3)})
    file |= tensors({"lora_unet_conv_out": EVERY["linear"], Q: {**lora(6, 6, 2, 1.0), "dora_scale": torch.ones(1, 6)}})
    blocks = {block.block: block for block in block_infos(file)}
    assert list(blocks) == ["TE1", "IN01", "M00", "OUT03", "other"]
    middle = [delta({p: t for n, t in file.items() for k, _, p in [n.partition(".")] if k == key}) for key in MIDDLE]
    assert blocks["M00"].norm == pytest.approx(np.sqrt(sum(np.linalg.norm(d) ** 2 for d in middle)))
    assert (blocks["M00"].modules, blocks["M00"].ranks, blocks["M00"].unknown) == (3, (2, 3), 1)


MIDDLE = (KEYS[2], "lora_unet_mid_block_resnets_0_conv1")


def test_file_is_described_with_its_blocks(tmp_path: Path) -> None:
    save_lora(tmp_path / "a.safetensors", some_lora(3, 2.0), {"ss_seed": "1"}, "fp16")
    found = info(tmp_path / "a.safetensors")
    assert (found["architecture"], found["kinds"], found["modules"]) == ("SD1/SD2", {"LoRA": 4}, 4)
    assert found["norm"] == pytest.approx(np.sqrt(sum(block["norm"] ** 2 for block in found["blocks"])))
    assert found["metadata"]["ss_seed"] == "1"
    json.dumps(found)


def test_file_that_is_no_lora_is_described_without_blocks() -> None:
    found = info(CHECKPOINT)
    assert "is a checkpoint, not a LoRA" in found["problem"]
    assert "blocks" not in found
