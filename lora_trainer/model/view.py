"""The model that is already loaded, seen as diffusers and transformers modules that share its parameters.

No weight is copied: the modules are built on the ``meta`` device and given the *live* parameter objects,
so a later ``.to(device)`` of the owner moves both. Adapters live on the view's modules only, so the
owner's modules never see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, create_unet_diffusers_config_from_ldm
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_trainer.core.errors import RunError
from lora_trainer.model.clip import own_names, tower
from lora_trainer.model.family import UNET


def unet_view(parameters: Mapping[str, nn.Parameter], config: Mapping[str, Any]) -> UNet2DConditionModel:
    """An LDM UNet as a diffusers one.

    Args:
        parameters: the live parameters, with LDM names below ``model.diffusion_model.``.
        config: the checkpoint's yaml.

    Raises:
        RunError: the parameters are not those of the yaml's shape.
    """
    named = {UNET.stored + name.removeprefix(UNET.stored): value for name, value in parameters.items()}
    try:
        unet_config = create_unet_diffusers_config_from_ldm(_with_defaults(config), named)
        converted = convert_ldm_unet_checkpoint(named, unet_config)
        with torch.device("meta"):
            view = UNet2DConditionModel(**unet_config)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise RunError(
            "The checkpoint's .yaml does not describe its UNet ({error}); put the right .yaml beside the checkpoint.",
            error=f"{type(error).__name__} {error}".strip(),
        ) from error
    return _share(view, converted, len(named))


def text_view(parameters: Mapping[str, nn.Parameter], config: CLIPTextConfig) -> CLIPTextModel:
    """A CLIP text encoder that shares ``parameters``, which have the names of a checkpoint (``text_model.…``).

    Raises:
        RunError: the parameters are not those of ``config``'s shape.
    """
    with torch.device("meta"):
        view = CLIPTextModel(config)
    _share(view, own_names(view, parameters), len(parameters))
    embeddings = tower(view).embeddings
    device = embeddings.token_embedding.weight.device
    embeddings.position_ids = torch.arange(config.max_position_embeddings, device=device).expand(1, -1)
    return view


def _share(view: nn.Module, parameters: Mapping[str, nn.Parameter], count: int) -> Any:
    names = {name for name, _ in view.named_parameters()}
    shared = {name: value for name, value in parameters.items() if name in names}
    if len(shared) != len(names) or len(names) != count:
        raise RunError(
            "The checkpoint's weights do not have the shape that its .yaml says ({found} of {wanted} found); "
            "put the right .yaml beside the checkpoint.",
            found=len(shared),
            wanted=len(names),
        )
    flags = {name: value.requires_grad for name, value in shared.items()}
    try:
        view.load_state_dict(shared, strict=False, assign=True)
    except RuntimeError as error:
        raise RunError(
            "The checkpoint's weights do not fit its .yaml: {error}.", error=str(error).splitlines()[-1].strip()
        ) from error
    for name, value in view.named_parameters():
        if value is not shared[name]:
            raise RunError("{name} of the loaded checkpoint could not be shared.", name=name)
        value.requires_grad_(flags[name])  # newer torch changes it while assigning
    return view.eval()


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The yaml with what the config helper expects to be there."""
    params = dict(config["model"]["params"])
    unet = dict(params["unet_config"]["params"])
    unet.setdefault("transformer_depth", 1)
    params["unet_config"] = {**params["unet_config"], "params": unet}
    return {"model": {**config["model"], "params": params}}
