"""The epoch × weight grid: a picture for each file of a run at each weight, with each prompt and seed.

The grid's document, ``grid.json``, is what page, command line and REST read; DESIGN names the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.config.parsing import parts
from lora_trainer.config.schema import bounds
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import DrawRequest, LoraUse, draw_request
from lora_trainer.runs.run import Run
from lora_trainer.runs.saved_files import RunFiles, SavedFile, epoch_values, run_files
from lora_trainer.validation.grid.cells import Cell
from lora_trainer.validation.grid.options import DEFAULT_WEIGHTS, GridOptions, grid_options

if TYPE_CHECKING:
    from lora_trainer.model.families import CheckpointInfo

MAX_VALUES = 200
"""Of weights, prompts or seeds; so many that only a mistake has more."""


@dataclass(frozen=True)
class Column:
    """A file of the run, or without one the checkpoint alone."""

    saved: SavedFile | None = None

    @property
    def label(self) -> str:
        """What it is called above the pictures."""
        return self.saved.label if self.saved else "no LoRA"

    @property
    def file(self) -> Path | None:
        """Where the file is."""
        return self.saved.path if self.saved else None

    @property
    def content(self) -> str:
        """Tells files of one name apart."""
        return self.saved.sha256 if self.saved else ""


ALONE = Column()


@dataclass(frozen=True)
class GridPlan:
    """What a grid shows. The first column is the checkpoint alone.

    Attributes:
        run: its name.
        trigger: the run's trigger word.
        columns: the files.
        weights: of the LoRA.
        prompts: as they are drawn.
        seeds: of the pictures.
        request: everything else about a picture.
        base: what of the host changes a picture.
    """

    run: str
    trigger: str
    columns: list[Column]
    weights: list[float]
    prompts: list[str]
    seeds: list[int]
    request: DrawRequest
    base: str = ""

    def on(self, checkpoint: CheckpointInfo, settings: str = "") -> GridPlan:
        """The same grid on a checkpoint with a host's settings, whose pictures are kept apart from those of others."""
        known = (checkpoint.name, checkpoint.key, checkpoint.vae)
        return replace(self, base=repr((known, settings)))

    def cell(self, column: int, weight: float, prompt: int, seed: int) -> Cell:
        """One cell."""
        used = self.columns[column]
        request = replace(self.request, prompt=self.prompts[prompt], seed=self.seeds[seed])
        return Cell(LoraUse(used.file, float(weight)) if used.file else None, request, used.content, self.base)

    def places(self) -> list[tuple[int, float, int, int]]:
        """Column, weight, prompt and seed of all cells, file by file and weight by weight.

        So a file is loaded and put into the model once, and what differs in prompt and seed only is drawn together.
        """
        return [
            (column, weight, prompt, seed)
            for column, used in enumerate(self.columns)
            for weight in (self.weights if used.file else [0.0])
            for prompt in range(len(self.prompts))
            for seed in range(len(self.seeds))
        ]

    def has_trigger(self, prompt: str) -> bool:
        """Whether a prompt calls for what was learned; without a trigger word every prompt does."""
        return not self.trigger or self.trigger.lower() in prompt.lower()


def plan_grid(run: Run, options: GridOptions | None = None, config: TrainConfig | None = None) -> GridPlan:
    """The grid of a run's finished files.

    Args:
        run: the run; it may go on.
        options: what to show.
        config: the run's settings, when they are at hand.

    Raises:
        InputError: no files, no such epochs, or weights, prompts or seeds that cannot be used.
    """
    options, config = options or GridOptions(), config or run.config()
    samples = config.samples
    prompts = [p for p in options.prompts if p.strip()] or samples.prompts or [config.data.trigger or config.name]
    weights = _numbers("weights", options.weights or DEFAULT_WEIGHTS)
    seeds = [int(s) for s in _numbers("seeds", options.seeds or [samples.seed])]
    _check_count("prompts", prompts)
    _numbers("together", [options.together])
    plan = GridPlan(
        run.name,
        trigger_of(config, prompts),
        [ALONE, *_columns(run, options.epochs)],
        weights,
        list(dict.fromkeys(prompts)),
        seeds,
        draw_request(samples, "", config.data.resolution),
    )
    return replace(plan, prompts=_with_leak(plan)) if options.numbers else plan


def trigger_of(config: TrainConfig, prompts: Sequence[str]) -> str:
    """The trigger word of a run. With several concepts its settings have none; then the name, if a prompt has it."""
    is_called_so = any(config.name.lower() in prompt.lower() for prompt in prompts)
    return config.data.trigger or (config.name if is_called_so else "")


def _columns(run: Run, epochs: str) -> list[Column]:
    files = run_files(run)
    if not any(file.path.is_file() for file in files):
        raise InputError("The run {name} has no LoRA files (yet), so there is nothing to compare.", name=run.name)
    chosen = {
        value.file for value in epoch_values(parts(epochs) or ["all"], [RunFiles.of(run.name, run.manifest["files"])])
    }
    last = {file.path: file for file in files}
    return [Column(file) for path, file in last.items() if path in chosen]


def _numbers(key: str, values: Sequence[float]) -> list[float]:
    """The values of an option, each once; raises :class:`InputError` for too many, or one out of bounds."""
    _check_count(key, values)
    low, high = bounds(grid_options()[key])
    if not all(low <= value <= high for value in values):
        raise InputError(
            "{key}: use numbers from {low} to {high}.", field=key, key=key, low=f"{low:.10g}", high=f"{high:.10g}"
        )
    return list(dict.fromkeys(map(float, values)))


def _check_count(key: str, values: Sequence[object]) -> None:
    if len(values) > MAX_VALUES:
        raise InputError("{key}: {most} are the most.", field=key, key=key, most=MAX_VALUES)


def _with_leak(plan: GridPlan) -> list[str]:
    """The prompts, and where all have the trigger word one without it, which shows what the LoRA does unasked."""
    if not all(plan.has_trigger(prompt) for prompt in plan.prompts) or not plan.trigger:
        return plan.prompts
    for prompt in plan.prompts:
        words = [word.strip() for word in prompt.split(",") if plan.trigger.lower() not in word.lower()]
        if any(words):
            return [*plan.prompts, ", ".join(word for word in words if word)]
    return plan.prompts
