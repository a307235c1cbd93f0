"""Every layer asks before it computes whether it has the wanted networks in its weights (lora_patches.py)."""

import networks
import torch

LAYERS = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm


class LoraPatches:
    def __init__(self):
        self.kept = {
            (layer, name): getattr(layer, name) for layer in LAYERS for name in ("forward", "_load_from_state_dict")
        }
        for layer in LAYERS:
            layer.forward = self._forward(self.kept[layer, "forward"])
            layer._load_from_state_dict = self._load(self.kept[layer, "_load_from_state_dict"])

    @staticmethod
    def _forward(original):
        def forward(self, input):
            networks.network_apply_weights(self)
            return original(self, input)

        return forward

    @staticmethod
    def _load(original):
        def load(self, *args, **kwargs):
            networks.network_reset_cached_weight(self)
            return original(self, *args, **kwargs)

        return load

    def undo(self):
        for (layer, name), original in self.kept.items():
            setattr(layer, name, original)
