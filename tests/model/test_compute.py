"""Frozen layers in another type: the numbers are those of a model of that type, and nothing of the weights is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gpu.copies import Copies
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.compute import CastingConv2d, CastingLinear, compute_in
from lora_trainer.model.families import SD1
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import add_adapters, remove_adapters
from tests.training.bench import Bench

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 5, 7)),
    "1×1 convolution": (lambda: nn.Conv2d(6, 4, 1, bias=False), (1, 6, 5, 5)),
    "grouped convolution": (lambda: nn.Conv2d(6, 4, (3, 2), padding=(0, 1), dilation=2, groups=2), (2, 6, 7, 8)),
    "group norm": (lambda: nn.GroupNorm(3, 6, eps=1e-3), (2, 6, 4, 5)),
    "group norm of tokens": (lambda: nn.GroupNorm(2, 6), (2, 6, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "layer norm of two sizes": (lambda: nn.LayerNorm((3, 6), eps=1e-2), (4, 3, 6)),
}


def made(kind: str, weights: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """A layer with weights that are not those it begins with, and an input."""
    torch.manual_seed(5)
    build, shape = LAYERS[kind]
    layer = build().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return nn.Sequential(layer.to(weights)), torch.randn(shape)


def through(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of its weighted sum by the input."""
    leaf = x.clone().requires_grad_(True)
    output = layer(leaf)
    (output * torch.arange(output.numel()).reshape(output.shape).cos().to(output.dtype)).sum().backward()
    assert leaf.grad is not None
    return output.detach(), leaf.grad


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("weights", "dtype"), [(FP32, BF16), (BF16, FP32), (FP16, BF16), (FP16, FP32), (FP32, FP16)])
def test_a_layer_computes_as_one_of_that_type_does(kind: str, weights: torch.dtype, dtype: torch.dtype) -> None:
    layer, x = made(kind, weights)
    plain = copy.deepcopy(layer).to(dtype)
    compute_in(layer, dtype)
    for found, wanted in zip(through(layer, x.to(dtype)), through(plain, x.to(dtype)), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_gradient_is_that_of_float64(kind: str) -> None:
    layer, x = made(kind, FP16)
    exact = through(copy.deepcopy(layer).double(), x.double())
    compute_in(layer, FP32)
    for found, wanted in zip(through(layer, x), exact, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_inputs_of_another_type_are_cast() -> None:
    layer, x = made("linear", FP32)
    compute_in(layer, BF16)
    assert layer(x).dtype == BF16
    assert torch.equal(layer(x), layer(x.to(BF16)))


def test_rows_of_a_table_come_in_the_type() -> None:
    layer = nn.Sequential(nn.Embedding(5, 3).requires_grad_(False))
    compute_in(layer, BF16)
    assert torch.equal(layer(torch.tensor([4, 1])), layer[0].weight[[4, 1]].to(BF16))


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_weights_stay_what_and_where_they_are(model: LoadedModel, dtype: torch.dtype) -> None:
    for part in (model.unet, model.text[0].model):
        before = {name: (value, value.dtype, value.data_ptr()) for name, value in part.named_parameters()}
        compute_in(part, dtype)
        after = dict(part.named_parameters())
        assert after.keys() == before.keys()
        assert all(after[n] is v and (v.dtype, v.data_ptr()) == (d, p) for n, (v, d, p) in before.items())


@torch.no_grad()
def test_every_layer_of_the_model_computes_in_the_type(model: LoadedModel, standalone: StandaloneHost) -> None:
    """So that the whole is exactly what a checkpoint in that type computes."""
    unet, text = copy.deepcopy(model.unet).to(BF16), copy.deepcopy(model.text[0].model).to(BF16)
    compute_in(model.unet, BF16)
    compute_in(model.text[0].model, BF16)
    tokens = torch.tensor(model.text[0].chunks("a red circle"))
    states = model.text[0].model(tokens).last_hidden_state
    assert torch.equal(states, text(tokens).last_hidden_state)
    noisy, t = torch.randn(1, 4, 8, 8).to(BF16), torch.tensor([500])
    assert torch.equal(model.unet(noisy, t, states).sample, unet(noisy, t, states).sample)


@torch.no_grad()
def test_back_in_their_own_type_layers_compute_as_ever(model: LoadedModel) -> None:
    noisy, t, states = torch.randn(1, 4, 8, 8), torch.tensor([500]), model.text(["red"]).states
    before = model.unet(noisy, t, states).sample
    compute_in(model.unet, BF16)
    assert not torch.equal(model.unet(noisy.to(BF16), t, states.to(BF16)).sample.float(), before)
    compute_in(model.unet, FP32)
    assert torch.equal(model.unet(noisy, t, states).sample, before)


def test_adapters_are_left_alone_and_come_off(model: LoadedModel) -> None:
    adapters = add_adapters({"lora_unet_": model.unet}, SD1, rank=2, alpha=1)
    compute_in(model.unet, BF16)
    assert all(isinstance(layer.base_layer, (CastingLinear, CastingConv2d)) for layer in adapters.layers.values())
    assert all(parameter.dtype == FP32 for parameter in adapters.parameters())
    remove_adapters(model.unet)
    assert model.unet(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 77, 64)).sample.dtype == BF16


# ------------------------------------------------------------------ what autograd keeps
MIXES = [
    (FP32, "fp32"),
    (FP32, "bf16"),
    (BF16, "bf16"),
    (BF16, "fp32"),
    (FP16, "bf16"),
    (FP16, "fp32"),
]


@contextmanager
def kept(*parts: nn.Module) -> Iterator[Copies]:
    """Look at every tensor that autograd keeps within."""
    copies = Copies(p for part in parts for p in part.parameters() if not p.requires_grad)
    with torch.autograd.graph.saved_tensors_hooks(copies.pack, lambda tensor: tensor):
        yield copies


@pytest.mark.parametrize(("weights", "precision"), MIXES)
@pytest.mark.parametrize("text_lr", [0.0, 1e-4])
def test_no_saved_tensor_of_a_step_is_a_copy_of_a_frozen_weight(
    tmp_path: Path, standalone: StandaloneHost, weights: torch.dtype, precision: str, text_lr: float
) -> None:
    bench = Bench(standalone, tmp_path, precision=precision, weights=weights, training__text_lr=text_lr)
    parts = [bench.model.unet, bench.model.text[0].model]
    with kept(*parts) as found:
        bench.trainer.step(bench.step(1))
    assert found.saved > 500
    assert not found.count


def test_the_search_for_copies_finds_those_of_autocast(model: LoadedModel) -> None:
    add_adapters({"lora_unet_": model.unet}, SD1, rank=2, alpha=1)
    with kept(model.unet) as found, torch.autocast("cpu", BF16):
        model.unet(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 77, 64)).sample.sum().backward()
    assert found.count > 200


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_no_gradient(tmp_path: Path, standalone: StandaloneHost, precision: str) -> None:
    def gradient(checkpointing: bool, folder: Path) -> Any:
        bench = Bench(standalone, folder, precision=precision, training__checkpointing=checkpointing)
        return bench.gradient(2)

    (loss, plain), (again, checkpointed) = gradient(False, tmp_path / "a"), gradient(True, tmp_path / "b")
    assert (loss, plain.norm() > 0) == (again, True)
    torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)
