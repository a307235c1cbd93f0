"""Which blocks of a LoRA move the picture: each block alone, and all but each, over several prompts and seeds.

For every block the picture *with only this block* is held against the one without the LoRA, and the one *without this
block* against the one with all of them. Two numbers tell how far two pictures are apart: the root mean square of the
differences (0 … 1), and the share of channel samples that differ by more than 20 of 255, which is the number of the
"effective block analyzer" in sd-webui-lora-block-weight. On prompts that do not ask for the LoRA's subject the same
number is called its leak: what a block changes there is what people call polluting.

The blocks of a LoRA work on each other, so their effects do not add up to the effect of all, and the numbers are about
these prompts and seeds. They tell where a LoRA works, not whether it is good there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lora_trainer.core.errors import InputError
from lora_trainer.core.files import file_hash, save_picture, write_json, write_text
from lora_trainer.core.messages import Message
from lora_trainer.dataset.images import read_picture
from lora_trainer.hosts.base import DrawRequest, LoraUse, Session
from lora_trainer.model.block_lists import Architecture
from lora_trainer.network.blocks.block_map import architecture_of
from lora_trainer.network.blocks.weights import of_blocks
from lora_trainer.network.lora_file import read_lora, read_metadata
from lora_trainer.network.modules import group
from lora_trainer.network.ops.info import OTHER, block_infos
from lora_trainer.validation.grid.cells import Cell, Drawn, OnCells, draw_cells
from lora_trainer.validation.grid.sheet import Layout, sheets
from lora_trainer.validation.metrics.pictures import rms_difference

if TYPE_CHECKING:
    from lora_trainer.model.families import CheckpointInfo

THRESHOLD = 20
"""Of 255: a larger difference of a channel sample counts as changed."""
MAX_PICTURES = 2000
TOGETHER = 4
_GAINS = (16, 8, 4, 2, 1)
_BRIGHTEST = 0.995
_MOST_OF_IT = 0.5
_INVISIBLE = 0.002
"""Share of channel samples; fewer changed ones are not seen."""
_FAINT = 0.005
"""RMS difference: little more than one of 255 levels."""
_KEPT = 64
"""Pictures that are kept in memory while they are compared."""


@dataclass(frozen=True)
class AnalysisPlan:
    """What is to be drawn.

    Attributes:
        file: the LoRA.
        content: SHA-256 of its bytes.
        architecture: what it is for.
        lists: block → the ``lbw=`` lists with only this block, and with all but this one.
        weight: of the LoRA.
        trigger: the word that asks for its subject; empty when every prompt does.
        requests: prompts × seeds.
        base: tells checkpoints and the host's settings apart.
    """

    file: Path
    content: str
    architecture: Architecture
    lists: dict[str, tuple[str, str]]
    weight: float
    trigger: str
    requests: list[DrawRequest]
    base: str = ""

    def on(self, checkpoint: CheckpointInfo, settings: str = "") -> AnalysisPlan:
        """The same analysis on a checkpoint, whose pictures are kept apart from those of others.

        Raises:
            InputError: the LoRA is for another kind of checkpoint.
        """
        if checkpoint.family.blocks != self.architecture:
            raise InputError(
                "{path} is a LoRA for {architecture}, but the checkpoint is {family}; load a checkpoint of its kind.",
                path=self.file.name,
                architecture=self.architecture.name,
                family=checkpoint.family.name,
            )
        known = (checkpoint.name, checkpoint.key, checkpoint.vae, settings)
        return replace(self, base=repr(known))

    def none(self, request: DrawRequest) -> Cell:
        """The picture without the LoRA."""
        return Cell(None, request, base=self.base)

    def full(self, request: DrawRequest) -> Cell:
        """The picture with all blocks."""
        return self._cell("", request)

    def only(self, block: str, request: DrawRequest) -> Cell:
        """The picture with only this block."""
        return self._cell(self.lists[block][0], request)

    def without(self, block: str, request: DrawRequest) -> Cell:
        """The picture with all blocks but this one."""
        return self._cell(self.lists[block][1], request)

    def _cell(self, lbw: str, request: DrawRequest) -> Cell:
        return Cell(LoraUse(self.file, self.weight, lbw), request, self.content, self.base)

    def cells(self) -> list[Cell]:
        """All cells; those with the same weights stand together, so that they are drawn together."""
        made = [self.none(request) for request in self.requests] + [self.full(request) for request in self.requests]
        for block in self.lists:
            made += [self.only(block, request) for request in self.requests]
            made += [self.without(block, request) for request in self.requests]
        return made

    def asks(self, request: DrawRequest) -> bool:
        """Whether a prompt asks for the LoRA's subject."""
        return self.trigger.lower() in request.prompt.lower()


