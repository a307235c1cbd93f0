from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.compute import compute_in
from lora_trainer.model.families import SD1
from lora_trainer.model.family import ModelFamily, Part
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import (
    Adapters,
    adapters_for,
    add_adapters,
    file_shapes,
    remove_adapters,
)
from lora_trainer.network.types.base import Shape
from tests.network.plain import merged, of_model, outputs, randomise, relative_error

CONV = Shape(3, 2.0)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def base(model: LoadedModel) -> tuple[nn.Module, nn.Module]:
    """Copies of UNet and text encoder that no adapter touches."""
    return copy.deepcopy(model.unet), copy.deepcopy(model.text[0].model)


def both(model: LoadedModel, **values: object) -> Adapters:
    return add_adapters(model.parts, SD1, **{"rank": 4, "alpha": 2.0, **values})


def other(standalone: StandaloneHost) -> LoadedModel:
    """Another view of the same checkpoint."""
    with standalone.session(ModelRequest()) as session:
        return session.model


@pytest.fixture(scope="module")
def tensors(standalone: StandaloneHost) -> Tensors:
    """A trained file of rank 4 and alpha 2, attention only."""
    return randomise(both(other(standalone)))


@pytest.fixture(scope="module")
def with_convolutions(standalone: StandaloneHost) -> tuple[LoadedModel, Tensors]:
    """A view with trained adapters, convolutions too, and their tensors; not to be changed."""
    model = other(standalone)
    return model, randomise(both(model, convolutions=CONV), 0.3)


# ------------------------------------------------------------------ which layers, under which names
def test_sd1_has_192_and_72_layers_under_kohyas_names(model: LoadedModel) -> None:
    places = [f"down_blocks_{b}_attentions_{a}" for b in range(3) for a in range(2)]
    places += ["mid_block_attentions_0", *(f"up_blocks_{b}_attentions_{a}" for b in range(1, 4) for a in range(3))]
    inner = [f"attn{n}_to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out_0")] + ["ff_net_0_proj", "ff_net_2"]
    layers = ["proj_in", "proj_out", *(f"transformer_blocks_0_{name}" for name in inner)]
    text = ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2"]
    unet = {f"lora_unet_{place}_{layer}" for place in places for layer in layers}
    words = {f"lora_te_text_model_encoder_layers_{n}_{part}" for n in range(12) for part in text}
    assert (len(unet), len(words)) == (192, 72)
    assert set(both(model).layers) == unet | words


def test_convolutions_are_added_with_a_rank_of_their_own(model: LoadedModel) -> None:
    inner = {"conv1", "conv2", "conv_shortcut", "time_emb_proj"}
    wanted = {
        "lora_unet_" + name.replace(".", "_")
        for name, _ in model.unet.named_modules()
        if ("resnets." in name and name.rpartition(".")[2] in inner) or name.endswith("samplers.0.conv")
    }
    tensors = both(model, convolutions=CONV).state_dict()
    shapes = {
        key: shape for key, shape in file_shapes(tensors).items() if "attentions" not in key and "_te_" not in key
    }
    assert shapes.keys() == wanted
    for key, shape in shapes.items():
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        if down.ndim == 4 and down.shape[-1] == 3:
            assert (shape, up.shape[2:]) == (CONV, (1, 1))
        else:
            assert shape == Shape(4, 2.0)


@pytest.mark.parametrize(("unet", "text", "count"), [(True, False, 192), (False, True, 72)])
def test_one_part_alone(model: LoadedModel, unet: bool, text: bool, count: int) -> None:
    wanted = {"lora_unet_": unet, "lora_te_": text}
    parts = {prefix: part for prefix, part in model.parts.items() if wanted[prefix]}
    adapters = add_adapters(parts, SD1, rank=2, alpha=1)
    assert len(adapters.layers) == count
    assert len(adapters.parameters("lora_unet_")) == 2 * 192 * unet
    assert len(adapters.parameters("lora_te_")) == 2 * 72 * text
    assert len(adapters.parameters()) == 2 * count


