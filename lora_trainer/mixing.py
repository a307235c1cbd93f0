"""Stacks of LoRAs as page and command line use them: names checked, mixes planned and drawn through the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.access import LoraFolder, require_readable
from lora_trainer.chores import Chore, Chores, Progress
from lora_trainer.config import TrainConfig
from lora_trainer.file_tools import check_blocks, concerning, read
from lora_trainer.hosts.base import DrawRequest, Host
from lora_trainer.network.stacks import METHODS, MixRule, Stack, parse_stack, require_constant
from lora_trainer.schema import Option, field_error, option, options_of

if TYPE_CHECKING:
    from lora_trainer.validation.mixes import Mixed, MixPlan

MAX_MIXES = 500


@dataclass
class MixDocument:
    """Random mixes of several LoRAs."""

    stack: str = option(
        "",
        "LoRAs and weights",
        "One a line: name: weight, or name: weight: block weights. Tags are read too. The order is kept.",
    )
    count: int = option(8, "Mixes", "How many.", min=1, max=MAX_MIXES)
    method: str = option(
        "uniform",
        "Method",
        "uniform: each weight by itself around its own. dirichlet: the sum stays, the shares change.",
        choices=METHODS,
    )
    spread: float = option(0.5, "Spread", "How far the weights go; above 0 and below 1.", min=0, max=1)
    most: float = option(1.2, "Largest sum", "Of the weights; the guides advise 1.2.", min=0, max=100)
    seed: int = option(1, "Seed of the mixes", "The same seed gives the same weights.", min=0, max=2**32 - 1)
    prompt: str = option("", "Prompt", "Without the tags.")
    negative: str = option("", "Negative prompt", "As in txt2img.")
    picture_seed: int = option(
        1, "Seed of the pictures", "The same for all, so that they differ in the weights alone.", min=0, max=2**32 - 1
    )
    width: int = option(0, "Width", "0: the size of the checkpoint.", min=0, max=2048, unit="px", advanced=True)
    height: int = option(0, "Height", "0: the size of the checkpoint.", min=0, max=2048, unit="px", advanced=True)
    steps: int = option(20, "Sampling steps", "As in txt2img.", min=1, max=150, advanced=True)
    cfg: float = option(7.0, "CFG scale", "As in txt2img.", min=1, max=30, advanced=True)
    sampler: str = option("Euler a", "Sampler", "As in txt2img.", advanced=True)
    checkpoint: str = option("", "Checkpoint", "Standalone only: the checkpoint file.", advanced=True, path=True)


def mix_options() -> list[Option]:
    """The fields of the document in order."""
    return list(options_of(MixDocument, ""))


class Mixing:
    """Stacks and mixes for a host.

    Args:
        host: that draws.
        chores: in whose line the drawing waits.
    """

    def __init__(self, host: Host, chores: Chores) -> None:
        self.host = host
        self.chores = chores
        self.loras = LoraFolder(host)

    def stack(self, text: str, *, outside: bool = False) -> tuple[Stack, dict[str, Path]]:
        """The LoRAs of some lines as a prompt names them, and name → file.

        Args:
            text: see :func:`lora_trainer.network.stacks.parse_stack`.
            outside: files elsewhere may be meant too.

        Raises:
            InputError: a line that cannot be read, an unknown file, or two of one name.
        """
        with concerning("stack"):
            found = parse_stack(text)
        paths = [self.loras.find(tag.name, "stack", outside=outside) for tag in found.tags]
        files = {path.stem: path for path in paths}
        if len(files) < len(paths):
            raise field_error("stack", "two of these files have one name; a prompt reaches only one of them.")
        with concerning("stack"):
            tags = [replace(tag, name=path.stem) for tag, path in zip(found.tags, paths, strict=True)]
        return Stack(tuple(tags)), files

    def plan(self, body: Mapping[str, Any], *, outside: bool = False) -> tuple[MixPlan, TrainConfig]:
        """What is to be drawn, and the configuration that names the checkpoint.

        Args:
            body: see :class:`MixDocument`.
            outside: as for :meth:`stack`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        from lora_trainer.validation.mixes import MixPlan

        document = read(MixDocument, body)
        stack, files = self.stack(document.stack, outside=outside)
        for tag in stack.tags:
            check_blocks(self.host, "stack", files[tag.name], tag.lbw, lbwe=tag.lbwe, x=tag.x)
            if not self.host.reads_tags:
                with concerning("stack"):
                    require_constant(tag)
        for side in ("width", "height"):
            if getattr(document, side) % 8:
                raise field_error(side, "{size} px is not a multiple of 8.", size=getattr(document, side))
        config = TrainConfig(name="mixes", checkpoint=document.checkpoint)
        require_readable(self.host, "checkpoint", document.checkpoint)
        native = self.host.native_resolution(config)
        request = DrawRequest(
            prompt=document.prompt.strip(),
            negative=document.negative.strip(),
            width=document.width or native,
            height=document.height or native,
            steps=document.steps,
            cfg=document.cfg,
            sampler=document.sampler,
            seed=document.picture_seed,
        )
        plan = MixPlan(stack, files, document.count, _rule(document), request)
        plan.stacks()  # what is wrong with the weights is said now
        return plan, config

    def draw(self, body: Mapping[str, Any]) -> Chore:
        """Draw the mixes into a folder beside the runs; the chore's result is a :class:`Mixed`.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        plan, config = self.plan(body)
        self.host.check(config)

        def work(progress: Progress) -> Mixed:
            return self.drawn(plan, config, progress)

        return self.chores.start("mix", " + ".join(plan.files), work)

    def drawn(self, plan: MixPlan, config: TrainConfig, progress: Callable[[int, int, Mixed], object]) -> Mixed:
        """Draw a plan now; see :func:`lora_trainer.validation.mixes.draw_mixes`."""
        from lora_trainer.validation.mixes import draw_mixes

        for path in plan.files.values():
            self.host.announce(path)
        with self.host.session(config) as session:
            return draw_mixes(
                plan.on(self.host.check(config)),
                session,
                self.folder,
                reads_tags=self.host.reads_tags,
                presets=self.host.block_presets(),
                progress=progress,
            )

    @property
    def folder(self) -> Path:
        """Where the batches are."""
        return self.host.folders.runs.parent / "mixes"


def _rule(document: MixDocument) -> MixRule:
    with concerning("method"):
        return MixRule(document.method, document.spread, document.most, document.seed)
