"""A LoRA file and what is read of it (extensions-builtin/Lora/network.py)."""

import os
from collections import namedtuple

from safetensors import safe_open

NetworkWeights = namedtuple("NetworkWeights", ["network_key", "sd_key", "w", "sd_module"])


class NetworkOnDisk:
    def __init__(self, name, filename):
        self.name, self.filename = name, filename
        with safe_open(filename, framework="pt") as file:
            self.metadata = file.metadata() or {}
        self.alias = self.metadata.get("ss_output_name", self.name)
        self.hash = self.shorthash = None

    def read_hash(self):
        self.hash = self.hash or f"{os.path.getsize(self.filename):012x}"
        self.shorthash = self.hash[:12]


class Network:
    def __init__(self, name, network_on_disk):
        self.name, self.network_on_disk = name, network_on_disk
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim = self.mtime = self.mentioned_name = None
        self.modules, self.bundle_embeddings = {}, {}


class NetworkModule:
    def __init__(self, net, weights):
        self.network, self.network_key, self.sd_key, self.sd_module = net, *weights[:2], weights.sd_module
        self.shape = self.sd_module.weight.shape
        self.dim, self.bias = None, weights.w.get("bias")
        self.alpha = weights.w["alpha"].item() if "alpha" in weights.w else None
        self.scale = weights.w["scale"].item() if "scale" in weights.w else None
        self.dora_scale = weights.w.get("dora_scale")

    def multiplier(self):
        return self.network.te_multiplier if "transformer" in self.sd_key[:20] else self.network.unet_multiplier

    def calc_scale(self):
        if self.scale is not None:
            return self.scale
        return self.alpha / self.dim if self.dim is not None and self.alpha is not None else 1.0

    def finalize_updown(self, updown, orig_weight, output_shape, ex_bias=None):
        if ex_bias is not None:
            ex_bias = ex_bias * self.multiplier()
        return updown.reshape(orig_weight.shape) * self.calc_scale() * self.multiplier(), ex_bias

    def calc_updown(self, target):
        raise NotImplementedError
