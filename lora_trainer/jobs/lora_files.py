"""The file tools: documents in, work out, files in the LoRA folder only; and what is known of a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import field_error
from lora_trainer.config.train import AUTO
from lora_trainer.core.errors import concerning
from lora_trainer.core.paths import clean_path, expand
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.job import Progress
from lora_trainer.jobs.kinds import FILES, NewFile, kind
from lora_trainer.jobs.library import SUFFIX, LoraFolder, architecture_at, check_blocks, require_readable
from lora_trainer.jobs.requests import BakeDocument, ExtractDocument, MergeDocument, ResizeDocument

if TYPE_CHECKING:
    from lora_trainer.network.ops.files import Ingredient, Made


def _with_weight(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weight stands for those of the parts that are left out."""
    if body.get("weight") is None:
        return body
    return {**body, **{part: body["weight"] for part in ("te", "unet") if body.get(part) is None}}


@kind("bake", BakeDocument, FILES, _with_weight)
def bake(host: Host, document: BakeDocument, outside: bool) -> NewFile:
    """Weights and block weights in a new file, beside the old one."""
    loras = LoraFolder(host)
    file = loras.find(document.file, outside=outside)
    checkpoint = _checkpoint(host, "checkpoint", document.checkpoint) if document.checkpoint else None
    check_blocks(host, "lbw", file, document.lbw, x=document.x)
    check_blocks(host, "lbwe", file, "", lbwe=document.lbwe)

    def write(output: Path, progress: Progress) -> Made:
        from lora_trainer.network.ops.files import Baking, bake_file

        baking = Baking(document.te, document.unet, document.lbw, document.lbwe, document.x, document.seed, checkpoint)
        return bake_file(file, output, baking, host.block_presets())

    return NewFile(document.output, _beside(loras, file, "baked"), write)


@kind("merge", MergeDocument, FILES)
def merge(host: Host, document: MergeDocument, outside: bool) -> NewFile:
    """Several LoRAs in one."""
    ingredients = _ingredients(host, "\n".join(document.files), "files", outside)
    together = "-".join(each.path.stem for each in ingredients)[:60].rstrip("-. ")

    def write(output: Path, progress: Progress) -> Made:
        from lora_trainer.network.ops.files import merge_files

        ranks = document.rank or None, document.conv_rank or None
        return merge_files(ingredients, output, *ranks, _precision(document.precision), progress, host.block_presets())

    return NewFile(document.output, host.folders.loras / f"{together}-merged{SUFFIX}", write)


@kind("resize", ResizeDocument, FILES)
def resize(host: Host, document: ResizeDocument, outside: bool) -> NewFile:
    """A LoRA at a smaller rank, beside the old one."""
    from lora_trainer.network.ops.resize import Rule

    loras = LoraFolder(host)
    file = loras.find(document.file, outside=outside)
    by_rank = document.method == "rank"
    with concerning("rank" if by_rank else "keep"):
        method, keep = ("", 0.0) if by_rank else (document.method, document.keep)
        rule = Rule(document.rank or None, document.conv_rank or None, method, keep)

    def write(output: Path, progress: Progress) -> Made:
        from lora_trainer.network.ops.files import resize_file

        return resize_file(file, output, rule, _precision(document.precision), progress)

    return NewFile(document.output, _beside(loras, file, "resized"), write)


@kind("extract", ExtractDocument, FILES)
def extract(host: Host, document: ExtractDocument, outside: bool) -> NewFile:
    """A LoRA of what distinguishes two checkpoints."""
    base, tuned = _checkpoint(host, "base", document.base), _checkpoint(host, "tuned", document.tuned)

    def write(output: Path, progress: Progress) -> Made:
        from lora_trainer.network.ops.files import extract_file

        return extract_file(
            base,
            tuned,
            output,
            document.rank,
            conv_rank=document.conv_rank or None,
            clamp_quantile=document.clamp_quantile,
            text_threshold=document.text_threshold,
            precision=document.precision,
            progress=progress,
        )

    return NewFile(document.output, host.folders.loras / f"{tuned.stem}-extracted{SUFFIX}", write)


# ------------------------------------------------------------------ what is known of a file
def lora_info(file: Path) -> dict[str, Any]:
    """What is in a LoRA file, ready for JSON; see :func:`lora_trainer.network.ops.info.info`."""
    from lora_trainer.network.ops.info import info

    return info(file)


def require_lora(file: Path) -> None:
    """Raises :class:`InputError` for what is no LoRA, or has modules of an unknown kind."""
    from lora_trainer.network.lora_file import read_lora
    from lora_trainer.network.ops.info import block_infos

    architecture_at(file)
    block_infos(read_lora(file))


def card_of(file: Path) -> dict[str, Any]:
    """See :func:`lora_trainer.network.card.read_card`."""
    from lora_trainer.network.card import read_card

    return read_card(file)


def preset_names(host: Host, file: Path) -> list[str]:
    """Names of the block presets for a file's architecture.

    Raises:
        InputError: it is no LoRA, or the person's presets cannot be read.
    """
    return host.block_presets().names(architecture_at(file))


# ------------------------------------------------------------------ within
def _ingredients(host: Host, text: str, place: str, outside: bool) -> list[Ingredient]:
    """The files and weights of lines such as ``name: 0.7``; ``place`` is the field that the sentences are about."""
    from lora_trainer.network.blocks.stack import parse_stack, require_constant
    from lora_trainer.network.ops.files import Ingredient

    with concerning(place):
        tags = parse_stack(text).tags
        for tag in tags:
            require_constant(tag)
    loras = LoraFolder(host)
    paths = [loras.find(tag.name, place, outside=outside) for tag in tags]
    for tag, path in zip(tags, paths, strict=True):
        check_blocks(host, place, path, tag.lbw, lbwe=tag.lbwe, x=tag.x)
    return [Ingredient.of(tag, path) for tag, path in zip(tags, paths, strict=True)]


def _beside(loras: LoraFolder, file: Path, what: str) -> Path:
    """A name in the LoRA folder, beside the file if that is there."""
    folder = file.parent if loras.root in file.parents else loras.root
    return folder / f"{file.stem}-{what}{SUFFIX}"


def _checkpoint(host: Host, place: str, name: str) -> Path:
    """One of the host's checkpoints by name or path, or another that may be read."""
    name = clean_path(name)
    for known in host.checkpoints():
        if name in (known.name, str(known)):
            return known
    if not name.strip():
        raise field_error(place, "choose a checkpoint.")
    require_readable(host, place, name)
    return expand(name)


def _precision(chosen: str) -> str | None:
    return None if chosen == AUTO else chosen
