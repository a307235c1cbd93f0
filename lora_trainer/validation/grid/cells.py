"""The pictures of a grid: drawn once, kept on disk under a name that tells what they show, and found there again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from PIL import Image

from lora_trainer.core.errors import InputError, LoraTrainError, RunError
from lora_trainer.core.files import save_picture
from lora_trainer.dataset.images import is_whole
from lora_trainer.hosts.base import DrawRequest, LoraUse, Session
from lora_trainer.model.memory import free_memory, is_out_of_memory

OnCells = Callable[[int, int], None]
"""Called with the number of cells that are there, and of all."""


@dataclass(frozen=True)
class Cell:
    """One picture: a LoRA (``None`` for the checkpoint alone) with a prompt and seed.

    ``content`` tells files of one name apart (a resumed run writes its last file again), ``base`` checkpoints and
    whatever else of the host changes a picture.
    """

    lora: LoraUse | None
    request: DrawRequest
    content: str = ""
    base: str = ""

    @property
    def used(self) -> LoraUse | None:
        """The LoRA, unless it has no effect."""
        return self.lora if self.lora and self.lora.weight else None

    def key(self) -> str:
        """Name of the cell's picture; the same for cells that show the same thing."""
        used = self.used
        lora = (used.path.name, self.content, used.weight, used.lbw) if used else None
        more = (self.request.more,) if self.request.more else ()  # without any the names are those of before
        return hashlib.sha256(repr((self.base, lora, self.request, *more)).encode()).hexdigest()[:16]


@dataclass
class Drawn:
    """What has come of the cells.

    Attributes:
        folder: where the pictures are.
        pictures: key → picture, of all that are there.
        problems: file → why nothing can be drawn with it.
    """

    folder: Path
    pictures: dict[str, Path] = field(default_factory=dict)
    problems: dict[Path, LoraTrainError] = field(default_factory=dict)

    def find(self, cell: Cell) -> bool:
        """Whether the cell was drawn before; a damaged picture is drawn again."""
        path = self.place(cell)
        if not is_whole(path):
            return False
        self.pictures[cell.key()] = path
        return True

    def place(self, cell: Cell) -> Path:
        """Where the cell's picture is, or will be."""
        return self.folder / f"{cell.key()}.png"


def count_batches(cells: Sequence[Cell], drawn: Drawn, together: int) -> int:
    """How often the host draws for the cells that are missing, see :func:`draw_cells`."""
    groups = groupby(_missing(cells, drawn), key=lambda cell: cell.used)
    return sum(-(-len(list(group)) // max(1, together)) for _, group in groups)


def _missing(cells: Sequence[Cell], drawn: Drawn) -> list[Cell]:
    return [cell for cell in {cell.key(): cell for cell in cells}.values() if not drawn.find(cell)]


def draw_cells(
    cells: Sequence[Cell], session: Session, drawn: Drawn, together: int = 1, on_cells: OnCells = lambda done, of: None
) -> Iterator[None]:
    """Draw the missing cells into ``drawn``; yields at the beginning and after every batch.

    Cells that follow each other with the same LoRA are drawn together, at most ``together`` at once, half as many
    when the memory is too small. With a file that is gone or cannot be used the others go on.

    Raises:
        RunError: there is not enough memory for one picture, the disk is full, or the drawing was interrupted.
    """
    missing = _missing(cells, drawn)
    keys = [cell.key() for cell in cells]

    def count() -> None:
        on_cells(sum(key in drawn.pictures for key in keys), len(keys))

    count()
    yield
    at_once = max(1, together)
    for lora, group in groupby(missing, key=lambda cell: cell.used):
        waiting = list(group)
        while waiting:
            batch = waiting[:at_once]
            try:
                images = _draw(batch, session)
            except InputError as error:
                if lora is None:
                    raise
                drawn.problems[lora.path] = error
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                free_memory()
                at_once = _fewer(batch, error)
                continue
            for cell, image in zip(batch, images, strict=True):
                save_picture(drawn.place(cell), image)
                drawn.pictures[cell.key()] = drawn.place(cell)
            waiting = waiting[len(batch) :]
            count()
            yield


def _draw(batch: Sequence[Cell], session: Session) -> list[Image.Image]:
    lora = batch[0].used
    if lora and not lora.path.is_file():
        raise InputError("{path} is gone, so nothing can be drawn with it.", path=lora.path)
    with session.turn(drawing=True):
        return session.draw([cell.request for cell in batch], lora)


def _fewer(batch: Sequence[Cell], error: BaseException) -> int:
    """How many to draw at once after the memory was too small."""
    if len(batch) == 1:
        raise no_memory(batch[0].request) from error
    return len(batch) // 2


def no_memory(request: DrawRequest) -> RunError:
    """The sentence for a picture that is too large."""
    return RunError(
        "There is not enough memory to draw a picture of {width}×{height}; choose a smaller sample size, or close "
        "other programs.",
        width=request.width,
        height=request.height,
    )
