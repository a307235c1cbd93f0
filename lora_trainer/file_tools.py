"""The file tools as page and REST use them: documents in, a chore in the line out, files in the LoRA folder only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_trainer.access import SUFFIX, LoraFolder, require_readable
from lora_trainer.chores import Chore, Chores, Progress
from lora_trainer.errors import ConfigErrors, InputError
from lora_trainer.hosts.base import Host
from lora_trainer.paths import clean_path, expand
from lora_trainer.schema import Option, field_error, option, options_of, read_document

if TYPE_CHECKING:
    from lora_trainer.network.blocks import Architecture
    from lora_trainer.network.tools import Ingredient, Made

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
RESIZE_METHODS = ("rank", "sv_fro", "sv_cumulative", "sv_ratio")
MAX_RANK = 4096


def _file_option() -> str:
    return option("", "LoRA file", "Its name, as in the LoRA folder.", path=True)


def _precision_option() -> str:
    return option(
        PRECISIONS[0],
        "Precision",
        "Of the new file's weights; auto: as in the old one.",
        choices=PRECISIONS,
        advanced=True,
    )


def _output_option() -> str:
    return option("", "Name of the new file", "Empty: a free one. Nothing is ever overwritten.", path=True)


@dataclass
class BakeDocument:
    """Weights and block weights written into a new file."""

    file: str = _file_option()
    weight: float = option(1.0, "Weight", "Of everything.", min=-10, max=10)
    te: float = option(1.0, "Text encoder weight", "Empty: the weight.", min=-10, max=10)
    unet: float = option(1.0, "UNet weight", "Empty: the weight.", min=-10, max=10)
    lbw: str = option(
        "",
        "Block weights",
        "A preset, or a list of numbers; R and U are random, X is the number given below. Empty: none.",
    )
    lbwe: str = option(
        "", "Element weights", "A preset, or rules such as IN05-OUT05:attn:0. Empty: none.", advanced=True
    )
    x: float = option(1.0, "Number for X", "What X in the list stands for.", min=-10, max=10, advanced=True)
    seed: int = option(0, "Seed of R and U", "Of these two in the list.", min=0, max=2**32 - 1, advanced=True)
    checkpoint: str = option(
        "",
        "Checkpoint",
        "Only for DoRA at other weights than 0 and 1: the SD1 checkpoint file.",
        advanced=True,
        path=True,
    )
    output: str = _output_option()


@dataclass
class MergeDocument:
    """Several LoRAs in one new file."""

    files: list[str] = option(
        [], "LoRAs and weights", "One a line: name: weight, or name: weight: block weights. Tags are read too."
    )
    rank: int = option(
        0,
        "Rank of the result",
        "0: exact, the LoRAs stand side by side and their ranks add up. Otherwise reduced by SVD; the error is told.",
        min=0,
        max=MAX_RANK,
    )
    conv_rank: int = option(0, "Rank of convolutions", "0: as the others.", min=0, max=MAX_RANK, advanced=True)
    precision: str = _precision_option()
    output: str = _output_option()


@dataclass
class ResizeDocument:
    """A LoRA at a smaller rank."""

    file: str = _file_option()
    method: str = option(
        "rank",
        "Method",
        "rank: one for all. sv_fro: keep this share of the norm. sv_cumulative: of the sum of singular values. "
        "sv_ratio: values down to the largest divided by this number.",
        choices=RESIZE_METHODS,
    )
    rank: int = option(0, "Rank", "With a method of the kind sv_…: the largest; 0: no limit.", min=0, max=MAX_RANK)
    keep: float = option(
        0.95, "How much to keep", "For sv_fro and sv_cumulative up to 1, for sv_ratio from 1.", min=0, max=1e6
    )
    conv_rank: int = option(0, "Rank of convolutions", "0: as the others.", min=0, max=MAX_RANK, advanced=True)
    precision: str = _precision_option()
    output: str = _output_option()


@dataclass
class ExtractDocument:
    """A LoRA of what distinguishes two SD1 checkpoints."""

    base: str = option("", "Base checkpoint", "The one that was tuned.", path=True)
    tuned: str = option("", "Tuned checkpoint", "What became of it.", path=True)
    rank: int = option(32, "Rank", "Of the LoRA.", min=1, max=MAX_RANK)
    conv_rank: int = option(0, "Rank of convolutions", "0: without convolutions.", min=0, max=MAX_RANK, advanced=True)
    clamp_quantile: float = option(
        1.0, "Clamp quantile", "Cut off larger values; 0.99 in sd-scripts, 1: none.", min=0, max=1, advanced=True
    )
    text_threshold: float = option(
        0.0,
        "Text threshold",
        "The text encoder counts as unchanged below this difference; 0.01 in sd-scripts.",
        min=0,
        max=1,
        advanced=True,
    )
    precision: str = option("fp16", "Precision", "Of the new file's weights.", choices=PRECISIONS[1:], advanced=True)
    output: str = _output_option()


DOCUMENTS: dict[str, type] = {
    "bake": BakeDocument,
    "merge": MergeDocument,
    "resize": ResizeDocument,
    "extract": ExtractDocument,
}


def tool_options(kind: str) -> list[Option]:
    """The fields of a tool's document in order."""
    return list(options_of(DOCUMENTS[kind], ""))


