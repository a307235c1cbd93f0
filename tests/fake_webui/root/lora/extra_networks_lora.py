import networks
from modules import extra_networks


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    """The Lora extension's object for ``<lora:…>`` tags (extra_networks_lora.py)."""

    def __init__(self):
        super().__init__("lora")
        self.errors = {}

    def activate(self, p, params_list):
        self.errors.clear()
        names, te_multipliers, unet_multipliers, dyn_dims = [], [], [], []
        for params in params_list:
            names.append(params.positional[0])
            te_multiplier = float(params.positional[1]) if len(params.positional) > 1 else 1.0
            te_multiplier = float(params.named.get("te", te_multiplier))
            unet_multiplier = float(params.positional[2]) if len(params.positional) > 2 else te_multiplier
            unet_multiplier = float(params.named.get("unet", unet_multiplier))
            dyn_dim = int(params.positional[3]) if len(params.positional) > 3 else None
            dyn_dims.append(int(params.named["dyn"]) if "dyn" in params.named else dyn_dim)
            te_multipliers.append(te_multiplier)
            unet_multipliers.append(unet_multiplier)
        networks.load_networks(names, te_multipliers, unet_multipliers, dyn_dims)

    def deactivate(self, p):
        self.errors.clear()


def install():
    """What the extension's script does at the WebUI's start (scripts/lora_script.py)."""
    import lora_patches
    from modules import script_callbacks

    networks.list_available_networks()
    networks.originals = lora_patches.LoraPatches()
    callbacks = script_callbacks.callback_map["callbacks_model_loaded"]
    script_callbacks.add_callback(callbacks, networks.assign_network_names_to_compvis_modules)
    networks.extra_network_lora = ExtraNetworkLora()
    extra_networks.register_extra_network(networks.extra_network_lora)
    extra_networks.register_extra_network_alias(networks.extra_network_lora, "lyco")