def test_files_tensors_have_kohyas_shapes(model: LoadedModel) -> None:
    tensors = both(model).state_dict()
    start = "lora_unet_down_blocks_0_attentions_0_"
    assert tensors[f"{start}proj_in.lora_down.weight"].shape == (4, 32, 1, 1)
    assert tensors[f"{start}proj_in.lora_up.weight"].shape == (32, 4, 1, 1)
    assert tensors[f"{start}transformer_blocks_0_attn2_to_k.lora_down.weight"].shape == (4, 64)
    assert tensors[f"{start}transformer_blocks_0_attn2_to_k.lora_up.weight"].shape == (32, 4)
    alphas = [t for name, t in tensors.items() if name.endswith(".alpha")]
    assert all(t.shape == () and t.dtype == torch.float32 and t == 2.0 for t in alphas)
    assert len(tensors) == 3 * 264


def test_state_is_a_copy(model: LoadedModel) -> None:
    adapters = both(model)
    before = adapters.state_dict()
    randomise(adapters)
    assert all(not t.any() for name, t in before.items() if "lora_up" in name)


# ------------------------------------------------------------------ the start
def test_new_adapters_change_nothing(model: LoadedModel) -> None:
    before = of_model(model)
    both(model, convolutions=CONV)
    assert torch.equal(of_model(model), before)


def test_down_starts_kaiming_uniform_and_up_zero(model: LoadedModel) -> None:
    for name, tensor in both(model, rank=8, convolutions=CONV).state_dict().items():
        if name.endswith("lora_up.weight"):
            assert not tensor.any()
        elif name.endswith("lora_down.weight"):
            bound = math.sqrt(6 / ((1 + 5) * tensor[0].numel()))  # gain √(2 / (1 + √5²)) · √(3 / fan in)
            assert tensor.abs().max() <= bound
            assert tensor.abs().max() > 0.8 * bound
            if tensor.numel() >= 512:
                assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
                assert tensor.mean().abs() < 0.1 * bound


def test_start_depends_on_the_seed_alone(standalone: StandaloneHost) -> None:
    def start(seed: int) -> Tensors:
        return add_adapters({"lora_te_": other(standalone).text[0].model}, SD1, rank=4, alpha=2, seed=seed).state_dict()

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = start(7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, different = start(7), start(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[n], different[n]) for n in first if n.endswith("lora_down.weight"))


def test_unet_starts_the_same_with_and_without_a_text_encoder(standalone: StandaloneHost) -> None:
    alone = add_adapters({"lora_unet_": other(standalone).unet}, SD1, rank=4, alpha=2).state_dict()
    together = both(other(standalone)).state_dict()
    assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())


def test_only_adapters_are_trained_and_in_fp32(model: LoadedModel) -> None:
    model.unet.half()
    try:
        adapters = add_adapters({"lora_unet_": model.unet}, SD1, rank=2, alpha=1)
        trained = {id(p) for p in model.unet.parameters() if p.requires_grad}
        assert trained == {id(p) for p in adapters.parameters()}
        assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    finally:
        for part in model.unet.parameters():
            part.data = part.data.float()


@pytest.mark.parametrize(("alpha", "stored"), [(0, 6.0), (1.5, 1.5), (12, 12.0)])
def test_alpha_of_zero_is_the_rank(model: LoadedModel, alpha: float, stored: float) -> None:
    adapters = add_adapters({"lora_unet_": model.unet}, SD1, rank=6, alpha=alpha, convolutions=Shape(3, 0))
    assert set(file_shapes(adapters.state_dict()).values()) == {Shape(6, stored), Shape(3, 3.0)}


