"""Block lists: in which order block weights name the blocks of a UNet, by kind of model.

Names and orders are those of hako-mikan/sd-webui-lora-block-weight (b403cb7), in LDM numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


def _numbered(prefix: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{prefix}{n:02d}" for n in numbers)


BASE = "BASE"
TEXT_BLOCKS = ("TE1", "TE2")
ALL_BLOCKS = (BASE, *_numbered("IN", range(12)), "M00", *_numbered("OUT", range(12)))
"""All 26 in their order; BASE stands for the text encoders."""


@dataclass(frozen=True)
class Architecture:
    """The block lists that a model family has, alone or with another one.

    Attributes:
        name: as a person calls it.
        attention: the blocks of a LoRA on attention and feed-forward layers.
        convolutions: all blocks, for a LoRA on the resnets too.
        text_encoders: ``TE1``, and ``TE2`` where there are two.
    """

    name: str
    attention: tuple[str, ...]
    convolutions: tuple[str, ...]
    text_encoders: tuple[str, ...]

    @property
    def lists(self) -> dict[int, tuple[str, ...]]:
        """Number of values → the blocks in order, the longest last."""
        return {len(blocks): blocks for blocks in (self.attention, self.convolutions)}

    @property
    def attention_up(self) -> frozenset[int]:
        """Numbers of the UNet's up blocks that have attention; each is three blocks of a list, as OUT00 to OUT02."""
        return frozenset(int(block[3:]) // 3 for block in self.attention if block.startswith("OUT"))

    @property
    def lengths(self) -> str:
        """``"17 or 26"``."""
        return " or ".join(str(n) for n in self.lists)


SD = Architecture(
    "SD1/SD2",
    (BASE, *_numbered("IN", (1, 2, 4, 5, 7, 8)), "M00", *_numbered("OUT", range(3, 12))),
    ALL_BLOCKS,
    TEXT_BLOCKS[:1],
)
SDXL = Architecture(
    "SDXL",
    (BASE, *_numbered("IN", (4, 5, 7, 8)), "M00", *_numbered("OUT", range(6))),
    (BASE, *_numbered("IN", range(9)), "M00", *_numbered("OUT", range(9))),
    TEXT_BLOCKS,
)
ARCHITECTURES = (SD, SDXL)
