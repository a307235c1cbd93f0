"""Adapters on the views of a model: in the place of each trained layer one of the network's type, named as in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import torch_rng
from lora_trainer.model.clip import name_in_files
from lora_trainer.model.family import ModelFamily
from lora_trainer.network.modules import Tensors
from lora_trainer.network.types import LORA, type_to_train
from lora_trainer.network.types.base import Shape
from lora_trainer.network.types.trainable import AdapterLayer, TrainableType

TEXT_PREFIX = "lora_te"
"""What the prefixes of all text encoders begin with."""


class Adapters:
    """All adapters of one view of the model.

    Args:
        parts: those that are adapted: prefix in LoRA files → view.
        kind: the type of the network.

    Attributes:
        layers: name in files → layer.
    """

    def __init__(self, parts: Mapping[str, nn.Module], kind: TrainableType = LORA) -> None:
        self.kind = kind
        self.layers: dict[str, AdapterLayer] = {}
        for prefix, part in parts.items():
            self.layers |= {kohya_key(prefix, name): layer for name, layer in _adapter_layers(part)}

    def parameters(self, prefix: str = "") -> list[nn.Parameter]:
        """The trained fp32 parameters of the part with this prefix (or of all), those of a layer in their order."""
        return [p for key, layer in self.layers.items() if key.startswith(prefix) for p in layer.trained()]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors under kohya's names, fp32 on the CPU: ``….lora_down.weight``, ``….lora_up.weight``, ``….alpha``."""
        tensors: dict[str, torch.Tensor] = {}
        for key, layer in self.layers.items():
            for name, weight in zip(layer.names, layer.trained(), strict=True):
                tensors[f"{key}.{name}"] = weight.detach().float().cpu().contiguous().clone()
            tensors |= {f"{key}.{name}": constant for name, constant in layer.constants().items()}
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Take over the weights of a file with these modules, ranks and alphas, as far as its type can say them.

        Raises:
            InputError: the type, modules, ranks or alphas are others.
        """
        self.kind.require(tensors)
        shapes = self.kind.shapes(tensors)
        missing = self.layers.keys() ^ shapes.keys()
        if missing:
            raise InputError(
                "network.continue_from: the file and this run train different layers ({count} differ, first {first}); "
                "set the layers and learning rates as they were.",
                field="network.continue_from",
                count=len(missing),
                first=sorted(missing)[0],
            )
        for key, layer in self.layers.items():
            if not layer.shape.is_stored_as(shapes[key]):
                raise InputError(
                    "network.continue_from: the file has rank {rank} and alpha {alpha:g}; set network.rank and "
                    "network.alpha to these.",
                    field="network.continue_from",
                    rank=shapes[key].rank,
                    alpha=shapes[key].alpha,
                )
        self.copy_from(tensors)

    @torch.no_grad()
    def copy_from(self, tensors: Tensors) -> None:
        """Copy weights of matching names and shapes into the adapters; 1×1 convolutions may be written as linears.

        Raises:
            InputError: the weights have other shapes.
        """
        for key, layer in self.layers.items():
            for name, weight in zip(layer.names, layer.trained(), strict=True):
                value = tensors[f"{key}.{name}"]
                if (value.shape[:1], value.numel()) != (weight.shape[:1], weight.numel()):
                    raise wrong_architecture(f"{key}.{name.removesuffix('.weight')} has the size {tuple(value.shape)}")
                weight.copy_(value.reshape(weight.shape))

    def draw(self, seed: int) -> None:
        """Start anew, each layer from the seed and its name."""
        for key, layer in self.layers.items():
            layer.start(torch_rng(seed, "init", key))

    def set_multiplier(self, multiplier: float) -> None:
        """Scale the effect of all adapters, as the number in ``<lora:name:0.8>`` does."""
        for layer in self.layers.values():
            layer.scaling = multiplier * layer.shape.alpha / layer.shape.rank

    def scale_each(self, factors: Mapping[str, float | torch.Tensor]) -> None:
        """Scale each layer by its own factor, kohya's key → factor; a tensor's gradient flows through."""
        for key, layer in self.layers.items():
            layer.scaling = factors[key] * (layer.shape.alpha / layer.shape.rank)

    @contextmanager
    def cast_once(self, dtype: torch.dtype) -> Iterator[None]:
        """Within, the weights are there in ``dtype``: cast together, two operations instead of two for each layer.

        Gradients flow back through the same cast. The weights must not change within.
        """
        weights = self.parameters()
        if all(weight.dtype == dtype for weight in weights):
            yield
            return
        flat = torch.cat([weight.reshape(-1) for weight in weights]).to(dtype)
        parts = zip(weights, flat.split([weight.numel() for weight in weights]), strict=True)
        cast = iter([part.view(weight.shape) for weight, part in parts])
        layers = list(self.layers.values())
        for layer in layers:
            layer.cast = tuple(next(cast) for _ in layer.names)
        try:
            yield
        finally:
            for layer in layers:
                layer.cast = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone."""
        for layer in self.layers.values():
            layer.disabled = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.disabled = False


