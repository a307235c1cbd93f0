"""OFT: the weight is multiplied by an orthogonal matrix (Qiu et al., 2023), whose size no number in the file scales."""

from __future__ import annotations

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.network.types.base import Base, NetworkType, Parts


class OFT(NetworkType):
    """``oft_blocks`` of kohya, ``oft_diag`` of LyCORIS. Only a host's view has block weights other than 0 and 1."""

    name = "OFT"
    signatures = (("oft_blocks",), ("oft_diag",))
    proportional = None
    host_class = "NetworkModuleOFT"

    def scaled(self, key: str, parts: Parts, ratio: float, base: Base | None = None) -> dict[str, torch.Tensor]:
        """Refuse it: raises :class:`InputError`."""
        raise InputError(
            "{key} is an OFT module, which can only be baked at 0 or 1; set its block to one of these.", key=key
        )
