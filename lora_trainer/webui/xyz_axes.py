"""Our axes in the WebUI's own X/Y/Z plot script.

Each axis writes what it wants into one object of the cell; just before the cell is drawn, the object is put into the
prompt (:mod:`lora_trainer.webui.cell_tags`). So the infotext has the whole tag, and drawing from it gives the cell.
Everything that can be known before is checked before the first cell. Line numbers are of commit 82a973c0.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from modules import processing, scripts

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.hosts.a1111 import settings as host
from lora_trainer.hosts.a1111.networks import lora_networks, reachable
from lora_trainer.model.block_lists import ARCHITECTURES, Architecture
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.runs import saved_files
from lora_trainer.runs.saved_files import NO_LORA, EpochValue, RunFiles
from lora_trainer.runs.store import Runs
from lora_trainer.webui import cell_tags as axes
from lora_trainer.webui.cell_tags import CellTag

log = logging.getLogger(__name__)
EPOCH, FILE = "LoRA run epoch", "LoRA file"
WEIGHT, TEXT_WEIGHT, UNET_WEIGHT = "LoRA weight", "LoRA text-encoder weight", "LoRA UNet weight"
BLOCKS, SINGLE_BLOCK = "LoRA block weights", "LoRA single block"
LABELS = (EPOCH, FILE, WEIGHT, TEXT_WEIGHT, UNET_WEIGHT, BLOCKS, SINGLE_BLOCK)
_CHANGES_PROMPT = ("Prompt S/R", "Prompt order")
_SCRIPT = "xyz_grid.py"
_CELL = "lora_train_cell"
_NUMBER = r"[+-]?\s*\d*\.?\d*(?:e[+-]?\d+)?"
_FLOATS = re.compile(rf"\s*{_NUMBER}\s*(?:-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*\d+\s*\])?\s*)?", re.IGNORECASE)


class AxisError(ValueError):
    """What the page shows; the WebUI's REST answers with these attributes (api.py:167)."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.detail = sentence
        self.status_code = 422


def install() -> None:
    """Add the axes to the script's list; to be called before the page is built (``on_before_ui``)."""
    grid = next((data.module for data in scripts.scripts_data if data.script_class.__module__ == _SCRIPT), None)
    if grid is None or any(option.label in LABELS for option in grid.axis_options):
        return
    grid.axis_options.extend(_options(grid.AxisOption))


def before_process(p: Any) -> None:
    """Put the cell's tag into the prompts; a cell whose file is gone by now stays blank, and the grid goes on."""
    cell = getattr(p, _CELL, None)
    if cell is None:
        return
    setattr(p, _CELL, None)
    try:
        if cell.file not in (None, NO_LORA):
            reachable(cell.file)
        p.prompt = _each(p.prompt, cell, needed=True)
        if getattr(p, "hr_prompt", ""):
            p.hr_prompt = _each(p.hr_prompt, cell, needed=False)
    except LoraTrainError as error:
        log.warning("%s", error)
        p.comment(host.sentence(error))  # shown when it is the first cell
        gr.Warning(host.sentence(error))
        _leave_blank(p)


def _each(prompt: Any, cell: CellTag, *, needed: bool) -> Any:
    if isinstance(prompt, list):
        return [_each(one, cell, needed=needed) for one in prompt]
    return axes.compose(prompt, cell, _architecture(), host.person_presets(), needed=needed)


def _leave_blank(p: Any) -> None:
    """Make the WebUI fail at this cell alone (processing.py:840), with all that the grid's infotext is made of."""
    p.setup_prompts()
    p.all_seeds = p.all_subseeds = [processing.get_fixed_seed(p.seed)]
    p.prompt = []


# ------------------------------------------------------------------ the axes
def _options(option: Callable[..., Any]) -> list[Any]:
    """The costs make a file's cells follow each other: it is read once."""
    number = {"prepare": _numbers, "cost": 0.1}
    return [
        option(EPOCH, str, _apply_epoch, _plain, _confirm(EPOCH, _epochs), 0.6, _epoch_choices, _words),
        option(FILE, str, _apply_file, _plain, _confirm(FILE, _files), 0.6, _file_choices, _words),
        option(WEIGHT, float, _apply("weight"), confirm=_confirm(WEIGHT, _finite), **number),
        option(TEXT_WEIGHT, float, _apply("te"), confirm=_confirm(TEXT_WEIGHT, _finite), **number),
        option(UNET_WEIGHT, float, _apply("unet"), confirm=_confirm(UNET_WEIGHT, _finite), **number),
        option(BLOCKS, str, _apply("lbw"), _plain, _confirm(BLOCKS, _lists), 0.2, _list_choices, axes.block_lists),
        option(
            SINGLE_BLOCK, str, _apply("block"), _plain, _confirm(SINGLE_BLOCK, _blocks), 0.2, _block_choices, _words
        ),
    ]


def _plain(p: Any, option: Any, value: Any) -> str:
    return str(value)