# ------------------------------------------------------------------ the mathematics
@pytest.mark.parametrize(("convolutions", "multiplier"), [(None, 1.0), (CONV, 1.0), (CONV, -0.35)])
def test_adapters_compute_what_the_definition_says(
    model: LoadedModel, base: tuple[nn.Module, nn.Module], convolutions: Shape | None, multiplier: float
) -> None:
    adapters = both(model, convolutions=convolutions)
    tensors = randomise(adapters)
    adapters.set_multiplier(multiplier)
    wanted = outputs(
        merged(base[0], tensors, "lora_unet_", multiplier), merged(base[1], tensors, "lora_te_", multiplier)
    )
    assert relative_error(of_model(model), wanted) <= 1e-5
    assert relative_error(outputs(*base), wanted) > 1e-3
    adapters.set_multiplier(0)
    assert torch.equal(of_model(model), outputs(*base))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2", "linear"),
        ("down_blocks.0.attentions.0.proj_in", "1×1"),
        ("down_blocks.0.resnets.0.conv1", "3×3"),
        ("down_blocks.0.downsamplers.0.conv", "3×3, stride 2"),
        ("up_blocks.0.resnets.0.conv_shortcut", "1×1"),
    ],
)
def test_each_kind_of_layer_alone(
    with_convolutions: tuple[LoadedModel, Tensors], standalone: StandaloneHost, name: str, kind: str
) -> None:
    model, tensors = with_convolutions
    base = other(standalone).unet
    layer, plain = model.unet.get_submodule(name), merged(base, tensors, "lora_unet_").get_submodule(name)
    features = plain.weight.shape[1]
    x = torch.randn((3, features) if kind == "linear" else (2, features, 6, 6))
    with torch.no_grad():
        assert relative_error(layer(x), plain(x)) <= 1e-5
        assert relative_error(base.get_submodule(name)(x), plain(x)) > 1e-2


def of_peft(layer: Any) -> tuple[Any, list[nn.Parameter]]:
    """PEFT's layer with the same weights, and its trained ones; PEFT makes its own of the class that it finds."""
    base = copy.deepcopy(layer.base_layer)
    base.__class__ = nn.Conv2d if isinstance(base, nn.Conv2d) else nn.Linear
    part = nn.ModuleDict({"layer": base.to(getattr(base, "compute_type", base.weight.dtype))})
    settings = LoraConfig(r=layer.shape.rank, lora_alpha=layer.shape.alpha, target_modules=["layer"])
    inject_adapter_in_model(settings, part, adapter_name="of_peft")
    theirs = part["layer"]
    weights = [inner["of_peft"].weight for inner in (theirs.lora_A, theirs.lora_B)]
    for weight, own in zip(weights, layer.trained(), strict=True):
        weight.data = own.detach().clone()
    return theirs, weights