def plan_analysis(
    file: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    like: DrawRequest,
    *,
    weight: float = 1.0,
    trigger: str = "",
) -> AnalysisPlan:
    """Plan the analysis of a file.

    Args:
        file: the LoRA.
        prompts: with the trigger word, and better some without it.
        seeds: one picture of each prompt for each.
        like: size, sampler and the like of all pictures.
        weight: of the LoRA.
        trigger: the word that asks for its subject.

    Raises:
        InputError: the file cannot be used, there are no prompts or seeds, or too many pictures.
    """
    if not prompts or not seeds:
        raise InputError("prompts: give at least one prompt and one seed.", field="seeds" if prompts else "prompts")
    if not -2 <= weight <= 2 or weight == 0:
        raise InputError("weight: use a number from -2 to 2 that is not 0.", field="weight")
    tensors = read_lora(file)
    keys = list(group(tensors))
    architecture = architecture_of(keys, read_metadata(file))
    blocks = [info.block for info in block_infos(tensors) if info.block != OTHER]
    lists = {
        block: (
            of_blocks({block: 1.0}, keys, architecture, 0.0).text,
            of_blocks({block: 0.0}, keys, architecture).text,
        )
        for block in blocks
    }
    requests = [
        replace(like, prompt=prompt, seed=seed) for prompt in dict.fromkeys(prompts) for seed in dict.fromkeys(seeds)
    ]
    count = 2 * len(requests) * (1 + len(blocks))
    if count > MAX_PICTURES:
        raise InputError(
            "The analysis would draw {count} pictures; {most} is the most, so take fewer prompts or seeds.",
            field="seeds",
            count=count,
            most=MAX_PICTURES,
        )
    return AnalysisPlan(file, file_hash(file), architecture, lists, weight, trigger.strip(), requests)


def analyze(
    plan: AnalysisPlan,
    session: Session,
    folder: Path,
    *,
    together: int = TOGETHER,
    on_cells: OnCells = lambda done, of: None,
) -> dict[str, Any]:
    """Draw what is missing and measure; everything is written below ``folder``.

    Args:
        plan: for the session's checkpoint, see :meth:`AnalysisPlan.on`.
        session: draws.
        folder: pictures go to ``cells``, which analyses may share, the rest to a folder of the file's name.
        together: pictures that are drawn at once.
        on_cells: called after every batch; what it raises ends the analysis, and finished pictures are kept.

    Returns:
        The document that is also in ``analysis.json``.

    Raises:
        InputError: the file cannot be used with this checkpoint.
        RunError: no memory, disk full, or interrupted.
    """
    drawn = Drawn(folder / "cells")
    for _ in draw_cells(plan.cells(), session, drawn, together, on_cells):
        pass
    for problem in drawn.problems.values():
        raise problem
    return _Report(plan, drawn.place, folder / plan.file.stem).write()