Document = TypeVar("Document")


def read(kind: type[Document], body: Mapping[str, Any]) -> Document:
    """A document from plain values; ``None`` counts as left out.

    Raises:
        ConfigErrors: unknown fields, wrong types or values out of bounds, all of them at once.
    """
    errors: list[InputError] = []
    found = read_document(kind, {key: value for key, value in body.items() if value is not None}, "", errors)
    if errors:
        raise ConfigErrors(errors)
    return found


class FileTools:
    """The file tools of a host.

    Args:
        host: whose LoRA folder it is.
        chores: in whose line the work waits.
    """

    def __init__(self, host: Host, chores: Chores) -> None:
        self.host = host
        self.chores = chores
        self.loras = LoraFolder(host)
        self._lock = threading.Lock()

    def start(self, kind: str, body: Mapping[str, Any], *, outside: bool = False) -> Chore:
        """Do one of :data:`DOCUMENTS`; what can be checked is checked at once.

        Returns:
            the chore, whose result is a :class:`lora_trainer.network.tools.Made`.

        Args:
            kind: which.
            body: a document of its kind.
            outside: LoRA files outside of the LoRA folder may be read too, where the host lets people read.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        tools = {"bake": self._bake, "merge": self._merge, "resize": self._resize, "extract": self._extract}
        return tools[kind](body, outside)

    def _bake(self, body: Mapping[str, Any], outside: bool) -> Chore:
        weight = {} if body.get("weight") is None else {"te": body["weight"], "unet": body["weight"]}
        document = read(BakeDocument, {**body, **{k: v for k, v in weight.items() if body.get(k) is None}})
        file = self.loras.find(document.file, outside=outside)
        checkpoint = self._checkpoint("checkpoint", document.checkpoint) if document.checkpoint else None
        check_blocks(self.host, "lbw", file, document.lbw, x=document.x)
        check_blocks(self.host, "lbwe", file, "", lbwe=document.lbwe)

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.tools import Baking, bake_file

            baking = Baking(
                document.te, document.unet, document.lbw, document.lbwe, document.x, document.seed, checkpoint
            )
            return bake_file(file, output, baking, self.host.block_presets())

        return self._start("bake", document.output, self._beside(file, "baked"), work)

    def _merge(self, body: Mapping[str, Any], outside: bool) -> Chore:
        document = read(MergeDocument, body)
        ingredients = self._ingredients("\n".join(document.files), "files", outside)
        together = "-".join(each.path.stem for each in ingredients)[:60].rstrip("-. ")

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.tools import merge_files

            ranks = document.rank or None, document.conv_rank or None
            precision = _precision(document.precision)
            return merge_files(ingredients, output, *ranks, precision, progress, self.host.block_presets())

        return self._start("merge", document.output, self.loras.root / f"{together}-merged{SUFFIX}", work)

    def _resize(self, body: Mapping[str, Any], outside: bool) -> Chore:
        from lora_trainer.network.resize import Rule

        document = read(ResizeDocument, body)
        file = self.loras.find(document.file, outside=outside)
        by_rank = document.method == "rank"
        with concerning("rank" if by_rank else "keep"):
            method, keep = ("", 0.0) if by_rank else (document.method, document.keep)
            rule = Rule(document.rank or None, document.conv_rank or None, method, keep)

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.tools import resize_file

            return resize_file(file, output, rule, _precision(document.precision), progress)

        return self._start("resize", document.output, self._beside(file, "resized"), work)

    def _extract(self, body: Mapping[str, Any], outside: bool) -> Chore:
        document = read(ExtractDocument, body)
        base, tuned = self._checkpoint("base", document.base), self._checkpoint("tuned", document.tuned)

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.tools import extract_file

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

        default = self.loras.root / f"{tuned.stem}-extracted{SUFFIX}"
        return self._start("extract", document.output, default, work)

    def info(self, name: str, *, outside: bool = False) -> dict[str, Any]:
        """What is in a LoRA file, ready for JSON; see :func:`lora_trainer.network.info.info`.

        Raises:
            InputError: there is none of this name, or it is damaged.
        """
        from lora_trainer.network.info import info

        return info(self.loras.find(name, "name", outside=outside))

    @staticmethod
    def require_lora(path: Path) -> None:
        """Raises :class:`InputError` for what is no LoRA, or has modules of an unknown kind."""
        from lora_trainer.network.info import block_infos
        from lora_trainer.network.lora_file import read_lora

        _architecture(path)
        block_infos(read_lora(path))

    @staticmethod
    def card(path: Path) -> dict[str, Any]:
        """See :func:`lora_trainer.network.tools.read_card`."""
        from lora_trainer.network.tools import read_card

        return read_card(path)

    def presets(self, name: str) -> list[str]:
        """Names of the block presets for a file's architecture; nothing for what is no LoRA.

        Raises:
            InputError: there is no such file, or the person's presets cannot be read.
        """
        architecture = _architecture(self.loras.find(name, outside=True))
        return self.host.block_presets().names(architecture)

    # -------------------------------------------------------------- within
    def _ingredients(self, text: str, place: str, outside: bool) -> list[Ingredient]:
        """The files and weights of lines such as ``name: 0.7``; ``place`` is the field that the sentences are about."""
        from lora_trainer.network.stacks import parse_stack, require_constant
        from lora_trainer.network.tools import Ingredient

        with concerning(place):
            tags = parse_stack(text).tags
            for tag in tags:
                require_constant(tag)
        paths = [self.loras.find(tag.name, place, outside=outside) for tag in tags]
        for tag, path in zip(tags, paths, strict=True):
            check_blocks(self.host, place, path, tag.lbw, lbwe=tag.lbwe, x=tag.x)
        return [Ingredient.of(tag, path) for tag, path in zip(tags, paths, strict=True)]

    def _start(self, kind: str, name: str, default: Path, work: Callable[[Path, Progress], Made]) -> Chore:
        """Find a name for the new file, which nobody else gets then, and put the work into the line."""
        with self._lock:
            awaited = [chore.title for chore in self.chores.list() if chore.is_working]
            output = self.loras.new(name, default, awaited)

            def announced(progress: Progress) -> Made:
                made = work(output, progress)
                self.host.announce(made.path)
                return made

            return self.chores.start(kind, output.stem, announced)

    def _beside(self, file: Path, what: str) -> Path:
        """A name in the LoRA folder, beside the file if that is there."""
        folder = file.parent if self.loras.root in file.parents else self.loras.root
        return folder / f"{file.stem}-{what}{SUFFIX}"

    def _checkpoint(self, place: str, name: str) -> Path:
        """One of the host's checkpoints by name or path, or another that may be read."""
        name = clean_path(name)
        for known in self.host.checkpoints():
            if name in (known.name, str(known)):
                return known
        if not name.strip():
            raise field_error(place, "choose a checkpoint.")
        require_readable(self.host, place, name)
        return expand(name)


def check_blocks(host: Host, place: str, file: Path, lbw: str, **values: Any) -> None:
    """See that block weights can be used with a file, of which only the header is read.

    Args:
        host: whose presets count.
        place: the field that the sentence is about.
        file: the LoRA file.
        lbw: as for :func:`lora_trainer.network.block_weights.resolve`.
        **values: the same.

    Raises:
        InputError: the sentence of ``resolve``, or the file cannot be read.
    """
    from lora_trainer.network.block_weights import resolve

    if lbw or values.get("lbwe"):
        architecture = _architecture(file)
        with concerning(place):
            resolve(lbw, architecture, host.block_presets(), **values)


def _architecture(file: Path) -> Architecture:
    from lora_trainer.network.blocks import architecture_of
    from lora_trainer.network.lora_file import read_metadata, read_names

    return architecture_of((name.partition(".")[0] for name in read_names(file)), read_metadata(file))


def _precision(chosen: str) -> str | None:
    return None if chosen == PRECISIONS[0] else chosen


@contextmanager
def concerning(place: str) -> Iterator[None]:
    """Errors that name no field are about this one."""
    try:
        yield
    except InputError as error:
        error.field = error.field or place
        raise
