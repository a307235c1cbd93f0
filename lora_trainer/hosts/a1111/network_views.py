"""A network of the WebUI's Lora extension, seen with block weights.

A view is a shallow copy of the host's ``Network``: the tensors are the same objects, and what a block weight changes
stands on copies of the modules. So neither the host's classes nor its networks are changed, no file is read, and the
network without block weights is there as it was. The view's name has the exact weights in it; layers compare names to
see whether they must be merged anew (``networks.network_apply_weights``), so that no change of a weight is missed.

The numbers are those that :mod:`lora_trainer.network.ops.bake` writes, both from the module's type: preview and file
give the same layers to the bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from lora_trainer.network.blocks.weights import BlockWeights
from lora_trainer.network.types import type_in_host


def network_view(network: Any, weights: BlockWeights | None, te: float, unet: float, dyn: int | None = None) -> Any:
    """The network with block weights.

    Args:
        network: of the host (``network.Network``).
        weights: what its modules are multiplied by; ``None`` for a copy that only has its own multipliers.
        te: the text encoders' multiplier.
        unet: the UNet's multiplier.
        dyn: the ranks that are used; all when ``None``.
    """
    view = copy.copy(network)
    view.lora_train_original = network
    rules = ",".join(map(str, weights.rules)) if weights else ""
    view.name = f"{network.name} lbw={weights.text if weights else ''} lbwe={rules} {network.mtime!r}"
    view.te_multiplier, view.unet_multiplier, view.dyn_dim = te, unet, dyn
    view.modules = {}
    for key, module in network.modules.items():
        ratio = weights.ratio(key) if weights else 1.0
        if ratio or isinstance(module.sd_module, torch.nn.MultiheadAttention):  # there q, k, v and out need each other
            view.modules[key] = _scaled(module, ratio, view)
    return view


def original(network: Any) -> Any:
    """The host's own network of a view; any other network as it is."""
    return getattr(network, "lora_train_original", network)


def _scaled(module: Any, ratio: float, network: Any) -> Any:
    """A copy of the module whose effect is ``ratio`` times as strong."""
    made = copy.copy(module)
    made.network = network
    if ratio == 1:
        return made
    kind = type_in_host(type(module).__name__)
    if kind is None or kind.proportional is None or module.dora_scale is not None:
        # The effect of DoRA and OFT is not proportional to alpha, but what they add to the weights can be scaled.
        made.multiplier = lambda: type(module).multiplier(made) * ratio
    else:
        kind.scale_in_host(made, ratio)
    return made