def gradients(
    weights: Sequence[nn.Parameter], forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> list[torch.Tensor]:
    """Output and gradients of input, down and up."""
    leaf = x.clone().requires_grad_()
    output = forward(leaf)
    output.float().square().sum().backward()
    return [output.detach(), *(t.grad.clone() for t in (leaf, *weights) if t.grad is not None)]


@pytest.mark.parametrize("name", ["attn1.to_q", "ff.net.0.proj", "proj_in"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("once", [False, True])
def test_the_lighter_forward_is_that_of_peft(model: LoadedModel, name: str, half: bool, once: bool) -> None:
    adapters = both(model, alpha=3.0)
    randomise(adapters)
    dtype = torch.bfloat16 if half else torch.float32
    compute_in(model.unet, dtype)
    block = model.unet.get_submodule("down_blocks.0.attentions.0")
    layer = block.get_submodule(name if name == "proj_in" else f"transformer_blocks.0.{name}")
    theirs, weights = of_peft(layer)
    features = layer.weight.shape[1]
    x = torch.randn((2, features, 4, 4) if name == "proj_in" else (2, 5, features))
    with adapters.cast_once(dtype) if once else nullcontext():
        ours = gradients(layer.trained(), lambda value: layer(value.to(dtype)), x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        wanted = gradients(weights, theirs, x)
    error = 2e-2 if half else 1e-5
    for found, other in zip(ours, wanted, strict=True):
        assert found.dtype == other.dtype
        assert relative_error(found.float(), other.float()) <= error


def in_half_precision() -> Any:
    """An adapted layer, 8 → 12, whose own weights are bf16."""
    part = nn.ModuleDict({"to_q": nn.Linear(8, 12).to(torch.bfloat16)})
    family = ModelFamily("linear", unet=Part("unet", "", "", re.compile(".*")))
    return add_adapters({"": part}, family, rank=2, alpha=1.0).layers["to_q"]


def test_weights_that_are_cast_once_are_those_that_are_cast_each_time(model: LoadedModel) -> None:
    adapters = both(model, convolutions=CONV)
    randomise(adapters)
    for part in (model.unet, model.text[0].model):
        compute_in(part, torch.bfloat16)
    each, gradients_of_each = of_half(model), gradients_of(adapters)
    with adapters.cast_once(torch.bfloat16):
        assert all(layer.cast[0].dtype == torch.bfloat16 for layer in adapters.layers.values())
        once, gradients_of_once = of_half(model), gradients_of(adapters)
    assert torch.equal(once, each)
    assert all(layer.cast is None for layer in adapters.layers.values())
    assert all(map(torch.equal, gradients_of_once, gradients_of_each))
    assert all(gradient.dtype == torch.float32 for gradient in gradients_of_once)


def of_half(model: LoadedModel) -> torch.Tensor:
    """A loss of the whole model in bf16, with its gradients in the adapters."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    output = model.unet(noisy, torch.tensor([300]), model.text(["red circle"]).states).sample
    output.float().square().sum().backward()
    return output.detach()


def gradients_of(adapters: Adapters) -> list[torch.Tensor]:
    """The gradients of all parameters, which are taken away."""
    found = []
    for parameter in adapters.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


def test_in_their_own_type_nothing_is_cast(model: LoadedModel) -> None:
    adapters = both(model)
    with adapters.cast_once(torch.float32):
        assert all(layer.cast is None for layer in adapters.layers.values())


@torch.no_grad()
def test_half_precision_weights_keep_their_type() -> None:
    layer, x = in_half_precision(), torch.randn(2, 5, 8, dtype=torch.bfloat16)
    layer.lora_up.normal_()
    assert layer(x).dtype == torch.bfloat16
    assert relative_error(layer(x).float(), of_peft(layer)[0](x).float()) <= 1e-2


def test_disabled_is_the_base_model_exactly_and_only_inside(
    model: LoadedModel, base: tuple[nn.Module, nn.Module]
) -> None:
    adapters = both(model, convolutions=CONV)
    randomise(adapters)
    on = of_model(model)

    def fail() -> None:
        with adapters.disabled():
            assert torch.equal(of_model(model), outputs(*base))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(of_model(model), on)


def test_owner_of_the_weights_does_not_see_adapters(standalone: StandaloneHost) -> None:
    model, untouched = other(standalone), other(standalone)
    before = of_model(untouched)
    randomise(both(model))
    assert torch.equal(of_model(untouched), before)
    assert model.unet.conv_in.weight is untouched.unet.conv_in.weight


def test_dropout_works_while_training_only(model: LoadedModel) -> None:
    adapters = both(model, dropout=0.5)
    randomise(adapters)
    assert torch.equal(of_model(model), of_model(model))
    layer = model.unet.get_submodule("mid_block.attentions.0.proj_in").train()
    x = torch.randn(1, 96, 4, 4)
    assert not torch.equal(layer(x), layer(x))


def test_a_view_without_its_adapters_is_as_it_was_and_takes_others(model: LoadedModel, tensors: Tensors) -> None:
    before, modules = of_model(model), dict(model.unet.named_modules())
    randomise(both(model, convolutions=CONV))
    assert not torch.equal(of_model(model), before)
    remove_adapters(*model.parts.values())
    assert dict(model.unet.named_modules()) == modules
    assert torch.equal(of_model(model), before)
    remove_adapters(*model.parts.values())  # there are none any more
    adapters = adapters_for(model.parts, tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in adapters.state_dict().items())


# ------------------------------------------------------------------ files
def test_file_of_any_ranks_is_put_on_a_fresh_view(
    with_convolutions: tuple[LoadedModel, Tensors], standalone: StandaloneHost
) -> None:
    tensors = dict(with_convolutions[1])
    names = [name.partition(".")[0] for name in tensors if name.endswith(".alpha")]
    tensors = {n: t for n, t in tensors.items() if n.partition(".")[0] in names[::2]}
    for index, key in enumerate(names[::2]):
        rank = 1 + index % 4
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        tensors[f"{key}.lora_down.weight"] = down[:1].repeat(rank, *[1] * (down.ndim - 1))
        tensors[f"{key}.lora_up.weight"] = up[:, :1].repeat(1, rank, *[1] * (up.ndim - 2))
        tensors[f"{key}.alpha"] = torch.tensor(0.5 + index % 3)
    model, plain = other(standalone), other(standalone)
    adapters = adapters_for(model.parts, tensors)
    wanted = outputs(merged(plain.unet, tensors, "lora_unet_"), merged(plain.text[0].model, tensors, "lora_te_"))
    assert relative_error(of_model(model), wanted) <= 1e-5
    stored = adapters.state_dict()
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_missing_or_zero_alpha_is_the_rank(tensors: Tensors, alpha: float | None) -> None:
    changed = {n: t for n, t in tensors.items() if not n.endswith(".alpha")}
    if alpha is not None:
        changed |= {n: torch.tensor(alpha) for n in tensors if n.endswith(".alpha")}
    assert set(file_shapes(changed).values()) == {Shape(4, 4.0)}


def test_text_alone_from_a_file(model: LoadedModel, tensors: Tensors) -> None:
    adapters = adapters_for(model.parts, {n: t for n, t in tensors.items() if "_te_" in n})
    assert len(adapters.layers) == 72


def changed(tensors: Tensors, change: str) -> Tensors:
    key = "lora_unet_mid_block_attentions_0_proj_in"
    down, up = f"{key}.lora_down.weight", f"{key}.lora_up.weight"
    rest = {n: t for n, t in tensors.items() if not n.startswith(key)}
    return {
        "SDXL text": {
            **tensors,
            "lora_te1_text_model_x.lora_down.weight": tensors[down],
            "lora_te1_text_model_x.lora_up.weight": tensors[up],
        },
        "SDXL UNet": {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": tensors[down],
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": tensors[up],
        },
        "wider": {**tensors, down: torch.zeros(4, 640, 1, 1), up: torch.zeros(640, 4, 1, 1)},
        "up of another rank": {**tensors, up: torch.zeros(96, 7, 1, 1)},
        "LoHa": {**tensors, f"{key}.hada_w1_a": torch.zeros(2, 2)},
        "DoRA": {**tensors, f"{key}.dora_scale": torch.zeros(2, 2)},
        "LoCon mid": {**tensors, f"{key}.lora_mid.weight": torch.zeros(2, 2, 3, 3)},
        "diffusers": {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 2)},
        "no up": {**rest, down: tensors[down]},
        "no down": {**rest, up: tensors[up]},
        "only alpha": {f"{key}.alpha": torch.tensor(1.0)},
        "nothing": {},
        "alpha of two numbers": {**tensors, f"{key}.alpha": torch.zeros(2)},
        "down without size": {**tensors, down: torch.tensor(1.0)},
        "rank zero": {**tensors, down: torch.zeros(0, 96, 1, 1), up: torch.zeros(96, 0, 1, 1)},
    }[change]


@pytest.mark.parametrize("change", ["SDXL text", "SDXL UNet", "wider", "up of another rank"])
def test_file_of_another_architecture_is_one_sentence(model: LoadedModel, tensors: Tensors, change: str) -> None:
    with pytest.raises(InputError, match="another kind of checkpoint") as caught:
        adapters_for(model.parts, changed(tensors, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("LoHa", "not a plain LoRA"),
        ("DoRA", "not a plain LoRA"),
        ("LoCon mid", "not a plain LoRA"),
        ("diffusers", "not a plain LoRA"),
        ("no up", "not a complete LoRA"),
        ("no down", "not a complete LoRA"),
        ("only alpha", "not a complete LoRA"),
        ("nothing", "not a complete LoRA"),
        ("alpha of two numbers", "not a complete LoRA"),
        ("down without size", "not a complete LoRA"),
        ("rank zero", "not a complete LoRA"),
    ],
)
def test_file_that_is_no_plain_lora_is_one_sentence(tensors: Tensors, change: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        file_shapes(changed(tensors, change))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ going on from a file
@pytest.fixture(scope="module")
def fresh(standalone: StandaloneHost) -> Adapters:
    """Adapters of rank 4 and alpha 2, to take over a file's weights."""
    return both(other(standalone), seed=9)


def test_continuing_takes_over_every_weight(fresh: Adapters, tensors: Tensors) -> None:
    fresh.load(tensors)
    taken = fresh.state_dict()
    assert taken.keys() == tensors.keys()
    assert all(torch.equal(taken[name], tensor) for name, tensor in tensors.items())


def test_continuing_with_another_rank_is_one_sentence(fresh: Adapters, tensors: Tensors) -> None:
    twice = {n: t if n.endswith(".alpha") else torch.cat([t, t], dim=int("lora_up" in n)) for n, t in tensors.items()}
    with pytest.raises(InputError, match=r"^network\.continue_from: the file has rank 8 and alpha 2; set") as caught:
        fresh.load(twice)
    assert caught.value.field == "network.continue_from"


def test_continuing_with_another_alpha_is_one_sentence(fresh: Adapters, tensors: Tensors) -> None:
    half = {n: t / 4 if n.endswith(".alpha") else t for n, t in tensors.items()}
    with pytest.raises(InputError, match=r"^network\.continue_from: the file has rank 4 and alpha 0\.5; set"):
        fresh.load(half)


@pytest.mark.parametrize("alpha", [0.7, 1 / 3, 1.1, 12.3, 100.7, 1e-3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_alpha_that_a_file_can_only_round_is_the_same_alpha(alpha: float, dtype: torch.dtype) -> None:
    """Kohya stores it in the weights' type; whoever takes the number out of our sentence is right too."""
    stored = float(torch.tensor(alpha, dtype=torch.float64).to(dtype))
    assert Shape(4, alpha).is_stored_as(Shape(4, stored))
    assert Shape(4, float(f"{stored:g}")).is_stored_as(Shape(4, stored))
    assert not Shape(4, alpha * 1.01).is_stored_as(Shape(4, stored))
    assert not Shape(8, alpha).is_stored_as(Shape(4, stored))


def test_a_file_of_kohyas_with_a_rounded_alpha_is_continued(standalone: StandaloneHost) -> None:
    model = other(standalone)
    adapters = add_adapters(model.parts, SD1, rank=4, alpha=0.7, seed=3)
    half = {name: tensor.half() for name, tensor in adapters.state_dict().items()}
    adapters.load(half)
    assert {layer.shape.alpha for layer in adapters.layers.values()} == {0.7}


def test_continuing_with_other_layers_is_one_sentence(
    fresh: Adapters, with_convolutions: tuple[LoadedModel, Tensors]
) -> None:
    with pytest.raises(InputError, match=r"^network\.continue_from: .* train different layers \(86 differ"):
        fresh.load(with_convolutions[1])


@pytest.mark.parametrize("change", ["wider", "up of another rank"])
def test_continuing_from_another_architecture_is_one_sentence(fresh: Adapters, tensors: Tensors, change: str) -> None:
    with pytest.raises(InputError, match="another kind of checkpoint"):
        fresh.load(changed(tensors, change))


def test_initial_weights_come_from_the_seed_and_the_layers_name_alone(standalone: StandaloneHost) -> None:
    def drawn(seed: int, dirty: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(dirty)
        with standalone.session(ModelRequest()) as session:
            model = session.model
            state = torch.random.get_rng_state()
            adapters = add_adapters(model.parts, SD1, rank=4, alpha=2, seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
            return adapters.state_dict()

    first, again, other = drawn(1, 5), drawn(1, 6), drawn(2, 5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    downs = [key for key in first if key.endswith("lora_down.weight")]
    assert all(not torch.equal(first[key], other[key]) for key in downs)
    for key in downs:
        bound = first[key][0].numel() ** -0.5  # Kaiming with a = √5 (He et al., 2015): √(6 / ((1 + a²) inputs))
        assert first[key].abs().max() <= bound
        assert first[key].std() == pytest.approx(bound / 3**0.5, rel=0.25)
    assert all(not first[key].any() for key in first if key.endswith("lora_up.weight"))
