"""Which layers of a model are trained, by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

ATTENTION = re.compile(
    r".*attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
)


CONVOLUTION = re.compile(r".*(resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv)")


TEXT = re.compile(r".*layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])")


@dataclass(frozen=True)
class Targets:
    """The layers of one part of a model.

    Attributes:
        linear: names of those that every run trains.
        convolutions: names of those that are trained on demand; ``None`` where there are none.
    """

    linear: re.Pattern[str]
    convolutions: re.Pattern[str] | None = None


UNET = Targets(ATTENTION, CONVOLUTION)
TEXT_ENCODER = Targets(TEXT)


def in_files(names: re.Pattern[str], prefix: str) -> re.Pattern[str]:
    """The same layers by their names in LoRA files: a prefix, and dots as underscores.

    Args:
        names: of modules, with dots as ``\\.``.
        prefix: ``lora_unet_`` …
    """
    return re.compile(re.escape(prefix) + names.pattern.replace(r"\.", "_"))
