"""The ``<lora:…>`` tag of a prompt, with everything the WebUI and sd-webui-lora-block-weight understand in it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.weights import number_text, parse_number

TAG = re.compile(r"<(lora|lyco):([^>]+)>")
WEBUI_ARGUMENTS = ("te", "unet", "dyn")
"""Named arguments that the WebUI reads itself."""
BLOCK_ARGUMENTS = ("lbw", "w", "lbwe", "start", "stop", "step")
"""Those of sd-webui-lora-block-weight, which make a tag ours; ``x`` says nothing without them."""
_OWN = (*WEBUI_ARGUMENTS, *BLOCK_ARGUMENTS, "x")
MARK = "axis"
"""``<lora:name:1:axis=1>`` is the tag that a grid's axes change, where a prompt has several."""
KNOWN = frozenset((*_OWN, MARK, "hr", "hrte", "hrunet"))
"""All that somebody reads: those above, our grid's mark, and what sd-webui-loractl has."""
_LARGEST = 10**9
DRIVE = re.compile(r"^(\\\\\?\\)?[A-Za-z]:(?=[\\/])")
"""The beginning of a Windows path, whose colon ends no name."""


@dataclass(frozen=True)
class LoraTag:
    """One LoRA in a prompt; ``str()`` writes the tag.

    Attributes:
        name: of the file, without the extension; or a path that a person gave, until its file is found.
        te: weight of the text encoders.
        unet: weight of the UNet; ``None`` is ``te``'s.
        dyn: use only so many ranks.
        lbw: block weights, a preset's name or a list, as written.
        lbwe: the element preset.
        x: the number for ``X`` in the list.
        start: first step, counted from 1, at which it works.
        stop: first step at which it no longer works.
        extra: other named arguments, which do nothing here; see :meth:`unknown`.
        kind: ``lora``, or ``lyco``, which the WebUI takes as the same.
    """

    name: str
    te: float = 1.0
    unet: float | None = None
    dyn: int | None = None
    lbw: str = ""
    lbwe: str = ""
    x: float | None = None
    start: int | None = None
    stop: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    kind: str = "lora"

    def __post_init__(self) -> None:
        """Refuse what could not be read again from a prompt.

        Raises:
            InputError: the name is empty, or a text has a character that ends it in a tag.
        """
        texts = (DRIVE.sub("", self.name), self.lbw, self.lbwe, *(part for pair in self.extra for part in pair))
        if not self.name.strip() or any(mark in text for text in texts for mark in ":=>"):
            raise InputError(
                "{name}: the texts of a LoRA tag may not be empty or have : = > in them; rename the file or preset.",
                name=self.name[:100] or "a LoRA",
            )

    @property
    def unet_weight(self) -> float:
        """The UNet's weight: the text encoders' unless it is given."""
        return self.te if self.unet is None else self.unet

    def active(self, step: int) -> bool:
        """Does it work at this step, counted from 1?"""
        return (self.start is None or step >= self.start) and (self.stop is None or step < self.stop)

    def unknown(self) -> InputError | None:
        """The sentence for an argument that nobody reads, most likely a slip; ``None`` when there is none."""
        key = next((key for key, _ in self.extra if key not in KNOWN), None)
        if key is None:
            return None
        close = difflib.get_close_matches(key, _OWN, n=1)
        if close:
            return InputError(
                "{name}: there is no argument {key}= of a LoRA tag, so it does nothing; did you mean {close}=?",
                name=self.name,
                key=key[:50],
                close=close[0],
            )
        return InputError(
            "{name}: there is no argument {key}= of a LoRA tag, so it does nothing; there are {known}.",
            name=self.name,
            key=key[:50],
            known=", ".join(_OWN),
        )

    def __str__(self) -> str:
        items = [self.name, number_text(self.te)]
        numbers = [(key, getattr(self, key)) for key in ("unet", "x")]
        named = [(key, number_text(value)) for key, value in numbers if value is not None]
        named += [(key, str(getattr(self, key))) for key in ("dyn", "lbw", "lbwe") if getattr(self, key)]
        if self.start is not None and self.stop is not None:
            named.append(("step", f"{self.start}-{self.stop}"))
        else:
            named += [(key, str(getattr(self, key))) for key in ("start", "stop") if getattr(self, key) is not None]
        items += [f"{key}={value}" for key, value in (*named, *self.extra)]
        return f"<{self.kind}:{':'.join(items)}>"


