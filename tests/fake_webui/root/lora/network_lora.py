import network


class ModuleTypeLora:
    def create_module(self, net, weights):
        is_lora = {"lora_up.weight", "lora_down.weight"} <= set(weights.w)
        return NetworkModuleLora(net, weights) if is_lora else None


class NetworkModuleLora(network.NetworkModule):
    """Hu et al. 2021, also of convolutions."""

    def __init__(self, net, weights):
        super().__init__(net, weights)
        self.up, self.down = weights.w["lora_up.weight"].float(), weights.w["lora_down.weight"].float()
        self.dim = self.down.shape[0]

    def calc_updown(self, orig_weight):
        rank = self.network.dyn_dim or self.dim
        updown = self.up.flatten(1)[:, :rank] @ self.down.flatten(1)[:rank]
        return self.finalize_updown(updown, orig_weight, orig_weight.shape)
