"""Pictures of random mixes: one prompt, several LoRAs at random weights, each picture with its weights on disk."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.files import save_picture, temporary_folder, write_json, write_text
from lora_trainer.core.plain_json import plain
from lora_trainer.dataset.images import is_whole
from lora_trainer.hosts.base import DrawRequest, LoraUse, Session
from lora_trainer.model.memory import free_memory, is_out_of_memory
from lora_trainer.network.blocks.stack import MixRule, Stack, mixes
from lora_trainer.validation.grid.cells import no_memory

if TYPE_CHECKING:
    from PIL import Image

    from lora_trainer.model.families import CheckpointInfo
    from lora_trainer.network.blocks.presets import Presets

DOCUMENT, TABLE = "mixes.json", "mixes.csv"


@dataclass(frozen=True)
class MixPlan:
    """A batch of mixes.

    Attributes:
        stack: the LoRAs at the weights to mix around.
        files: name → file.
        count: how many mixes.
        rule: how their weights are drawn.
        request: the picture, without the tags.
        base: the checkpoint, as a text that tells it from others.
    """

    stack: Stack
    files: Mapping[str, Path]
    count: int
    rule: MixRule
    request: DrawRequest
    base: str = ""

    def on(self, checkpoint: CheckpointInfo) -> MixPlan:
        """The same on a checkpoint, whose pictures are kept apart from those of others."""
        return replace(self, base=repr((checkpoint.name, checkpoint.key, checkpoint.vae)))

    def stacks(self) -> list[Stack]:
        """The mixes."""
        return mixes(self.stack, self.count, self.rule)

    def document(self, pictures: Sequence[Path] | None = None) -> dict[str, Any]:
        """All about it as plain values: of the mixes whose pictures are given, else of all."""
        stacks = self.stacks()
        files: Sequence[Path | None] = [None] * len(stacks) if pictures is None else pictures
        return {
            "version": 1,
            "loras": [
                {"name": tag.name, "tag": str(tag), "file": str(self.files[tag.name]), "weight": weight}
                for tag, weight in zip(self.stack.tags, self.stack.weights.values(), strict=True)
            ],
            "rule": asdict(self.rule),
            "request": plain(asdict(self.request)),
            "mixes": [
                {
                    "number": number,
                    "weights": stack.weights,
                    "total": round(stack.total, 3),
                    "tags": str(stack),
                    "prompt": stack.prompt(self.request.prompt),
                    "picture": str(picture or ""),
                }
                for number, (stack, picture) in enumerate(zip(stacks, files, strict=False), start=1)
            ],
        }

    def key(self, draw_settings: str = "") -> str:
        """Name of the batch's folder: the same for equal batches, however many mixes they have."""
        stamps = [(str(path), stat.st_size, stat.st_mtime_ns) for path in self.files.values() for stat in [path.stat()]]
        made_of = (str(self.stack), stamps, self.rule, self.request, self.base, draw_settings)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Mixed:
    """A batch that was drawn.

    Attributes:
        folder: with ``mixes.json``, ``mixes.csv`` and the pictures.
        document: what stands in ``mixes.json``.
    """

    folder: Path
    document: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"folder": str(self.folder), **self.document}


def draw_mixes(
    plan: MixPlan,
    session: Session,
    root: Path,
    *,
    reads_tags: bool,
    presets: Presets | None = None,
    progress: Callable[[int, int, Mixed], object] = lambda done, of, mixed: None,
) -> Mixed:
    """Draw the mixes that are not drawn yet.

    Args:
        plan: the batch.
        session: that draws.
        root: the batch gets a folder in it. Document and table are written after each picture, so what is finished
            stays when the work is interrupted, and an equal batch goes on there.
        reads_tags: whether the session's prompts may have tags in them; where not, the LoRAs are put side by side in a
            temporary file, which is exact, but works for LoRA and LoCon files only.
        presets: named block lists.
        progress: called with pictures done and in all, and what is on disk so far; may raise to stop.

    Raises:
        InputError: the files cannot be mixed.
        RunError: the disk is full, or the drawing was interrupted.
    """
    folder = root / plan.key(session.draw_settings())
    stacks = plan.stacks()
    pictures = [folder / f"{number:04d}.png" for number in range(1, len(stacks) + 1)]
    made = Mixed(folder, plan.document([]))
    for done, (stack, picture) in enumerate(zip(stacks, pictures, strict=True)):
        progress(done, len(stacks), made)
        if not is_whole(picture):
            save_picture(picture, _draw(plan, stack, session, picture, reads_tags, presets))
        made = Mixed(folder, plan.document(pictures[: done + 1]))
        write_json(folder / DOCUMENT, made.document)
        write_text(folder / TABLE, table(made.document))
    progress(len(stacks), len(stacks), made)
    return made


def _draw(
    plan: MixPlan, stack: Stack, session: Session, picture: Path, reads_tags: bool, presets: Presets | None
) -> Image.Image:
    request = replace(plan.request, prompt=stack.prompt(plan.request.prompt))
    if reads_tags:
        return _drawn(session, request, None)
    with _one_file(plan, stack, picture, presets) as path:
        use = LoraUse(path)
        image = _drawn(session, plan.request, use)
    made = image.info["parameters"]
    image.info["parameters"] = request.prompt + made.removeprefix(plan.request.prompt + use.tag)
    return image


def _drawn(session: Session, request: DrawRequest, lora: LoraUse | None) -> Image.Image:
    try:
        with session.turn():
            return session.draw([request], lora)[0]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        raise no_memory(request) from error


@contextmanager
def _one_file(plan: MixPlan, stack: Stack, picture: Path, presets: Presets | None) -> Iterator[Path]:
    """The LoRAs of a mix as one file, for a host that uses one in a picture; deleted after.

    Each mix has a path of its own: the standalone host keeps the last file by its path.
    """
    from lora_trainer.network.blocks.stack import require_constant
    from lora_trainer.network.ops.files import Ingredient
    from lora_trainer.network.ops.merge import merge
    from lora_trainer.network.ops.provenance import write_derived

    for tag in stack.tags:
        require_constant(tag)
    sources = [Ingredient.of(tag, plan.files[tag.name]).source(presets) for tag in stack.tags]
    with temporary_folder(picture.parent) as folder:
        path = folder / f"{picture.stem}.safetensors"
        write_derived(path, merge(sources, precision="fp32").stored, {})
        yield path


def table(document: Mapping[str, Any]) -> str:
    """The mixes as CSV: a column a LoRA."""
    names = [lora["name"] for lora in document["loras"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", *names, "total", "tags", "picture"])
    for mix in document["mixes"]:
        weights = [mix["weights"][name] for name in names]
        writer.writerow([mix["number"], *weights, mix["total"], mix["tags"], mix["picture"]])
    return text.getvalue()