def parse_tag(text: str) -> LoraTag:
    """Read one tag ``<lora:NAME:te[:unet[:dyn]]:lbw=…:lbwe=…:start=n:stop=n:step=a-b:x=v>``.

    Arguments are split as the WebUI does: what has exactly one ``=`` is named, everything else has its place. Blanks
    around a name and its capitals mean nothing, see :func:`argument`.

    Raises:
        InputError: not such a tag, or an argument that the WebUI would fail at or misread.
    """
    match = TAG.fullmatch(text)
    if not match:
        raise InputError("{text} is not a LoRA tag; write <lora:name:weight>.", text=text[:200])
    first, *rest = match[2].split(":")
    positional, named = [first], {}
    for item in rest:
        found = argument(item)
        if found and found[0] in named and found[0] in KNOWN:
            raise InputError(
                "{tag} has {key}= twice, and only one of them could count; give it once.",
                tag=text[:200],
                key=found[0],
            )
        if found:
            named[found[0]] = found[1]
        else:
            positional.append(item)
    return _tag(text, match[1], positional, named)


def argument(item: str) -> tuple[str, str] | None:
    """Name and value of a named argument, `` LBW = OUTD`` like ``lbw=OUTD``; ``None`` for what has its place.

    Only a name that is known is put right: another extension may want its own as it is written.
    """
    if item.count("=") != 1:
        return None
    key, _, value = item.partition("=")
    right = key.strip().lower()
    return right if right in KNOWN else key, value.strip()


def _tag(text: str, kind: str, positional: list[str], named: dict[str, str]) -> LoraTag:
    if len(positional) > 4:
        raise InputError("{tag} has too many values; write block weights as lbw=…, steps as step=a-b.", tag=text[:200])
    te, unet = (_place(text, positional, index) for index in (1, 2))
    if "te" in named:
        te = parse_number(named["te"], "te")
    if "unet" in named:
        unet = parse_number(named["unet"], "unet")
    dyn = named.get("dyn", positional[3] if len(positional) > 3 else None)
    return LoraTag(
        name=positional[0],
        te=1.0 if te is None else te,
        unet=unet,
        dyn=None if dyn is None else _whole(dyn, "dyn", 1),
        lbw=named.get("lbw") or named.get("w", ""),
        lbwe=named.get("lbwe", ""),
        x=parse_number(named["x"], "x") if "x" in named else None,
        extra=tuple((key, value) for key, value in named.items() if key not in _OWN),
        kind=kind,
        **_steps(text, named),
    )


def _place(text: str, positional: list[str], index: int) -> float | None:
    """A weight by its place; the old form with the preset there fails in the WebUI, so it gets its own sentence."""
    if index >= len(positional):
        return None
    if not positional[index].strip():
        raise InputError("{tag} has nothing behind a colon; write a weight there, or no colon.", tag=text[:200])
    try:
        return parse_number(positional[index], "A weight")
    except InputError:
        raise InputError(
            "{tag}: {value} stands where a weight belongs; block weights are written as lbw={value}.",
            tag=text[:200],
            value=positional[index][:100],
        ) from None


def _steps(text: str, named: dict[str, str]) -> dict[str, Any]:
    """``start`` and ``stop``; ``step=a-b`` is both at once."""
    steps: dict[str, Any] = {key: _whole(named[key], key, 0) for key in ("start", "stop") if named.get(key)}
    if named.get("step"):
        first, dash, last = named["step"].partition("-")
        if not dash:
            raise InputError("{tag}: write the steps as step=5-10.", tag=text[:200])
        steps = {"start": _whole(first, "step", 0), "stop": _whole(last, "step", 0)}
    return steps


def _whole(text: str, what: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= _LARGEST:
        raise InputError(
            "{what} must be a whole number from {least}, not {text}.",
            what=what,
            least=least,
            text=text[:100] or "nothing",
        )
    return value
