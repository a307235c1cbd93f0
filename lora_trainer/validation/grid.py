"""The epoch × weight grid: one picture for each file of a run at each weight, on one labelled sheet."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from lora_trainer.config import TrainConfig
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.errors import InputError, NotFound
from lora_trainer.files import replace_atomically, save_picture, write_json
from lora_trainer.hosts.base import DrawRequest, LoraUse, Session, draw_request
from lora_trainer.runs import Run

if TYPE_CHECKING:
    from lora_trainer.model.families import CheckpointInfo

DEFAULT_WEIGHTS = (0.3, 0.6, 0.8, 1.0)
MAX_CELLS = 2000
VERSION = 2
_PAD, _LINE = 6, 14


@dataclass(frozen=True)
class Cell:
    """One picture of the grid: a file (``None`` for the checkpoint alone) at a weight, with a prompt.

    ``content`` tells files of one name apart (a resumed run writes its last file again), ``base`` checkpoints.
    """

    file: Path | None
    label: str
    weight: float
    request: DrawRequest
    content: str = ""
    base: str = ""

    def key(self) -> str:
        """Name of the cell's picture; the same for cells that show the same thing."""
        used = bool(self.file and self.weight)
        lora = (self.file.name, self.content, self.weight) if self.file and used else None
        return hashlib.sha256(repr((self.base, lora, self.request)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GridPlan:
    """Rows are prompts × weights, columns are the run's files; ``contents`` are the files' SHA-256."""

    columns: list[tuple[str, Path | None]]
    weights: list[float]
    requests: list[DrawRequest]
    contents: dict[Path, str] = field(default_factory=dict)
    base: str = ""

    def on(self, checkpoint: CheckpointInfo) -> GridPlan:
        """The same grid on a checkpoint, whose pictures are kept apart from those of others."""
        return replace(self, base=repr((checkpoint.name, checkpoint.sha256 or checkpoint.legacy_hash, checkpoint.vae)))

    def cell(self, column: int, weight: float, request: DrawRequest) -> Cell:
        """One cell."""
        label, path = self.columns[column]
        return Cell(path, label, weight, request, self.contents.get(path, "") if path else "", self.base)

    def cells(self) -> list[Cell]:
        """All cells, file by file, so that a file is loaded once."""
        return [
            self.cell(column, weight, request)
            for column in range(len(self.columns))
            for weight in self.weights
            for request in self.requests
        ]


def plan_grid(
    run: Run, weights: Sequence[float] = (), prompts: Sequence[str] = (), config: TrainConfig | None = None
) -> GridPlan:
    """The grid of a run's finished files.

    Args:
        run: the run.
        weights: LoRA weights; :data:`DEFAULT_WEIGHTS` when none are given.
        prompts: prompts; those of the run's samples, else its trigger word, when none are given.
        config: the run's settings, when they are at hand.

    Raises:
        InputError: no files, or too many cells.
    """
    config = config or run.config()
    files = [
        (f"step {f['step']}" if _is_step(f) else f"epoch {f['epoch']}", Path(f["path"])) for f in run.manifest["files"]
    ]
    found = [(label, path) for label, path in files if path.is_file()]
    if not found:
        raise InputError("The run {name} has no LoRA files (yet), so there is nothing to compare.", name=run.name)
    wanted = list(prompts) or config.samples.prompts or [config.data.trigger or config.name]
    requests = [draw_request(config.samples, prompt, config.data.resolution) for prompt in wanted]
    chosen = [float(w) for w in weights] or list(DEFAULT_WEIGHTS)
    if any(not -2 <= w <= 2 for w in chosen):
        raise InputError("weights: use numbers from -2 to 2.", field="weights")
    contents = {Path(f["path"]): str(f.get("sha256", "")) for f in run.manifest["files"]}
    plan = GridPlan([("no LoRA", None), *found], chosen, requests, contents)
    if len(plan.cells()) > MAX_CELLS:
        raise InputError(
            "The grid would have {count} pictures; {most} is the most.", count=len(plan.cells()), most=MAX_CELLS
        )
    return plan


def _is_step(entry: dict[str, Any]) -> bool:
    return "-step" in Path(entry["path"]).stem


def grid_folder(run: Run) -> Path:
    """Where a run's grid is."""
    return run.grids / "plain"


def read_document(run: Run) -> dict[str, Any]:
    """The document of a run's grid.

    Raises:
        NotFound: none was begun, or it was made by an older version.
    """
    try:
        document = json.loads((grid_folder(run) / "grid.json").read_text(encoding="utf-8"))
        if document["version"] == VERSION:
            return document
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise NotFound("No grid of {name} has been drawn yet.", field="name", name=run.name)


def draw_grid(
    plan: GridPlan, session: Session, folder: Path, on_cell: Callable[[int, int], object] = lambda done, of: None
) -> Path:
    """Draw the missing cells into ``folder/cells`` and put all on one sheet; returns the sheet's path."""
    pictures: dict[str, Path] = {}
    cells = plan.cells()
    for count, cell in enumerate(cells, start=1):
        key = cell.key()
        path = folder / "cells" / f"{key}.png"
        if key not in pictures and not _is_drawn(path):
            lora = LoraUse(cell.file, cell.weight) if cell.file and cell.weight else None
            with session.turn():
                (image,) = session.draw([cell.request], lora)
            save_picture(path, image)
        pictures[key] = path
        on_cell(count, len(cells))
    sheet = folder / "grid.png"
    image = compose(plan, pictures)
    replace_atomically(sheet, lambda temporary: image.save(temporary, "PNG"))
    write_json(folder / "grid.json", _describe(plan, pictures))
    return sheet


def _is_drawn(path: Path) -> bool:
    """Whether a cell was drawn before; a damaged one is drawn again."""
    try:
        return path.is_file() and read_picture(path) is not None
    except PictureError:
        return False


def compose(plan: GridPlan, pictures: dict[str, Path]) -> Image.Image:
    """The sheet: columns are files, rows are weights, one block of rows a prompt, all labelled."""
    width = max(r.width for r in plan.requests)
    height = max(r.height for r in plan.requests)
    font = _font()
    left = 2 * _PAD + int(max(font.getlength(f"weight {w:g}") for w in plan.weights))
    top = 2 * _PAD + _LINE
    block = _LINE + 2 * _PAD + len(plan.weights) * (height + _PAD)
    sheet = Image.new("RGB", (left + len(plan.columns) * (width + _PAD), top + len(plan.requests) * block), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (label, _) in enumerate(plan.columns):
        pen.text((left + column * (width + _PAD), _PAD), _shorten(label, width, font), fill="black", font=font)
    for row, request in enumerate(plan.requests):
        y = top + row * block
        pen.text((_PAD, y), _shorten(request.prompt, sheet.width - 2 * _PAD, font), fill=(60, 60, 160), font=font)
        for line, weight in enumerate(plan.weights):
            cell_y = y + _LINE + _PAD + line * (height + _PAD)
            pen.text((_PAD, cell_y + height // 2), f"weight {weight:g}", fill="black", font=font)
            for column in range(len(plan.columns)):
                with Image.open(pictures[plan.cell(column, weight, request).key()]) as picture:
                    sheet.paste(picture.convert("RGB"), (left + column * (width + _PAD), cell_y))
    return sheet


def _font() -> Any:
    """A font that comes with every Pillow, or a system one that knows Chinese."""
    for name in ("msyh.ttc", "PingFang.ttc", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return ImageFont.load_default()


def _shorten(text: str, width: float, font: Any, dots: str = "…") -> str:
    """As much of ``text`` as fits into ``width``, with ``dots`` when that is not all."""

    def is_too_long(kept: int) -> bool:
        return font.getlength(text[:kept] + dots) > width

    try:
        if font.getlength(text) <= width:
            return text
        kept = bisect_left(range(1, len(text) + 1), True, key=is_too_long)
        return text[:kept] + dots if kept else ""
    except UnicodeEncodeError:  # Pillow's built-in font knows Latin letters only
        return _shorten(text.encode("latin-1", "replace").decode("latin-1"), width, font, "...")


def _describe(plan: GridPlan, pictures: dict[str, Path]) -> dict[str, Any]:
    return {
        "columns": [{"label": label, "file": str(path) if path else None} for label, path in plan.columns],
        "weights": plan.weights,
        "prompts": [r.prompt for r in plan.requests],
        "cells": [
            {
                "label": cell.label,
                "weight": cell.weight,
                "prompt": cell.request.prompt,
                "picture": str(pictures[cell.key()]),
                "request": json.loads(json.dumps(replace(cell.request).__dict__)),
            }
            for cell in plan.cells()
        ],
    }