class _Report:
    """Numbers, difference pictures, sheet and CSV of drawn cells."""

    def __init__(self, plan: AnalysisPlan, place: Callable[[Cell], Path], folder: Path) -> None:
        self._plan = plan
        self._place = place
        self._folder = folder
        asking = [request for request in plan.requests if plan.asks(request)]
        self._asking = asking or plan.requests
        self._other = [request for request in plan.requests if request not in self._asking]
        self._picture = lru_cache(maxsize=_KEPT)(self._read)

    def write(self) -> dict[str, Any]:
        """The document, with everything that it names on disk."""
        plan = self._plan
        ranked = sorted((self._block(block) for block in plan.lists), key=lambda entry: -entry["effect"])
        gain = self._gain()
        for rank, entry in enumerate(ranked, start=1):
            entry["rank"] = rank
            entry["pictures"] = self._pictures(entry["block"], gain)
        first = plan.requests[0]
        document = {
            "version": 1,
            "file": str(plan.file),
            "name": plan.file.stem,
            "sha256": plan.content,
            "architecture": plan.architecture.name,
            "weight": plan.weight,
            "trigger": plan.trigger,
            "requests": [
                {"prompt": r.prompt, "seed": r.seed, "trigger": r in self._asking, **self._references(r)}
                for r in plan.requests
            ],
            "size": [first.width, first.height],
            "negative": first.negative,
            "sampler": first.sampler,
            "steps": first.steps,
            "cfg": first.cfg,
            "gain": gain,
            "all": self._over(self._asking, plan.none, plan.full),
            "all_leak": self._over(self._other, plan.none, plan.full) if self._other else None,
            "blocks": ranked,
        }
        document["notes"] = [note.to_dict() for note in notes(document)]
        document["sheets"] = [str(path) for path in self._sheets(ranked, gain)]
        table = self._folder / "analysis.csv"
        write_text(table, analysis_csv(document))
        document["csv"] = str(table)
        write_json(self._folder / "analysis.json", document)
        return document

    def _block(self, block: str) -> dict[str, Any]:
        only, without = self._plan.lists[block]
        numbers = self._numbers(block, self._asking)
        return {
            "block": block,
            "effect": (numbers["only"]["rms"] + numbers["without"]["rms"]) / 2,
            **numbers,
            "leak": self._numbers(block, self._other) if self._other else None,
            "lbw_only": only,
            "lbw_without": without,
        }

    def _numbers(self, block: str, requests: Sequence[DrawRequest]) -> dict[str, Any]:
        plan = self._plan
        return {
            "only": self._over(requests, plan.none, lambda request: plan.only(block, request)),
            "without": self._over(requests, plan.full, lambda request: plan.without(block, request)),
        }

    def _over(
        self,
        requests: Sequence[DrawRequest],
        first: Callable[[DrawRequest], Cell],
        second: Callable[[DrawRequest], Cell],
    ) -> dict[str, float]:
        """Mean and spread (sample standard deviation) of both numbers over prompts and seeds."""
        pairs = [(self._picture(first(request)), self._picture(second(request))) for request in requests]
        rms = [rms_difference(*pair) for pair in pairs]
        share = [changed_share(*pair) for pair in pairs]
        return {
            "rms": statistics.fmean(rms),
            "rms_sd": _sd(rms),
            "share": statistics.fmean(share),
            "share_sd": _sd(share),
        }

    def _read(self, cell: Cell) -> Image.Image:
        return read_picture(self._place(cell))

    def _references(self, request: DrawRequest) -> dict[str, str]:
        return {"none": str(self._place(self._plan.none(request))), "full": str(self._place(self._plan.full(request)))}

    def _gain(self) -> int:
        """By how much differences are made visible: the same for all blocks, so that they can be compared."""
        plan = self._plan
        pairs = [(plan.full(request), plan.without(block, request)) for request in self._asking for block in plan.lists]
        largest = max(float(np.quantile(apart(self._picture(a), self._picture(b)), _BRIGHTEST)) for a, b in pairs)
        return next((gain for gain in _GAINS if gain * largest <= 255), 1)

    def _pictures(self, block: str, gain: int) -> list[dict[str, str]]:
        """For each request: with only the block, without it, and what that takes away."""
        return [
            {
                "only": str(self._place(self._plan.only(block, request))),
                "without": str(self._place(self._plan.without(block, request))),
                "difference": str(self._difference(block, request, gain)),
            }
            for request in self._plan.requests
        ]

    def _difference(self, block: str, request: DrawRequest, gain: int) -> Path:
        full, without = self._plan.full(request), self._plan.without(block, request)
        name = hashlib.sha256(f"{full.key()} {without.key()} {gain}".encode()).hexdigest()[:16]
        path = self._folder / "differences" / f"{name}.png"
        if not path.is_file():
            brighter = apart(self._picture(full), self._picture(without)) * gain
            save_picture(path, Image.fromarray(brighter.clip(0, 255).astype(np.uint8)))
        return path

    def _sheets(self, ranked: Sequence[dict[str, Any]], gain: int) -> list[Path]:
        plan = self._plan
        columns = [f"difference x{gain}", "only this block", "without it", "all blocks", "no LoRA"]

        def picture(column: int, row: int, block: int) -> Path:
            entry, request = ranked[row], plan.requests[block]
            shown = entry["pictures"][block]
            names = [
                shown["difference"],
                shown["only"],
                shown["without"],
                *reversed(self._references(request).values()),
            ]
            return Path(names[column])

        layout = Layout(
            columns,
            [f"{entry['block']} {entry['effect']:.3f}" for entry in ranked],
            [f"{request.prompt}, seed {request.seed}" for request in plan.requests],
            (max(r.width for r in plan.requests), max(r.height for r in plan.requests)),
            picture,
        )
        paths = []
        for number, sheet in enumerate(sheets(layout), start=1):
            path = self._folder / f"analysis-{number}.png"
            save_picture(path, sheet)
            paths.append(path)
        return paths


