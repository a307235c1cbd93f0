"""Stacks of LoRAs as page and command line use them: names checked, mixes planned and drawn through the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.config.schema import field_error
from lora_trainer.core.errors import concerning
from lora_trainer.hosts.base import DrawRequest, Host, ModelRequest
from lora_trainer.jobs.job import Progress
from lora_trainer.jobs.kinds import DRAWING, Prepared, kind
from lora_trainer.jobs.library import LoraFolder, check_blocks, require_readable
from lora_trainer.jobs.requests import MixDocument
from lora_trainer.network.blocks.stack import MixRule, Stack, parse_stack, require_constant

if TYPE_CHECKING:
    from lora_trainer.validation.mixes import Mixed, MixPlan


@kind("mix", MixDocument, DRAWING)
def mix(host: Host, document: MixDocument, outside: bool) -> Prepared:
    """Mixes drawn into a folder beside the runs."""
    plan, model = mix_plan(host, document, outside)
    host.check(model)

    def work(progress: Progress) -> Mixed:
        return drawn_mixes(host, plan, model, progress)

    return Prepared(" + ".join(plan.files), work)


def read_stack(host: Host, text: str, outside: bool = False) -> tuple[Stack, dict[str, Path]]:
    """The LoRAs of some lines as a prompt names them, and name → file.

    Args:
        host: whose LoRA folder it is.
        text: see :func:`lora_trainer.network.blocks.stack.parse_stack`.
        outside: files elsewhere may be meant too.

    Raises:
        InputError: a line that cannot be read, an unknown file, or two of one name.
    """
    with concerning("stack"):
        found = parse_stack(text)
    loras = LoraFolder(host)
    paths = [loras.find(tag.name, "stack", outside=outside) for tag in found.tags]
    files = {path.stem: path for path in paths}
    if len(files) < len(paths):
        raise field_error("stack", "two of these files have one name; a prompt reaches only one of them.")
    with concerning("stack"):
        tags = [replace(tag, name=path.stem) for tag, path in zip(found.tags, paths, strict=True)]
    return Stack(tuple(tags)), files


def mix_plan(host: Host, document: MixDocument, outside: bool = False) -> tuple[MixPlan, ModelRequest]:
    """What is to be drawn, and the model it is drawn with.

    Args:
        host: draws.
        document: what is asked for.
        outside: as for :func:`read_stack`.

    Raises:
        InputError: one clear sentence, with the field's path.
    """
    from lora_trainer.validation.mixes import MixPlan

    stack, files = read_stack(host, document.stack, outside)
    for tag in stack.tags:
        check_blocks(host, "stack", files[tag.name], tag.lbw, lbwe=tag.lbwe, x=tag.x)
        if not host.reads_tags:
            with concerning("stack"):
                require_constant(tag)
    for side in ("width", "height"):
        if getattr(document, side) % 8:
            raise field_error(side, "{size} px is not a multiple of 8.", size=getattr(document, side))
    model = ModelRequest(document.checkpoint, work="mixes")
    require_readable(host, "checkpoint", document.checkpoint)
    native = host.native_resolution(model)
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
    return plan, model


def drawn_mixes(host: Host, plan: MixPlan, model: ModelRequest, progress: Callable[[int, int, Mixed], object]) -> Mixed:
    """Draw a plan now; see :func:`lora_trainer.validation.mixes.draw_mixes`."""
    from lora_trainer.validation.mixes import draw_mixes

    for path in plan.files.values():
        host.announce(path)
    with host.session(model) as session:
        return draw_mixes(
            plan.on(host.check(model)),
            session,
            host.folders.runs.parent / "mixes",
            reads_tags=host.reads_tags,
            presets=host.block_presets(),
            progress=progress,
        )


def _rule(document: MixDocument) -> MixRule:
    with concerning("method"):
        return MixRule(document.method, document.spread, document.most, document.seed)