def add_adapters(
    parts: Mapping[str, nn.Module],
    family: ModelFamily,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    convolutions: Shape | None = None,
    seed: int = 0,
    kind: TrainableType = LORA,
) -> Adapters:
    """Put new adapters on the views, fp32, which change nothing yet; the views' own parameters are frozen.

    Args:
        parts: what is adapted: prefix in LoRA files → view.
        family: tells which layers.
        rank: inner size, for types that have one.
        alpha: the effect is scaled by alpha / rank; 0 stands for the rank.
        dropout: share of inputs left out while training.
        convolutions: rank and alpha of the 3×3 convolutions; ``None`` leaves the resnets alone.
        seed: of the initial weights.
        kind: the type of the network.

    Raises:
        InputError: a view has none of the layers.
    """
    shape = Shape(rank, alpha or float(rank))
    for prefix, part in parts.items():
        target = family.part(prefix)
        wanted = {n: shape for n, m in part.named_modules() if target.layers.fullmatch(n) and _adaptable(m)}
        if target.convolutions is not None and convolutions is not None:
            conv = Shape(convolutions.rank, convolutions.alpha or float(convolutions.rank))
            for name, module in part.named_modules():
                if target.convolutions.fullmatch(name) and _adaptable(module):
                    wanted[name] = conv if _is_3x3(module) else shape
        if not wanted:
            raise InputError(
                "network.targets: this checkpoint has none of the layers to train.", field="network.targets"
            )
        _inject(part, kind, wanted, dropout)
    adapters = Adapters(parts, kind)
    adapters.draw(seed)
    return adapters


def adapters_for(parts: Mapping[str, nn.Module], tensors: Tensors) -> Adapters:
    """Put the adapters of a file on the views, whatever its ranks.

    Args:
        parts: all parts of the model: prefix in LoRA files → view.
        tensors: of the file.

    Raises:
        InputError: keys of another architecture, or a type that has no adapters.
    """
    kind = type_to_train(tensors)
    shapes = kind.shapes(tensors)
    unknown = set(shapes)
    for prefix, part in parts.items():
        names = {kohya_key(prefix, n): n for n, m in part.named_modules() if _adaptable(m)}
        wanted = {names[key]: shape for key, shape in shapes.items() if key in names}
        unknown -= names.keys()
        if wanted:
            _inject(part, kind, wanted, 0.0)
    if unknown:
        raise wrong_architecture(sorted(unknown)[0])
    adapters = Adapters(parts, kind)
    adapters.copy_from(tensors)
    return adapters


def remove_adapters(*parts: nn.Module) -> None:
    """Take all adapters off the views; the layers that they stood for are in their places again."""
    for part in parts:
        for name, layer in list(_adapter_layers(part)):
            _replace(part, name, layer.base_layer)


def wrong_architecture(detail: str) -> InputError:
    """The sentence for a LoRA that does not belong to the loaded checkpoint."""
    return InputError(
        "This LoRA was made for another kind of checkpoint ({detail}); load a checkpoint of its kind.",
        field="network.continue_from",
        detail=detail,
    )


def file_shapes(tensors: Tensors) -> dict[str, Shape]:
    """Rank and alpha of each module of a file that can be put on the views; a missing or zero alpha is the rank.

    Raises:
        InputError: tensors of a type that has no adapters, or damaged ones.
    """
    return type_to_train(tensors).shapes(tensors)


def kohya_key(prefix: str, name: str) -> str:
    """``lora_unet_`` and a module name with dots as underscores, as kohya and the WebUI have it."""
    name = name_in_files(name) if prefix.startswith(TEXT_PREFIX) else name
    return prefix + name.replace(".", "_")


def _inject(part: nn.Module, kind: TrainableType, shapes: Mapping[str, Shape], dropout: float) -> None:
    """Put a layer of the type in the place of each named one; all that the view has is frozen."""
    part.requires_grad_(False)
    for name, shape in shapes.items():
        _replace(part, name, kind.layer(part.get_submodule(name), shape, dropout))


def _replace(part: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(part.get_submodule(parent), child, module)


def _adapter_layers(part: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    for name, module in part.named_modules():
        if isinstance(module, AdapterLayer):
            yield name, module


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
