import network


class ModuleTypeFull:
    def create_module(self, net, weights):
        return NetworkModuleFull(net, weights) if "diff" in weights.w else None


class NetworkModuleFull(network.NetworkModule):
    """A difference of whole weights."""

    def __init__(self, net, weights):
        super().__init__(net, weights)
        self.weight, self.ex_bias = weights.w["diff"], weights.w.get("diff_b")

    def calc_updown(self, orig_weight):
        return self.finalize_updown(self.weight.float(), orig_weight, self.weight.shape, self.ex_bias)
