"""A new type of network is one file and one line: everything that is done with networks is done with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.a1111.network_views import network_view
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.families import SD1
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import adapters_for, add_adapters, file_shapes
from lora_trainer.network.blocks.block_map import SD
from lora_trainer.network.blocks.weights import factors, resolve
from lora_trainer.network.formats import require_kohya_names
from lora_trainer.network.lora_file import read_lora, save_lora, verify
from lora_trainer.network.modules import group
from lora_trainer.network.ops.bake import bake, baked_parts
from lora_trainer.network.ops.files import Ingredient, merge_files
from lora_trainer.network.ops.info import info
from lora_trainer.network.types import TYPES, type_of
from lora_trainer.network.types.base import NetworkType, Parts, Shape
from lora_trainer.network.types.lowrank import Factors
from lora_trainer.training.state import load_newest, save_state
from tests.network.gate import Gate, GateLayer
from tests.network.made import KEYS, lora, randn, tensors
from tests.network.plain import key_of, of_model, outputs, relative_error
from tests.training.bench import Bench

GATE = Gate()
KEY = KEYS[1]
LIST = "0.5,0.25,1,1,1,-1,1,0,1,1,1,1,0.75,1,1,1,1"


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    TYPES.append(GATE)
    yield
    TYPES.remove(GATE)


@pytest.fixture
def trained(standalone: StandaloneHost, tmp_path: Path) -> Bench:
    """A trainer of the type after three steps."""
    bench = trainer(standalone, tmp_path)
    for _ in range(3):
        bench.trainer.step(bench.step(2))
    return bench


def trainer(standalone: StandaloneHost, root: Path, precision: str = "fp32") -> Bench:
    rates = {"training__text_lr": 1e-2, "training__unet_lr": 1e-2, "network__targets": "attention+conv"}
    return Bench(standalone, root, precision, network_type=GATE, **rates)


@pytest.fixture
def file(trained: Bench, tmp_path: Path) -> Path:
    """What it has learned."""
    adapters = trained.trainer.adapters
    path = tmp_path / "gate.safetensors"
    save_lora(path, adapters.state_dict(), {"ss_base_model_version": "sd_v1"}, "fp32")
    verify(path, adapters)
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_trained(standalone: StandaloneHost, tmp_path: Path, precision: str) -> None:
    bench = trainer(standalone, tmp_path, precision)
    before = {name: tensor.clone() for name, tensor in bench.trainer.adapters.state_dict().items()}
    losses = [float(bench.trainer.step(bench.step(2))) for _ in range(6)]
    after = bench.trainer.adapters.state_dict()
    assert losses[-1] < losses[0]
    assert {name.partition(".")[2] for name in after} == {"gate_v"}
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items() if "_te_" not in name)
    assert {p.dtype for p in bench.trainer.parameters} == {torch.float32}


def test_it_starts_as_the_checkpoint(model: LoadedModel) -> None:
    before = of_model(model)
    adapters = add_adapters(model.parts, SD1, rank=4, alpha=2.0, convolutions=Shape(2, 1.0), kind=GATE)
    assert torch.equal(of_model(model), before)
    assert {type(layer) for layer in adapters.layers.values()} == {GateLayer}


def test_a_state_goes_on_where_it_was(trained: Bench, standalone: StandaloneHost, tmp_path: Path) -> None:
    save_state(tmp_path / "states", trained.trainer, 3)
    again = trainer(standalone, tmp_path)
    assert load_newest(tmp_path / "states", again.trainer) == 3
    losses = [float(bench.trainer.step(bench.step(2))) for bench in (trained, again)]
    assert losses[0] == losses[1]
    states = [bench.trainer.adapters.state_dict() for bench in (trained, again)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_its_file_is_recognised_and_described(file: Path, trained: Bench) -> None:
    found = info(file)
    assert found["kinds"] == {"Gate": len(trained.trainer.adapters.layers)} == {"Gate": 264 + 86}
    assert all(block["unknown"] == block["modules"] and block["norm"] == 0 for block in found["blocks"])
    assert set(file_shapes(read_lora(file)).values()) == {Shape(1, 1.0)}
    with pytest.raises(InputError, match="whose names have dots"):
        require_kohya_names(file, ["clip_l.encoder.x.gate_v"])


def test_its_metadata_names_it() -> None:
    made = GATE.metadata(Shape(4, 2.0), Shape(2, 1.0))
    assert made["ss_network_module"] == "networks.gate"
    assert made["ss_network_args"] == '{"conv_dim": "2", "conv_alpha": "1.0"}'


def with_differences(module: nn.Module, prefix: str, modules: dict[str, dict[str, torch.Tensor]]) -> nn.Module:
    """A copy whose weights have each module's ΔW added."""
    made = copy.deepcopy(module)
    for name, part in made.named_modules():
        parts = modules.get(key_of(prefix, name))
        if parts is not None:
            change = type_of(name, parts).delta(name, parts, part.weight)
            part.weight = nn.Parameter((part.weight.double() + change).float(), requires_grad=False)
    return made