def apart(first: Image.Image, second: Image.Image) -> np.ndarray[Any, Any]:
    """Absolute differences of two pictures of one size, (H, W, 3), 0 … 255."""
    return np.abs(np.asarray(first, dtype=np.float32) - np.asarray(second, dtype=np.float32))


def changed_share(first: Image.Image, second: Image.Image) -> float:
    """The share of channel samples that differ by more than :data:`THRESHOLD`."""
    return float(np.mean(apart(first, second) > THRESHOLD))


def notes(document: dict[str, Any]) -> list[Message]:
    """What the numbers say in words."""
    blocks = document["blocks"]
    effects = {entry["block"]: entry["effect"] for entry in blocks}
    if not any(effects.values()):
        return [Message("The LoRA does not change these pictures; check its weight and the prompts.")]
    found = [
        Message(
            "Most of what the LoRA does comes from {blocks}.",
            {"blocks": ", ".join(_most(effects))},
        )
    ]
    idle = [b["block"] for b in blocks if _is_idle(b["only"]) and _is_idle(b["without"])]
    if idle:
        found.append(
            Message(
                "Next to nothing changes with {blocks}; at 0 nobody would see a difference.",
                {"blocks": ", ".join(idle)},
            )
        )
    if document["all_leak"] is None:
        found.append(
            Message("Add a prompt without the trigger word to see which blocks change pictures that nobody asked for.")
        )
        return found
    return found + _leak_notes(document)


def _leak_notes(document: dict[str, Any]) -> list[Message]:
    """Which blocks change pictures that do not ask for the subject."""
    share = document["all_leak"]["share"]
    if share < _INVISIBLE:
        return [Message("Without the trigger word the pictures stay as they were: nothing leaks.")]
    leaks = {
        entry["block"]: (entry["leak"]["only"]["rms"] + entry["leak"]["without"]["rms"]) / 2
        for entry in document["blocks"]
    }
    found = [
        Message(
            "Without the trigger word {share:.0%} of the picture still changes, most of it through {blocks}: these are "
            "the polluting layers; try them at lower weights.",
            {"share": share, "blocks": ", ".join(_most(leaks))},
        )
    ]
    effects = {entry["block"]: entry["effect"] for entry in document["blocks"]}
    worse = [block for block in _most(leaks) if leaks[block] > effects[block]]
    if worse:
        found.append(
            Message(
                "Without the trigger word {blocks} change more than with it: lower these first.",
                {"blocks": ", ".join(worse)},
            )
        )
    both = [block for block in _most(leaks) if block in _most(effects) and block not in worse]
    if both:
        found.append(
            Message(
                "Both come from {blocks}, what the LoRA is for and what nobody asked for: a lower weight there "
                "costs likeness, too; lower a little and compare.",
                {"blocks": ", ".join(both)},
            )
        )
    return found


def _is_idle(numbers: dict[str, float]) -> bool:
    return numbers["share"] < _INVISIBLE and numbers["rms"] < _FAINT


def _most(effects: dict[str, float]) -> list[str]:
    """The strongest blocks, as few as make up half of the sum."""
    total, reached, chosen = sum(effects.values()), 0.0, []
    for block, effect in sorted(effects.items(), key=lambda pair: -pair[1]):
        if reached >= _MOST_OF_IT * total:
            break
        chosen.append(block)
        reached += effect
    return chosen


def analysis_csv(document: dict[str, Any]) -> str:
    """The numbers as CSV: one line a block, ranked; the last line is the LoRA as a whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("rms", "rms_sd", "share", "share_sd")
    heads = [f"{kind}_{number}" for kind in ("only", "without", "leak_only", "leak_without") for number in numbers]
    writer.writerow(["rank", "block", "effect", *heads, "lbw_only", "lbw_without"])
    for entry in document["blocks"]:
        leak = entry["leak"] or {}
        parts = [entry["only"], entry["without"], leak.get("only", {}), leak.get("without", {})]
        values = [_number(part.get(number)) for part in parts for number in numbers]
        lists = [entry["lbw_only"], entry["lbw_without"]]
        writer.writerow([entry["rank"], entry["block"], _number(entry["effect"]), *values, *lists])
    whole = [_number(document["all"][number]) for number in numbers]
    leak = [_number((document["all_leak"] or {}).get(number)) for number in numbers]
    writer.writerow(["", "all", whole[0], *whole, *[""] * 4, *leak, *[""] * 4, "", ""])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
