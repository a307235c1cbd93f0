"""The file tools as page and REST use them: documents in, a task in the line out, files in the LoRA folder only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import field_error
from lora_trainer.core.errors import concerning
from lora_trainer.core.paths import clean_path, expand
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.background import BackgroundTask, BackgroundTasks, Progress
from lora_trainer.jobs.library import SUFFIX, LoraFolder, architecture_at, check_blocks, require_readable
from lora_trainer.jobs.requests import PRECISIONS, BakeDocument, ExtractDocument, MergeDocument, ResizeDocument, read

if TYPE_CHECKING:
    from lora_trainer.network.ops.files import Ingredient, Made


class FileTools:
    """The file tools of a host.

    Args:
        host: whose LoRA folder it is.
        tasks: in whose line the work waits.
    """

    def __init__(self, host: Host, tasks: BackgroundTasks) -> None:
        self.host = host
        self.tasks = tasks
        self.loras = LoraFolder(host)
        self._lock = threading.Lock()

    def start(self, kind: str, body: Mapping[str, Any], *, outside: bool = False) -> BackgroundTask:
        """Do one of :data:`DOCUMENTS`; what can be checked is checked at once.

        Returns:
            the task, whose result is a :class:`lora_trainer.network.ops.files.Made`.

        Args:
            kind: which.
            body: a document of its kind.
            outside: LoRA files outside of the LoRA folder may be read too, where the host lets people read.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        tools = {"bake": self._bake, "merge": self._merge, "resize": self._resize, "extract": self._extract}
        return tools[kind](body, outside)

    def _bake(self, body: Mapping[str, Any], outside: bool) -> BackgroundTask:
        weight = {} if body.get("weight") is None else {"te": body["weight"], "unet": body["weight"]}
        document = read(BakeDocument, {**body, **{k: v for k, v in weight.items() if body.get(k) is None}})
        file = self.loras.find(document.file, outside=outside)
        checkpoint = self._checkpoint("checkpoint", document.checkpoint) if document.checkpoint else None
        check_blocks(self.host, "lbw", file, document.lbw, x=document.x)
        check_blocks(self.host, "lbwe", file, "", lbwe=document.lbwe)

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.ops.files import Baking, bake_file

            baking = Baking(
                document.te, document.unet, document.lbw, document.lbwe, document.x, document.seed, checkpoint
            )
            return bake_file(file, output, baking, self.host.block_presets())

        return self._start("bake", document.output, self._beside(file, "baked"), work)

    def _merge(self, body: Mapping[str, Any], outside: bool) -> BackgroundTask:
        document = read(MergeDocument, body)
        ingredients = self._ingredients("\n".join(document.files), "files", outside)
        together = "-".join(each.path.stem for each in ingredients)[:60].rstrip("-. ")

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.ops.files import merge_files

            ranks = document.rank or None, document.conv_rank or None
            precision = _precision(document.precision)
            return merge_files(ingredients, output, *ranks, precision, progress, self.host.block_presets())

        return self._start("merge", document.output, self.loras.root / f"{together}-merged{SUFFIX}", work)

    def _resize(self, body: Mapping[str, Any], outside: bool) -> BackgroundTask:
        from lora_trainer.network.ops.resize import Rule

        document = read(ResizeDocument, body)
        file = self.loras.find(document.file, outside=outside)
        by_rank = document.method == "rank"
        with concerning("rank" if by_rank else "keep"):
            method, keep = ("", 0.0) if by_rank else (document.method, document.keep)
            rule = Rule(document.rank or None, document.conv_rank or None, method, keep)

        def work(output: Path, progress: Progress) -> Made:
            from lora_trainer.network.ops.files import resize_file

            return resize_file(file, output, rule, _precision(document.precision), progress)

        return self._start("resize", document.output, self._beside(file, "resized"), work)

    def _extract(self, body: Mapping[str, Any], outside: bool) -> BackgroundTask:
        document = read(ExtractDocument, body)
        base, tuned = self._checkpoint("base", document.base), self._checkpoint("tuned", document.tuned)

        def work(output: Path, progress: Progress) -> Made:
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

        default = self.loras.root / f"{tuned.stem}-extracted{SUFFIX}"
        return self._start("extract", document.output, default, work)

    def info(self, name: str, *, outside: bool = False) -> dict[str, Any]:
        """What is in a LoRA file, ready for JSON; see :func:`lora_trainer.network.ops.info.info`.

        Raises:
            InputError: there is none of this name, or it is damaged.
        """
        from lora_trainer.network.ops.info import info

        return info(self.loras.find(name, "name", outside=outside))

    @staticmethod
    def require_lora(path: Path) -> None:
        """Raises :class:`InputError` for what is no LoRA, or has modules of an unknown kind."""
        from lora_trainer.network.lora_file import read_lora
        from lora_trainer.network.ops.info import block_infos

        architecture_at(path)
        block_infos(read_lora(path))

    @staticmethod
    def card(path: Path) -> dict[str, Any]:
        """See :func:`lora_trainer.network.card.read_card`."""
        from lora_trainer.network.card import read_card

        return read_card(path)

    def presets(self, name: str) -> list[str]:
        """Names of the block presets for a file's architecture; nothing for what is no LoRA.

        Raises:
            InputError: there is no such file, or the person's presets cannot be read.
        """
        architecture = architecture_at(self.loras.find(name, outside=True))
        return self.host.block_presets().names(architecture)

    # -------------------------------------------------------------- within
    def _ingredients(self, text: str, place: str, outside: bool) -> list[Ingredient]:
        """The files and weights of lines such as ``name: 0.7``; ``place`` is the field that the sentences are about."""
        from lora_trainer.network.blocks.stack import parse_stack, require_constant
        from lora_trainer.network.ops.files import Ingredient

        with concerning(place):
            tags = parse_stack(text).tags
            for tag in tags:
                require_constant(tag)
        paths = [self.loras.find(tag.name, place, outside=outside) for tag in tags]
        for tag, path in zip(tags, paths, strict=True):
            check_blocks(self.host, place, path, tag.lbw, lbwe=tag.lbwe, x=tag.x)
        return [Ingredient.of(tag, path) for tag, path in zip(tags, paths, strict=True)]

    def _start(self, kind: str, name: str, default: Path, work: Callable[[Path, Progress], Made]) -> BackgroundTask:
        """Find a name for the new file, which nobody else gets then, and put the work into the line."""
        with self._lock:
            awaited = [task.title for task in self.tasks.list() if task.is_working]
            output = self.loras.new(name, default, awaited)

            def announced(progress: Progress) -> Made:
                made = work(output, progress)
                self.host.announce(made.path)
                return made

            return self.tasks.start(kind, output.stem, announced)

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


def _precision(chosen: str) -> str | None:
    return None if chosen == PRECISIONS[0] else chosen
