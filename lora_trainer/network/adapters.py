"""LoRA adapters on the view's modules: PEFT holds them, kohya's key names address them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import torch_rng
from lora_trainer.model.clip import name_in_files
from lora_trainer.model.targets import ATTENTION, CONVOLUTION, TEXT
from lora_trainer.network.types import LORA

ADAPTER = "lora_train"
UNET_PREFIX = "lora_unet_"
TEXT_PREFIX = "lora_te_"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one adapted module."""

    rank: int
    alpha: float

    def is_stored_as(self, stored: Shape) -> bool:
        """Whether a file with these numbers is one of this shape.

        Kohya stores alpha in the weights' type: 0.7 comes back from fp16 as 0.7001953. And what a person reads of it in
        a sentence of ours has six digits.
        """
        rounded = (
            float(torch.tensor(self.alpha).to(dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)
        )
        return self.rank == stored.rank and (
            stored.alpha in rounded or math.isclose(self.alpha, stored.alpha, rel_tol=1e-5)
        )


class Adapters:
    """All adapters of one view of the model.

    Args:
        unet: the UNet's view, or ``None`` when it is not adapted.
        text: the text encoder's view, or ``None``.
    """

    def __init__(self, unet: nn.Module | None, text: nn.Module | None) -> None:
        self._parts = {UNET_PREFIX: unet, TEXT_PREFIX: text}
        self.layers: dict[str, LoraLayer] = {}
        for prefix, part in self._parts.items():
            if part is not None:
                self.layers |= {kohya_key(prefix, name): layer for name, layer in _lora_layers(part)}

    def parameters(self, prefix: str = "") -> list[nn.Parameter]:
        """The trained fp32 parameters below ``lora_unet_`` or ``lora_te_`` (or all), down before up."""
        return [p for key, layer in self.layers.items() if key.startswith(prefix) for p in _weights(layer)]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors under kohya's names, fp32 on the CPU: ``….lora_down.weight``, ``….lora_up.weight``, ``….alpha``."""
        tensors: dict[str, torch.Tensor] = {}
        for key, layer in self.layers.items():
            down, up = _weights(layer)
            tensors[f"{key}.lora_down.weight"] = down.detach().float().cpu().contiguous().clone()
            tensors[f"{key}.lora_up.weight"] = up.detach().float().cpu().contiguous().clone()
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[ADAPTER]))
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Take over the weights of a file with these modules, ranks and alphas, as far as its type can say them.

        Raises:
            InputError: the modules, ranks or alphas are others.
        """
        shapes = file_shapes(tensors)
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
            own = Shape(layer.r[ADAPTER], float(layer.lora_alpha[ADAPTER]))
            if not own.is_stored_as(shapes[key]):
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
            for part, weight in zip(("lora_down", "lora_up"), _weights(layer), strict=True):
                value = tensors[f"{key}.{part}.weight"]
                if (value.shape[0], value.numel()) != (weight.shape[0], weight.numel()):
                    raise wrong_architecture(f"{key}.{part} has the size {tuple(value.shape)}")
                weight.copy_(value.reshape(weight.shape))

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Start anew: down uniform in ±1/√inputs (Kaiming with a = √5), up zero, each layer keyed by its name."""
        for key, layer in self.layers.items():
            down, up = _weights(layer)
            bound = 1 / math.sqrt(down[0].numel())
            drawn = torch.rand(down.shape, generator=torch_rng(seed, "init", key))
            down.copy_((2 * drawn - 1) * bound)
            up.zero_()

    def set_multiplier(self, multiplier: float) -> None:
        """Scale the effect of all adapters, as the number in ``<lora:name:0.8>`` does."""
        for layer in self.layers.values():
            layer.scaling[ADAPTER] = multiplier * layer.lora_alpha[ADAPTER] / layer.r[ADAPTER]

    def scale_each(self, factors: Mapping[str, float | torch.Tensor]) -> None:
        """Scale each layer by its own factor, kohya's key → factor; a tensor's gradient flows through."""
        for key, layer in self.layers.items():
            layer.scaling[ADAPTER] = factors[key] * (layer.lora_alpha[ADAPTER] / layer.r[ADAPTER])

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
        cast = [part.view(weight.shape) for weight, part in parts]
        layers = list(self.layers.values())
        for layer, pair in zip(layers, zip(cast[::2], cast[1::2], strict=True), strict=True):
            layer.cast = pair
        try:
            yield
        finally:
            for layer in layers:
                layer.cast = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone."""
        for layer in self.layers.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False


def add_adapters(
    unet: nn.Module | None,
    text: nn.Module | None,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    convolutions: Shape | None = None,
    seed: int = 0,
) -> Adapters:
    """Put new adapters on the views: down Kaiming-uniform(√5), up zero (Hu et al., 2021), fp32.

    Args:
        unet: the UNet's view; its 192 attention and feed-forward layers are adapted.
        text: the text encoder's view; its attention and MLP layers are adapted.
        rank: inner size.
        alpha: the effect is scaled by alpha / rank; 0 stands for the rank.
        dropout: share of inputs left out while training.
        convolutions: rank and alpha of the 3×3 convolutions; ``None`` leaves the resnets alone.
        seed: of the initial weights.
    """
    shape = Shape(rank, alpha or float(rank))
    for part, pattern in ((unet, ATTENTION), (text, TEXT)):
        if part is None:
            continue
        wanted = {n: shape for n, m in part.named_modules() if pattern.fullmatch(n) and _adaptable(m)}
        if part is unet and convolutions is not None:
            conv = Shape(convolutions.rank, convolutions.alpha or float(convolutions.rank))
            for name, module in part.named_modules():
                if CONVOLUTION.fullmatch(name) and _adaptable(module):
                    wanted[name] = conv if _is_3x3(module) else shape
        _inject(part, wanted, dropout)
    adapters = Adapters(unet, text)
    adapters.draw(seed)
    return adapters


def adapters_for(unet: nn.Module, text: nn.Module, tensors: Tensors) -> Adapters:
    """Put the adapters of a LoRA file on the views, whatever its ranks.

    Raises:
        InputError: keys of another architecture or network type.
    """
    shapes = file_shapes(tensors)
    unknown = set(shapes)
    for prefix, part in ((UNET_PREFIX, unet), (TEXT_PREFIX, text)):
        names = {kohya_key(prefix, n): n for n, m in part.named_modules() if _adaptable(m)}
        wanted = {names[key]: shape for key, shape in shapes.items() if key in names}
        unknown -= names.keys()
        if wanted:
            _inject(part, wanted, 0.0)
    if unknown:
        raise wrong_architecture(sorted(unknown)[0])
    adapters = Adapters(unet, text)
    adapters.copy_from(tensors)
    return adapters


def remove_adapters(*parts: nn.Module) -> None:
    """Take all adapters off the views; the modules that they wrapped stand in their places again."""
    for part in parts:
        for name, layer in list(_lora_layers(part)):
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, layer.get_base_layer())
        vars(part).pop("peft_config", None)


def wrong_architecture(detail: str) -> InputError:
    """The sentence for a LoRA that does not belong to the loaded checkpoint."""
    return InputError(
        "This LoRA was made for another kind of checkpoint ({detail}); load a checkpoint of its kind.",
        field="network.continue_from",
        detail=detail,
    )


def file_shapes(tensors: Tensors) -> dict[str, Shape]:
    """Rank and alpha of each module of a LoRA file; a missing or zero alpha is the rank.

    Raises:
        InputError: tensors of a network type other than plain LoRA, or damaged ones.
    """
    LORA.require(tensors)
    shapes: dict[str, Shape] = {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        if part == "lora_down.weight":
            shapes[key] = _file_shape(key, tensor, tensors.get(f"{key}.alpha"))
    ups = {name.partition(".")[0] for name in tensors if name.endswith(".lora_up.weight")}
    incomplete = sorted(ups ^ shapes.keys())
    if incomplete or not shapes:
        raise _incomplete(f"{incomplete[0]} lacks lora_up or lora_down" if incomplete else "no LoRA weights in it")
    return shapes


def _file_shape(key: str, down: torch.Tensor, alpha: torch.Tensor | None) -> Shape:
    if down.ndim < 2 or not down.numel() or (alpha is not None and alpha.numel() != 1):
        raise _incomplete(f"{key} is damaged")
    rank = down.shape[0]
    return Shape(rank, (float(alpha) if alpha is not None else 0.0) or float(rank))


def _incomplete(detail: str) -> InputError:
    return InputError("This is not a complete LoRA file ({detail}).", field="network.continue_from", detail=detail)


def kohya_key(prefix: str, name: str) -> str:
    """``lora_unet_`` and a module name with dots as underscores, as kohya and the WebUI have it."""
    name = name_in_files(name) if prefix == TEXT_PREFIX else name
    return prefix + name.replace(".", "_")


def _inject(part: nn.Module, shapes: dict[str, Shape], dropout: float) -> None:
    """Wrap the named modules of ``part``; its own parameters are frozen by PEFT."""
    if not shapes:
        raise InputError("network.targets: this checkpoint has none of the layers to train.", field="network.targets")
    usual = Counter(shapes.values()).most_common(1)[0][0]
    others = {name: shape for name, shape in shapes.items() if shape != usual}
    config = LoraConfig(
        r=usual.rank,
        lora_alpha=usual.alpha,  # an int in PEFT's annotation, but it computes with any number
        target_modules=list(shapes),
        lora_dropout=dropout,
        rank_pattern={name: shape.rank for name, shape in others.items()},
        alpha_pattern={name: shape.alpha for name, shape in others.items()},
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws initial weights, which are not used
        inject_adapter_in_model(config, part, adapter_name=ADAPTER)
    for _, layer in _lora_layers(part):
        layer.__class__ = _LIGHT.get(type(layer), type(layer))
        for weight in _weights(layer):
            weight.data = weight.data.float()  # PEFT takes the base's type; adapters are trained in fp32
            weight.requires_grad_(True)


class _Light:
    """PEFT's layer with less to do: W x + B(s A x).

    The scaling s is on the few inner values instead of all outputs. The adapter computes in the layer's type, where
    PEFT casts inputs to the adapter's fp32.
    """

    cast: tuple[torch.Tensor, torch.Tensor] | None = None
    """The weights in the type that is computed in, while :meth:`Adapters.cast_once` holds them."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out), or (B, in, H, W) → (B, out, H', W')."""
        result = self.base_layer(x)
        if self._disable_adapters:
            return result
        down, up = self.cast or (weight.to(result.dtype) for weight in _weights(self))
        inner = _apply(self.lora_A[ADAPTER], self.lora_dropout[ADAPTER](x.to(result.dtype)), down)
        return result + _apply(self.lora_B[ADAPTER], inner * self.scaling[ADAPTER], up)


def _apply(layer: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A linear or a convolution without bias, with this weight in place of its own."""
    return layer._conv_forward(x, weight, None) if isinstance(layer, nn.Conv2d) else nn.functional.linear(x, weight)


_LIGHT = {kind: type(f"Light{kind.__name__}", (_Light, kind), {}) for kind in (lora.Linear, lora.Conv2d)}


def _lora_layers(part: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in part.named_modules():
        if isinstance(module, LoraLayer) and isinstance(module, BaseTunerLayer):
            yield name, module


def _weights(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return down.weight, up.weight


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
