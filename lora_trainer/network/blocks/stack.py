"""Several LoRAs in one prompt: their order, the sum of their weights, and random mixes around them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lora_trainer.core.errors import InputError
from lora_trainer.core.messages import Message
from lora_trainer.core.randomness import python_rng
from lora_trainer.network.blocks.lora_tag import DRIVE, TAG, LoraTag, parse_tag
from lora_trainer.network.blocks.weights import parse_number

if TYPE_CHECKING:
    from lora_trainer.core.messages import Message

SUM_ADVISED = 1.2
"""The guides: weights of several LoRAs together should not be more."""
METHODS = ("uniform", "dirichlet")
MAX_LORAS = 50
_QUOTED = re.compile(r"""(["'])([^"']*(?:[\\/]|\.safetensors)[^"']*)\1""")
"""A path as people paste it; a name may have quotes of its own."""
_STEPS = 1000
"""Drawn weights have three decimals."""


@dataclass(frozen=True)
class Stack:
    """LoRAs in the order in which they stand in a prompt; ``str()`` writes the tags."""

    tags: tuple[LoraTag, ...]

    @property
    def weights(self) -> dict[str, float]:
        """Name → the UNet's weight, or where that is 0 the text encoders'."""
        return {tag.name: _weight(tag) for tag in self.tags}

    @property
    def total(self) -> float:
        """The sum of the weights' sizes."""
        return math.fsum(abs(weight) for weight in self.weights.values())

    def notices(self) -> tuple[Message, ...]:
        """The guides' warning when the weights sum up to more than 1.2."""
        return sum_notices(list(self.weights.values()))

    def prompt(self, text: str = "") -> str:
        """A prompt with the tags behind it."""
        return f"{text.strip()} {self}".strip()

    def __str__(self) -> str:
        return " ".join(map(str, self.tags))


