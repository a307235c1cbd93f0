"""Names of the original (LDM) modules for diffusers' modules of UNets from SD1 to SDXL, and back.

Checkpoints and block weights have LDM's names and numbers (IN04, M00, OUT03), LoRA files of SD1 diffusers' names.
diffusers itself knows the way from LDM only, and takes seconds to be imported, while a prompt is read in the WebUI's
start; so the one table is here, and a test holds every layer against ``diffusers.loaders.single_file_utils``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEVELS = range(4)
_SD_ATTENTION = frozenset({1, 2, 3})


def unet_to_ldm(name: str, attention_up: Collection[int] = _SD_ATTENTION, *, dot: str = ".") -> str:
    """Rename one UNet module or parameter, e.g. ``mid_block.attentions.0.proj_in`` → ``middle_block.1.proj_in``.

    Args:
        name: diffusers' name.
        attention_up: the up blocks that have attention, behind which the upsampler stands; SD1 and SD2: 1, 2, 3.
        dot: what stands between the parts of a name; ``"_"`` in LoRA files.

    Raises:
        KeyError: the name belongs to no known part.
    """
    return _renamed(name, *_tables(frozenset(attention_up), dot), dot)


def ldm_to_unet(name: str, attention_up: Collection[int] = _SD_ATTENTION, *, dot: str = ".") -> str:
    """The way back from :func:`unet_to_ldm`; the same arguments and error."""
    return _renamed(name, *_tables_back(frozenset(attention_up), dot), dot)


def _renamed(name: str, modules: Mapping[str, str], resnet: Mapping[str, str], dot: str) -> str:
    """The longest known beginning of a name renamed, and within a resnet the layer too."""
    known = _beginning(name, modules, dot)
    if known is None:
        raise KeyError(name)
    target, rest = modules[known], name[len(known) + len(dot) :]
    if "resnets" in known or "resnets" in target:
        layer = _beginning(rest, resnet, dot)
        rest = rest if layer is None else resnet[layer] + rest[len(layer) :]
    return dot.join(part for part in (target, rest) if part)


def _beginning(name: str, known: Mapping[str, str], dot: str) -> str | None:
    """The longest of the known names that this one is, or is below of."""
    parts = name.split(dot)
    starts = (dot.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((start for start in starts if start in known), None)


@lru_cache
def _tables(attention_up: frozenset[int], dot: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Names of modules, and of the layers in a resnet: diffusers → LDM, with this between their parts."""
    modules = dict(_TOP)
    for level in _LEVELS:
        for layer in range(2):
            place = f"input_blocks.{1 + 3 * level + layer}"
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 * level + 3}.0.op"
        for layer in range(3):
            place = f"output_blocks.{3 * level + layer}"
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        behind = 2 if level in attention_up else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{3 * level + 2}.{behind}.conv"
    return _spelled(modules, dot), _spelled(_RESNET, dot)


@lru_cache
def _tables_back(attention_up: frozenset[int], dot: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The same the other way round."""
    modules, resnet = _tables(attention_up, dot)
    return {ldm: name for name, ldm in modules.items()}, {ldm: name for name, ldm in resnet.items()}


def _spelled(names: Mapping[str, str], dot: str) -> Mapping[str, str]:
    return {ours.replace(".", dot): theirs.replace(".", dot) for ours, theirs in names.items()}


def vae_to_ldm(name: str, levels: int = 4) -> str:
    """Rename one VAE parameter: ``decoder.up_blocks.0.resnets.1.conv1.bias`` → ``decoder.up.3.block.1.conv1.bias``.

    ``levels`` is the number of resolutions (``len(ch_mult)``), since LDM counts the decoder's backwards.
    """
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{match[1]}mid.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
    return name
