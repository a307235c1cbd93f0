"""Everything that is measured of a drawn grid, in its document: losses, pictures, the verdict, the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import write_json
from lora_trainer.core.paths import expand
from lora_trainer.hosts.base import Host, Session
from lora_trainer.validation.grid.csv_table import write_csv
from lora_trainer.validation.grid.document import GridDocument
from lora_trainer.validation.grid.numbers import add_losses, add_picture_numbers
from lora_trainer.validation.grid.verdict import judge
from lora_trainer.validation.metrics.held_out_loss import held_out_losses
from lora_trainer.validation.metrics.pictures import training_pictures

OnPhase = Callable[[str, int, int], object]
"""Called with what is being measured, how many are done, and of how many; may raise to stop."""


def measure_grid(
    document: GridDocument,
    host: Host,
    session: Session,
    config: TrainConfig,
    folder: Path,
    *,
    clip: str = "",
    fingerprint: str = "",
    on_phase: OnPhase = lambda phase, done, of: None,
) -> GridDocument:
    """Fill in a grid's numbers and verdict, and write ``grid.json``, ``grid.csv`` and ``grid-cells.csv``.

    What was measured before is known from ``losses.json`` and ``pictures.json`` beside it. What cannot be measured
    (the pictures are gone, a file does not fit) is left out and told in the document's ``problems``.

    Args:
        document: of the drawn grid; changed in place and returned.
        host: knows where latents are cached.
        session: the hold on the model.
        config: of the run.
        folder: of the grid.
        clip: folder of a CLIP model, empty for none.
        fingerprint: of the data set in the run's manifest.
        on_phase: told how far it is.

    Raises:
        InputError: ``clip`` is no folder of a CLIP model.
        RunError: the disk is full.
    """
    files = [Path(column["file"]) for column in document["columns"] if column["file"]]
    try:
        losses = held_out_losses(
            host,
            session,
            config,
            files,
            document["weights"],
            lambda done, of: on_phase("losses", done, of),
            cache=folder / "losses.json",
            fingerprint=fingerprint,
        )
        add_losses(document, losses)
        document["problems"] += document["measured"]["problems"]
    except InputError as error:  # the data set is gone; the pictures can still be compared
        document["problems"].append(error.message.to_dict())
    add_picture_numbers(
        document,
        _pictures(config),
        clip=expand(clip) if clip else None,
        clip_device=str(session.model.device),
        cache=folder / "pictures.json",
        on_cell=lambda done, of: on_phase("numbers", done, of),
    )
    document["verdict"] = judge(document)
    write_csv(document, folder / "grid.csv")
    document["csv"] = str(folder / "grid.csv")
    write_json(folder / "grid.json", document)
    return document


def _pictures(config: TrainConfig) -> list[Path]:
    try:
        return training_pictures(config)
    except InputError:
        return []