@dataclass(frozen=True)
class MixRule:
    """How the weights of random mixes are drawn.

    Attributes:
        method: ``uniform``: each weight w from w·(1 − spread) to w·(1 + spread), by itself. ``dirichlet``: the sum
            stays, and the shares are Dirichlet(k·share) with k = 1 / spread² − 1, so that a share p has the mean p and
            the standard deviation spread·√(p·(1 − p)).
        spread: above 0 and below 1.
        most: the sum of the weights' sizes is never more; larger ones are scaled down.
        seed: of everything.
    """

    method: str = "uniform"
    spread: float = 0.5
    most: float = 1.2
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: an unknown method, or a number out of range.
        """
        if self.method not in METHODS:
            raise InputError(
                "There is no method {method}; give one of {known}.", method=self.method, known=", ".join(METHODS)
            )
        if not 0 < self.spread < 1:
            raise InputError("spread: must be above 0 and below 1, not {value:g}.", field="spread", value=self.spread)
        if not 0 < self.most < math.inf:
            raise InputError("most: must be above 0, not {value:g}.", field="most", value=self.most)


def parse_stack(text: str) -> Stack:
    """LoRAs from lines ``name: weight``, ``name: weight: block weights``, or tags ``<lora:name:0.7>``.

    What stands behind the weight is as in the tag: a second number is the UNet's weight, then come ``lbw=…``,
    ``lbwe=…``, ``start=5``; a word or list alone is ``lbw``. Chinese colons and commas are read as well. A name
    may be a path, also in quotes or with a drive's letter: ``C:\\loras\\a.safetensors: 0.7``.

    Raises:
        InputError: nothing in it, a line that cannot be read, or a LoRA named twice.
    """
    tags = [tag for line in text.splitlines() if line.strip() for tag in _tags(line.strip())]
    if not tags:
        raise InputError("Name at least one LoRA; one a line, as name: weight.")
    if len(tags) > MAX_LORAS:
        raise InputError("These are {count} LoRAs; {most} in one prompt is the most.", count=len(tags), most=MAX_LORAS)
    names = [tag.name for tag in tags]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("{name} is named twice; give it one line with one weight.", name=twice)
    return Stack(tuple(tags))


def mixes(stack: Stack, count: int, rule: MixRule) -> list[Stack]:
    """Random weights around those of a stack. The n-th is the same however many there are.

    Raises:
        InputError: all weights are 0.
    """
    weights = list(stack.weights.values())
    if not any(weights):
        raise InputError("All weights are 0, so there is nothing to mix; give one of the LoRAs a weight.")
    return [_mix(stack, weights, number, rule) for number in range(count)]


def require_constant(tag: LoraTag) -> None:
    """Refuse what only a prompt in the WebUI can say.

    Raises:
        InputError: the tag has ``dyn``, ``start``, ``stop`` or ``step``.
    """
    if (tag.dyn, tag.start, tag.stop) != (None, None, None):
        raise InputError("{tag}: dyn, start, stop and step work only in the WebUI's prompts; leave them out.", tag=tag)


def _tags(line: str) -> list[LoraTag]:
    """The LoRAs of one line."""
    if not TAG.search(line):
        return [_of_path(line, _named)]
    rest = TAG.sub("", line).strip(" ,，")
    if rest:
        raise InputError("“{text}” is no LoRA; put the rest of the prompt into its own field.", text=rest[:80])
    return [_of_path(match[2], partial(_tag_of, match[1])) for match in TAG.finditer(line)]


def _tag_of(kind: str, inner: str) -> LoraTag:
    return parse_tag(f"<{kind}:{inner}>")


def _of_path(text: str, read: Callable[[str], LoraTag]) -> LoraTag:
    """Read a text without the drive's letter and the quotes that its name may begin with, and put the letter back.

    Raises:
        InputError: an argument that nobody reads, or what ``read`` raises.
    """
    if quoted := _QUOTED.match(text):
        text = quoted[2] + text[quoted.end() :]
    drive = DRIVE.match(text)
    tag = read(text[drive.end() :] if drive else text)
    problem = tag.unknown()
    if problem:
        raise problem
    return replace(tag, name=drive[0] + tag.name) if drive else tag


def _named(line: str) -> LoraTag:
    """``name: weight: …``."""
    plain = line.replace("，", ",") if ":" in line else line.replace("：", ":").replace("，", ",")
    name, *rest = (part.strip() for part in plain.rstrip(", ").split(":"))
    if any(mark in name for mark in "<>="):
        raise InputError("“{line}” is not of the form name: weight.", line=line[:80])
    if not rest:
        return LoraTag(name)
    weight, *more = rest
    named = [part if _is_number(part) or "=" in part else f"lbw={part}" for part in more if part]
    if any(">" in part for part in (weight, *named)):
        raise InputError("“{line}” is not of the form name: weight.", line=line[:80])
    parse_number(weight, f"The weight of {name}")
    return parse_tag(f"<lora:{':'.join([name, weight, *named])}>")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _weight(tag: LoraTag) -> float:
    return tag.unet_weight or tag.te


def _mix(stack: Stack, weights: Sequence[float], number: int, rule: MixRule) -> Stack:
    rng = python_rng("mix", rule.seed, number)
    total = math.fsum(map(abs, weights))
    if rule.method == "uniform":
        drawn = [weight * rng.uniform(1 - rule.spread, 1 + rule.spread) for weight in weights]
    else:
        k = 1 / rule.spread**2 - 1
        gammas = [rng.gammavariate(k * abs(weight) / total, 1.0) if weight else 0.0 for weight in weights]
        whole = math.fsum(gammas)
        shares = [gamma / whole for gamma in gammas] if whole else [abs(weight) / total for weight in weights]
        drawn = [math.copysign(total * share, weight) for share, weight in zip(shares, weights, strict=True)]
    size = math.fsum(map(abs, drawn))
    scale = min(1.0, rule.most / size) if size else 1.0
    rounded = [int(weight * scale * _STEPS) / _STEPS for weight in drawn]  # towards 0, so that the sum stays below
    return Stack(tuple(_weighted(tag, weight) for tag, weight in zip(stack.tags, rounded, strict=True)))


def _weighted(tag: LoraTag, weight: float) -> LoraTag:
    """The tag at another weight; two weights keep their proportion."""
    if tag.unet is None:
        return replace(tag, te=weight)
    factor = weight / _weight(tag) if _weight(tag) else 0.0
    return replace(tag, te=round(tag.te * factor, 3), unet=round(tag.unet * factor, 3))


def sum_notices(weights: Sequence[float]) -> tuple[Message, ...]:
    """The guides' warning when weights of several LoRAs sum up to more than 1.2."""
    total = sum(abs(weight) for weight in weights)
    if len(weights) < 2 or total <= SUM_ADVISED + 1e-9:
        return ()
    return (
        Message(
            "The weights sum up to {total:g}; above {most:g} pictures tend to break, so lower them.",
            {"total": round(total, 6), "most": SUM_ADVISED},
        ),
    )
