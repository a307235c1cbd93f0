"""Names of the original (LDM) modules for the diffusers modules of SD1/SD2-shaped models.

The way back from ``diffusers.loaders.single_file_utils``: block maps are written in LDM numbers
(IN04, M00, OUT03), and the small checkpoint is trained with diffusers and written as an LDM file.
"""

from __future__ import annotations

import re
from collections.abc import Callable

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def _resnet(rest: str) -> str:
    head, _, tail = rest.partition(".")
    name = RESNET.get(head, head)
    return f"{name}.{tail}" if tail else name


def _unet_rules(attention_up: set[int]) -> list[Rule]:
    def sampler(m: re.Match[str]) -> str:
        i = int(m[1])
        return f"output_blocks.{3 * i + 2}.{2 if i in attention_up else 1}.conv{m[2]}"

    return [
        (re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)"),
         lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.0.{_resnet(m[3])}"),
        (re.compile(r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)"),
         lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.1.{m[3]}"),
        (re.compile(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(.*)"),
         lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op{m[2]}"),
        (re.compile(r"mid_block\.resnets\.(\d+)\.(.+)"), lambda m: f"middle_block.{2 * int(m[1])}.{_resnet(m[2])}"),
        (re.compile(r"mid_block\.attentions\.0\.(.+)"), lambda m: f"middle_block.1.{m[1]}"),
        (re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)"),
         lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0.{_resnet(m[3])}"),
        (re.compile(r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)"),
         lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1.{m[3]}"),
        (re.compile(r"up_blocks\.(\d+)\.upsamplers\.0\.conv(.*)"), sampler),
    ]  # fmt: skip


def unet_to_ldm(name: str, attention_up: set[int] | None = None) -> str:
    """Rename one UNet module or parameter, e.g. ``mid_block.attentions.0.proj_in`` → ``middle_block.1.proj_in``.

    Args:
        name: dotted diffusers name.
        attention_up: the up blocks that have attention; SD1 and SD2: 1, 2, 3.

    Raises:
        KeyError: the name belongs to no known part.
    """
    for start, target in _UNET_TOP.items():
        if name == start or name.startswith(start + "."):
            return target + name[len(start) :]
    for pattern, rename in _unet_rules({1, 2, 3} if attention_up is None else attention_up):
        if match := pattern.fullmatch(name):
            return rename(match)
    raise KeyError(name)


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