def _apply(part: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        _set(p, **{part: value})

    return apply


def _apply_epoch(p: Any, value: EpochValue, values: Any) -> None:
    _set(p, file=value.file.stem if value.file else NO_LORA, family=value.family)


def _apply_file(p: Any, value: str, values: Any) -> None:
    _set(p, file=value)


def _set(p: Any, **parts: Any) -> None:
    """Each cell has its own copy of ``p``, which begins without an object of ours."""
    setattr(p, _CELL, replace(getattr(p, _CELL, None) or CellTag(), **parts))


# ------------------------------------------------------------------ what may be chosen
def _runs() -> list[RunFiles]:
    """The finished files of all runs, the newest run first."""
    return [RunFiles.of(run.name, run.manifest["files"]) for run in Runs(host.data_folder() / "runs").list()]


def _epoch_choices() -> list[str]:
    return [NO_LORA, *(choice for run in _runs() if run.files for choice in run.choices())]


def _file_choices() -> list[str]:
    networks = lora_networks()
    return [NO_LORA, *(sorted(networks.available_networks, key=str.casefold) if networks else ())]


def _list_choices() -> list[str]:
    return host.person_presets().names(_architecture())


def _block_choices() -> list[str]:
    return axes.block_choices(_architecture())


def _architecture() -> Architecture:
    found = host.architecture()
    if found is None:
        raise InputError("Block weights are for checkpoints of SD1, SD2 and SDXL, and another kind is loaded.")
    return found


# ------------------------------------------------------------------ checks before the first cell
def _confirm(label: str, check: Callable[[Any, list[Any]], list[Any]]) -> Callable[[Any, list[Any]], None]:
    """The script's check of an axis; what ``check`` makes of the values takes their place."""

    def confirm(p: Any, values: list[Any]) -> None:
        try:
            if not [value for value in values if str(value).strip()]:
                raise InputError("The axis {label} has no values; write some.", label=label)
            values[:] = check(p, values)
            _check_together(p)
        except LoraTrainError as error:
            raise AxisError(host.sentence(error)) from error

    return confirm


def _epochs(p: Any, values: list[str]) -> list[EpochValue]:
    found = saved_files.epoch_values(values, _runs(), _prompt(p))
    for value in found:
        if value.file is not None:
            reachable(value.file.stem, value.file)
    return found


def _files(p: Any, values: list[str]) -> list[str]:
    names = [value.strip().removesuffix(".safetensors") for value in values]
    named = [NO_LORA if name.lower() == NO_LORA.lower() else name for name in names if name]
    return [name if name == NO_LORA else reachable(name) for name in dict.fromkeys(named)]


def _finite(p: Any, values: list[float]) -> list[float]:
    for value in values:
        if not math.isfinite(value):
            raise InputError("{what} must be a number, not {text}.", what="A weight", text=value)
    return values


def _lists(p: Any, values: list[str]) -> list[str]:
    presets = host.person_presets()
    for value in values:
        _fits_any(p, lambda architecture, value=value: resolve(value, architecture, presets))  # type: ignore[misc]
    return values


def _blocks(p: Any, values: list[str]) -> list[str]:
    found: list[list[str]] = []
    _fits_any(p, lambda architecture: found.append(axes.single_blocks(values, architecture)))
    return found[0]


def _fits_any(p: Any, check: Callable[[Architecture], object]) -> None:
    """Check for the loaded checkpoint; when the grid loads others too, any kind will do."""
    loaded = _architecture()
    others = [a for a in ARCHITECTURES if a is not loaded] if "Checkpoint name" in _labels(p) else []
    for architecture in (loaded, *others):
        try:
            check(architecture)
        except InputError:
            if architecture is (others or [loaded])[-1]:
                raise
        else:
            return


def _check_together(p: Any) -> None:
    """Axes that would fight, and a prompt in which there is nothing to change."""
    used = _labels(p)
    ours = [label for label in used if label in LABELS]
    doubled = [label for label in ours if ours.count(label) > 1] + (
        [f"{EPOCH}, {FILE}"] if EPOCH in ours and FILE in ours else []
    )
    if doubled:
        raise InputError("Two axes choose the same thing ({axes}); use one of them.", axes=doubled[0])
    if ours and not {EPOCH, FILE, *_CHANGES_PROMPT} & set(used):
        axes.compose(_prompt(p), CellTag(), _architecture(), needed=True)


def _labels(p: Any) -> list[str]:
    """The axes of this grid, from the script's arguments (an axis cannot see the others)."""
    runner, args = getattr(p, "scripts", None), getattr(p, "script_args", None) or ()
    script = next((s for s in getattr(runner, "scripts", ()) if type(s).__module__ == _SCRIPT), None)
    options = getattr(script, "current_axis_options", None)
    if script is None or options is None or len(args) < script.args_from + 7:
        return []
    kinds = [args[script.args_from + place] or 0 for place in (0, 3, 6)]
    return [options[kind].label for kind in kinds if isinstance(kind, int) and kind < len(options)]


def _prompt(p: Any) -> str:
    return p.prompt[0] if isinstance(p.prompt, list) else str(p.prompt)


# ------------------------------------------------------------------ text fields
def _words(text: str) -> list[str]:
    """Values between commas; in double quotes a value may have some."""
    return [
        word.strip() for row in csv.reader(text.splitlines(), skipinitialspace=True) for word in row if word.strip()
    ]


def _numbers(text: str) -> list[str]:
    """Numbers and the script's ranges, ``0.2-1(+0.2)`` and ``0-1 [5]``; it fails at others without saying where."""
    words = _words(text)
    for word in words:
        if not _FLOATS.fullmatch(word) or not re.match(r"[+-]?\s*\.?\d", word):
            error = InputError("{what} must be a number, not {text}.", what="A weight", text=word[:100])
            raise AxisError(host.sentence(error))
    return words
