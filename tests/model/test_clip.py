"""CLIP's numbers by its own formula in float64, so that every version of transformers is held against the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_trainer.model.clip import byte_letters, features, layer_output, name_in_files, own_names, write_tokenizer
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.text import TextEncoder

Parameters = dict[str, torch.Tensor]
CAPTION = "a red circle, on a picture of blue rings"


def by_formula(weights: Parameters, ids: torch.Tensor, heads: int, layers: int) -> torch.Tensor:
    """The text transformer of Radford et al. (2021), section 2.4, pre-norm, causal, with quick GELU: (B, T, C)."""
    x = weights["embeddings.token_embedding.weight"][ids] + weights["embeddings.position_embedding.weight"]
    for number in range(layers):
        at = f"encoder.layers.{number}."
        x = x + attention(weights, f"{at}self_attn.", norm(weights, f"{at}layer_norm1", x), heads)
        inner = linear(weights, f"{at}mlp.fc1", norm(weights, f"{at}layer_norm2", x))
        x = x + linear(weights, f"{at}mlp.fc2", inner * torch.sigmoid(1.702 * inner))
    return norm(weights, "final_layer_norm", x)


def attention(weights: Parameters, at: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (linear(weights, f"{at}{n}_proj", x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=x.dtype).triu(1)
    return linear(weights, f"{at}out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def norm(weights: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def linear(weights: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2, 5])
def test_states_are_those_of_the_formula(model: LoadedModel, clip_skip: int) -> None:
    text, config = model.text[0], model.text[0].model.config
    weights = {name_in_files(n).removeprefix("text_model."): p.double() for n, p in text.model.named_parameters()}
    ids = torch.tensor(text.chunks(CAPTION))
    layers = config.num_hidden_layers + 1 - clip_skip
    wanted = by_formula(weights, ids, config.num_attention_heads, layers)
    states = TextEncoder(text.model, text.tokenizer, clip_skip)([CAPTION]).states
    assert float((states - wanted).norm() / wanted.norm()) < 1e-6


@torch.no_grad()
def test_the_mask_is_causal_for_each_caption_of_a_batch(model: LoadedModel) -> None:
    one, other = model.text(["red circle"]).states, model.text(["red square"]).states
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.equal(one[:, 2:], other[:, 2:])
    torch.testing.assert_close(model.text(["red circle", "red square"]).states, torch.cat([one, other]))


def test_parameters_have_the_names_of_files_in_every_version(model: LoadedModel) -> None:
    names = [name for name, _ in model.text[0].model.named_parameters()]
    in_files = [name_in_files(name) for name in names]
    assert all(name.startswith("text_model.e") or "final_layer_norm" in name for name in in_files)
    assert [name_in_files(name) for name in in_files] == in_files
    assert list(own_names(model.text[0].model, dict.fromkeys(in_files))) == names


def test_both_layouts_of_a_text_encoder_are_known() -> None:
    inner = nn.ModuleDict({"final_layer_norm": nn.LayerNorm(2)})
    four, five = nn.ModuleDict({"text_model": copy.deepcopy(inner)}), inner
    wanted = {"text_model.final_layer_norm.weight": 1}
    for model in (four, five):
        named = own_names(model, wanted)
        assert set(named) < {name for name, _ in model.named_parameters()}
        assert {name_in_files(name) for name in named} == set(wanted)


@pytest.mark.parametrize("as_tuple", [True, False])
def test_a_layers_output_is_found_whether_it_is_alone_or_first_of_several(as_tuple: bool) -> None:
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return (x + 1, None) if as_tuple else x + 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer(), Layer()])})
            self.encoder.layers = self.encoder["layers"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.encoder.layers:
                x = layer(x)
                x = x[0] if as_tuple else x
            return x

    model = Model()
    assert float(layer_output(model, torch.zeros(1), -2)[0]) == 2
    assert not any(layer._forward_hooks for layer in model.encoder.layers)  # none stays behind


def test_features_come_alone_or_in_an_object() -> None:
    vector = torch.ones(1, 3)
    assert features(vector) is vector
    assert features(type("Output", (), {"pooler_output": vector})()) is vector


def test_the_letters_of_bytes_are_those_of_the_papers_code() -> None:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    assert byte_letters() == [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def test_a_written_tokenizer_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    letters = byte_letters()
    tokens = [*letters, *(c + "</w>" for c in letters), "ab", "abc</w>", "<start>", "<end>"]
    write_tokenizer(tmp_path / "made", tokens, ["a b", "ab c</w>"])
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "made", local_files_only=True)
    start, end = len(tokens) - 2, len(tokens) - 1
    assert tokenizer("ABC b")["input_ids"] == [start, tokens.index("abc</w>"), tokens.index("b</w>"), end]
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end
    assert json.loads((tmp_path / "made" / "vocab.json").read_text(encoding="utf-8"))["abc</w>"] == end - 2
