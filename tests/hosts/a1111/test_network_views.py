"""Views against the baked tensors, with stand-ins for the host's classes; the real ones are in tests/webui/real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_trainer.hosts.a1111.network_views import network_view, original
from lora_trainer.model.block_lists import SD
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.network.ops.bake import baked_parts
from tests.network.made import Parts, lokr, lora, randn

INSIDE, OUTSIDE = "diffusion_model_input_blocks_5_1_proj_in", "diffusion_model_middle_block_1_proj_in"
LIST = ",".join(["1", *["1", "1", "1", "0.37", "1", "1"], "0", *["1"] * 9])


class Module:
    """As the host's ``NetworkModule``."""

    def __init__(self, network: Any, parts: Parts, **tensors: str) -> None:
        self.network, self.sd_module, self.bias = network, torch.nn.Linear(1, 1), None
        self.alpha = parts["alpha"].item() if "alpha" in parts else None
        self.scale = parts["scale"].item() if "scale" in parts else None
        self.dora_scale = parts.get("dora_scale")
        self.dim: int | None = None
        for attribute, name in tensors.items():
            setattr(self, attribute, parts[name])

    def multiplier(self) -> float:
        return float(self.network.unet_multiplier)

    def calc_scale(self) -> float:
        if self.scale is not None:
            return float(self.scale)
        return float(self.alpha / self.dim) if self.dim is not None and self.alpha is not None else 1.0


class NetworkModuleLora(Module):
    pass


class NetworkModuleLokr(Module):
    pass


class NetworkModuleNew(Module):
    """A kind that nobody knows yet."""


def network(**modules: Any) -> Any:
    made = SimpleNamespace(name="net", mtime=1.0, te_multiplier=1.0, unet_multiplier=1.0, dyn_dim=None, modules={})
    for key, (kind, parts, dim, tensors) in modules.items():
        made.modules[key] = kind(made, parts, **tensors)
        made.modules[key].dim = dim
    return made


def view_of(net: Any, te: float = 1.0, unet: float = 1.0) -> Any:
    return network_view(net, resolve(LIST, SD), te, unet)


@pytest.mark.parametrize(
    "parts", [lora(8, 6, 3, 1.7), lora(8, 6, 3, None), {**lora(8, 6, 3, 1.7), "scale": torch.tensor(0.7)}]
)
def test_the_scale_is_that_of_the_baked_file(parts: Parts) -> None:
    net = network(**{INSIDE: (NetworkModuleLora, parts, 3, {})})
    reread = network(**{INSIDE: (NetworkModuleLora, baked_parts(INSIDE, parts, 0.37), 3, {})})
    assert view_of(net).modules[INSIDE].calc_scale() == reread.modules[INSIDE].calc_scale()


def test_where_there_is_no_dim_the_tensors_are_those_of_the_baked_file() -> None:
    parts = {name: part.bfloat16() for name, part in lokr("", 1.0).items()}
    net = network(**{INSIDE: (NetworkModuleLokr, parts, None, {"w1": "lokr_w1", "w2": "lokr_w2"})})
    baked = baked_parts(INSIDE, parts, 0.37)
    module = view_of(net).modules[INSIDE]
    assert torch.equal(module.w1, baked["lokr_w1"])
    assert torch.equal(module.w2, baked["lokr_w2"])
    assert module.w2.dtype == baked["lokr_w2"].dtype == torch.float32
    assert net.modules[INSIDE].w1 is parts["lokr_w1"]


@pytest.mark.parametrize("kind", [NetworkModuleLora, NetworkModuleNew])
def test_what_alpha_cannot_scale_is_scaled_behind(kind: type[Module]) -> None:
    parts = {**lora(8, 6, 3, 1.7), **({"dora_scale": randn(1, 6)} if kind is NetworkModuleLora else {})}
    net = network(**{INSIDE: (kind, parts, 3, {})})
    view = view_of(net, unet=0.5)
    assert view.modules[INSIDE].multiplier() == 0.5 * 0.37
    view.unet_multiplier = 0.0
    assert view.modules[INSIDE].multiplier() == 0
    assert view.modules[INSIDE].calc_scale() == net.modules[INSIDE].calc_scale()


def test_a_block_at_0_is_left_out_except_of_fused_attention() -> None:
    net = network(**{key: (NetworkModuleLora, lora(8, 6, 3, 1.7), 3, {}) for key in (INSIDE, OUTSIDE)})
    assert list(view_of(net).modules) == [INSIDE]
    net.modules[OUTSIDE].sd_module = torch.nn.MultiheadAttention(4, 1)
    assert view_of(net).modules[OUTSIDE].calc_scale() == 0


def test_the_hosts_network_is_not_changed() -> None:
    net = network(**{key: (NetworkModuleLora, lora(8, 6, 3, 1.7), 3, {}) for key in (INSIDE, OUTSIDE)})
    before = {key: dict(vars(module)) for key, module in net.modules.items()}
    view = view_of(net, 0.3, 0.4)
    assert {key: vars(module) for key, module in net.modules.items()} == before
    assert (net.name, net.te_multiplier, net.unet_multiplier) == ("net", 1.0, 1.0)
    assert (view.te_multiplier, view.unet_multiplier) == (0.3, 0.4)
    assert all(module.network is view for module in view.modules.values())
    assert original(view) is original(net) is net


def test_names_differ_by_every_weight_and_by_the_files_time() -> None:
    net = network()
    lists = [LIST, LIST.replace("0.37", "0.37000000000000005"), LIST.replace("0.37", "0.3701"), "ALL"]
    views = [network_view(net, resolve(lbw, SD), 1, 1) for lbw in lists]
    views += [network_view(net, resolve(LIST, SD, lbwe=rule), 1, 1) for rule in ("IN05:attn:0", "IN05:attn:0.1")]
    net.mtime = 2.0
    views.append(network_view(net, resolve(LIST, SD), 1, 1))
    assert len({view.name for view in views} | {net.name}) == 8
