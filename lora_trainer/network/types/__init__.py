"""The types of networks. A new one is a file here, and its line in :data:`TYPES`."""

from __future__ import annotations

from collections.abc import Iterable

from lora_trainer.core.errors import InputError
from lora_trainer.network.types.base import MAGNITUDE, NetworkType, Parts
from lora_trainer.network.types.dora import DoRA
from lora_trainer.network.types.full import Full
from lora_trainer.network.types.glora import GLoRA
from lora_trainer.network.types.ia3 import IA3
from lora_trainer.network.types.loha import LoHa
from lora_trainer.network.types.lokr import LoKr
from lora_trainer.network.types.lora import LoRA
from lora_trainer.network.types.norm import Norm
from lora_trainer.network.types.oft import OFT
from lora_trainer.network.types.trainable import TrainableType

LORA = LoRA()
TYPES: list[NetworkType] = [
    LORA,
    LoHa(),
    LoKr(),
    GLoRA(),
    IA3(),
    Full(),
    Norm(),
    OFT(),
]
"""All types in the order in which a module is compared with them. A DoRA is one of these with a magnitude."""


def type_of(key: str, parts: Parts) -> NetworkType:
    """The type of a file's module: LoRA (also of convolutions), LoHa, LoKr …, or such a one as DoRA.

    Args:
        key: the module's name, for the sentence.
        parts: its tensors.

    Raises:
        InputError: the WebUI could not load it either.
    """
    for each in TYPES:
        if each.recognises(key, parts):
            return DoRA(each) if MAGNITUDE in parts else each
    raise InputError(
        "{key} is no LoRA or LyCORIS module that is known here (it has {parts}); the file may be incomplete.",
        key=key,
        parts=", ".join(sorted(parts))[:200],
    )


def type_in_host(name: str) -> NetworkType | None:
    """The type of a module of the WebUI's Lora extension by its class; ``None`` for a class that is not known."""
    return next((each for each in TYPES if each.host_class == name), None)


def type_to_train(names: Iterable[str]) -> TrainableType:
    """The type that a file with tensors of these names can be trained on from.

    Raises:
        InputError: none can.
    """
    names = list(names)
    trainable = (each for each in TYPES if isinstance(each, TrainableType))
    found = next((each for each in trainable if each.foreign(names) is None), LORA)
    found.require(names)
    return found


def tensor_names() -> frozenset[str]:
    """All tensors that a module of any type may have."""
    return frozenset({MAGNITUDE}).union(*(each.tensor_names() for each in TYPES))
