"""A grid's numbers as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_trainer.core.files import replace_atomically
from lora_trainer.validation.grid.document import GridDocument
from lora_trainer.validation.grid.numbers import PICTURE_NUMBERS

_FORMULA = tuple("=+-@＝＋－＠")
_OF_GROUPS = ("loss", "loss_se", *(f"{name}{part}" for name in PICTURE_NUMBERS for part in ("", "_sd")))


def write_csv(document: GridDocument, path: Path) -> Path:
    """Write one line for each file and weight to ``path``, and one for each cell beside it (``…-cells.csv``).

    UTF-8 with a byte order mark, without which Excel in China reads it as GBK. A text that a spreadsheet would take for
    a formula gets an apostrophe in front.

    Args:
        document: of a grid.
        path: of the table of groups.

    Returns:
        The path of the table of cells.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    cells = path.with_name(f"{path.stem}-cells{path.suffix}")
    _write(path, _groups(document))
    _write(cells, _cells(document))
    return cells


def _groups(document: GridDocument) -> Iterable[Sequence[object]]:
    yield "column", "name", "epoch", "step", "weight", *_OF_GROUPS, "recommended"
    verdict = document["verdict"]
    recommended = (verdict["column"], verdict["weight"]) if verdict else None
    for group in document["groups"]:
        numbers = [group["numbers"].get(name, "") for name in _OF_GROUPS]
        is_chosen = (group["column"], group["weight"]) == recommended
        yield *_column(document, group["column"]), group["weight"], *numbers, "yes" if is_chosen else ""


def _cells(document: GridDocument) -> Iterable[Sequence[object]]:
    yield "column", "name", "epoch", "step", "weight", "prompt", "trigger", "seed", *PICTURE_NUMBERS, "picture"
    for cell in document["cells"]:
        prompt = document["prompts"][cell["prompt"]]
        numbers = [cell["numbers"].get(name, "") for name in PICTURE_NUMBERS]
        yield (
            *_column(document, cell["column"]),
            cell["weight"],
            prompt["text"],
            "yes" if prompt["trigger"] else "no",
            document["seeds"][cell["seed"]],
            *numbers,
            cell["picture"] or "",
        )


def _column(document: GridDocument, index: int) -> tuple[object, ...]:
    column = document["columns"][index]
    return column["label"], column["name"], column["epoch"], column["step"]


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[_safe(value) for value in row] for row in rows])
    replace_atomically(path, lambda temporary: temporary.write_bytes(text.getvalue().encode("utf-8-sig")))


def _safe(value: object) -> object:
    """The value; a text that begins like a formula as a text. Numbers stay numbers."""
    if isinstance(value, str) and value.lstrip().startswith(_FORMULA):
        return f"'{value}"
    return value