def test_the_difference_is_what_its_layers_compute(model: LoadedModel, file: Path) -> None:
    modules = group(read_lora(file))
    unet = with_differences(model.unet, "lora_unet_", modules)
    text = with_differences(model.text[0].model, "lora_te_", modules)
    before = of_model(model)
    adapters_for(model.parts, read_lora(file))
    assert relative_error(of_model(model), outputs(unet, text)) <= 1e-5
    assert relative_error(before, outputs(unet, text)) > 1e-3


def test_baked_block_weights_are_those_of_its_layers(standalone: StandaloneHost, file: Path) -> None:
    modules = group(read_lora(file))
    ratios = factors(modules, resolve(LIST, SD), 0.5, 0.8)
    baked = bake(read_lora(file), ratios)
    seen = []
    for made in (baked.modules, modules):
        with standalone.session(ModelRequest()) as session:
            adapters = adapters_for(session.model.parts, tensors(made))
            if made is modules:
                adapters.scale_each(ratios)
            seen.append(of_model(session.model))
    assert relative_error(*seen) <= 1e-5
    assert baked.dropped
    assert baked.changed


def test_the_hosts_view_has_what_is_baked() -> None:
    parts = {"gate_v": randn(8).half()}
    module = type("NetworkModuleGate", (), {})()
    vars(module).update(sd_module=None, alpha=None, scale=None, dim=None, dora_scale=None, v=parts["gate_v"])
    key = "diffusion_model_input_blocks_1_1_proj_in"
    view = network_view(SimpleNamespace(name="a", mtime=1.0, modules={key: module}), resolve(LIST, SD), 1, 1)
    assert torch.equal(view.modules[key].v, baked_parts(key, parts, 0.25)["gate_v"])


def test_what_has_no_low_rank_is_not_merged(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a plain LoRA module \(Gate\)"):
        merge_files([Ingredient(file)], tmp_path / "merged.safetensors")


class Outer(NetworkType):
    """ΔW = a bᵀ, which is only read."""

    name = "Outer"
    signatures = (("outer_a", "outer_b"),)

    def factors(self, key: str, parts: Parts, *, finite: bool = True) -> tuple[Factors, tuple[int, ...]]:
        a, b = parts["outer_a"].double(), parts["outer_b"].double()
        return (a[:, None] * self.scale(parts), b[None]), tuple(b.shape)


def test_what_has_a_low_rank_is_merged_with_a_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_trainer.network.types.TYPES", [*TYPES, Outer()])
    outer, plain = {"outer_a": randn(8), "outer_b": randn(6), "scale": torch.tensor(0.5)}, lora(8, 6, 3, 1.5)
    for name, parts in (("outer", outer), ("plain", plain)):
        save_lora(tmp_path / f"{name}.safetensors", tensors({KEY: parts}), {}, "fp32")
    made = merge_files(
        [Ingredient(tmp_path / "outer.safetensors", 0.7), Ingredient(tmp_path / "plain.safetensors", -2.0)],
        tmp_path / "merged.safetensors",
    )
    merged = group(read_lora(made.path))[KEY]
    found = type_of(KEY, merged).delta(KEY, merged, torch.zeros(8, 6))
    wanted = 0.7 * 0.5 * torch.outer(outer["outer_a"], outer["outer_b"]).double()
    wanted -= 2.0 * type_of(KEY, plain).delta(KEY, plain, torch.zeros(8, 6))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert made.facts["ranks"] == [4]


def test_a_run_does_not_go_on_from_a_file_of_another_type(trained: Bench, model: LoadedModel, file: Path) -> None:
    other = add_adapters(model.parts, SD1, rank=2, alpha=1.0)
    with pytest.raises(InputError, match="not a plain LoRA"):
        other.load(read_lora(file))
    with pytest.raises(InputError, match=r"not of the type Gate that this run trains") as caught:
        trained.trainer.adapters.load(other.state_dict())
    assert caught.value.field == "network.continue_from"
