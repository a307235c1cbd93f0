"""From a grid's numbers to a recommended cell and a verdict in words.

The recommended cell is found by the rule of one standard error (Breiman et al., 1984, § 3.4.3): of all cells that are
no worse than the best by more than the error of their difference, the earliest epoch, and of that the weight nearest
to 1. All differences are paired: the same pictures with the same noise, or the same prompts and seeds.

Only losses on pictures that were kept aside may say that a run is over-fitted. Without them the pictures themselves
speak, more carefully: how much the LoRA changes with and without its trigger, and whether it copies.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from lora_trainer.core.messages import Message
from lora_trainer.validation.grid.document import GridDocument, GridGroup, Verdict
from lora_trainer.validation.metrics.paired import Difference, paired

COPYING = 0.5
"""Below this share of the usual distance between training pictures, a picture counts as copied."""
HARDLY = 0.02
"""A smaller difference (0 … 1) from the picture without LoRA is hardly to be seen."""
LEAKING = 0.5
"""Above this share of the effect with the trigger, the effect without it counts as a leak."""
TURNED = 0.01
"""A rise of the loss counts when one as large came up by chance in fewer than this share of cases. The lowest of many
losses is low by chance too, so this is stricter than :data:`~lora_trainer.validation.metrics.paired.SIGNIFICANT`: of
simulated runs without over-fitting one in 20 is called over-fitted."""
LEVEL = 0.01
"""A fall of the last loss by less than this share of the whole gain is no reason to train longer, however sure it is:
at the end of a schedule all pictures gain a little."""
FEW = 4
"""With fewer pictures, no difference found does not mean that there is none."""

Values = Mapping[Hashable, float]
_JUDGED = ("effect", "leak", "copy", "clip")
"""Numbers of pictures that say which file is best; others are shown only."""


@dataclass(frozen=True)
class Cell:
    """A file at a weight.

    Attributes:
        column: index of the file.
        weight: of the LoRA.
        losses: by picture.
        effect: by prompt and seed, of prompts with the trigger.
        leak: the same without the trigger.
        copy: by prompt and seed.
        clip: by prompt and seed.
        copies: whether its pictures are too close to training pictures.
    """

    column: int
    weight: float
    losses: Values = field(default_factory=dict)
    effect: Values = field(default_factory=dict)
    leak: Values = field(default_factory=dict)
    copy: Values = field(default_factory=dict)
    clip: Values = field(default_factory=dict)
    copies: bool = False

    @property
    def preference(self) -> tuple[bool, int, float, float]:
        """The order in which equally good cells are taken."""
        return self.copies, self.column, abs(self.weight - 1), self.weight


@dataclass(frozen=True)
class Finding:
    """What the numbers say: a state, the column at which it turned, and sentences."""

    cell: Cell
    state: str
    turn: int | None = None
    notices: Sequence[Message] = ()


def judge(document: GridDocument) -> Verdict:
    """The verdict on a grid whose numbers were filled in by ``add_losses`` and ``add_picture_numbers``.

    Args:
        document: of a grid; not changed.

    Returns:
        The entry ``verdict``: ``state`` (good, under, over, useless, unknown), ``column`` and ``weight`` of the
        recommended cell, ``turn`` (the epoch from which on it is over-fitted, or ``None``) and ``sentences``.
    """
    every, broken = _cells(document), {(g["column"], g["weight"]) for g in document["groups"] if g.get("broken")}
    base = next((cell for cell in every if cell.column == 0), Cell(0, 0.0))
    shown = [cell for cell in every if cell.column and cell.weight]
    cells = [replace(c, copies=_copies(c, base)) for c in shown if (c.column, c.weight) not in broken]
    if shown and not cells:
        return _entry(document, Finding(base, "useless"), [_all_broken()])
    if not cells:
        return _entry(document, Finding(base, "unknown"), [Message("There is no LoRA file in this grid.")])
    if document.get("measured", {}).get("held_out") and any(cell.losses for cell in cells):
        finding = _by_held_out_losses(cells, base, document)
    elif any(cell.effect for cell in cells):
        finding = _by_pictures(cells, base, document)
    else:
        finding = _by_little(cells, base)
    recommendation = _recommendation(finding.cell, document)
    return _entry(document, finding, [recommendation, *finding.notices, *_remarks(finding.cell, base)])


def _all_broken() -> Message:
    return Message(
        "With every file the loss is no number (NaN or Inf): the training broke. Train again with a lower learning "
        "rate, in bf16 or fp32."
    )


def _entry(document: GridDocument, finding: Finding, notices: Sequence[Message]) -> Verdict:
    return {
        "state": finding.state,
        "column": finding.cell.column,
        "weight": finding.cell.weight,
        "turn": None if finding.turn is None else document["columns"][finding.turn]["epoch"],
        "sentences": [notice.to_dict() for notice in notices],
    }


# ------------------------------------------------------------------ reading the document
def _cells(document: GridDocument) -> list[Cell]:
    """The groups with all that is known of them; numbers that are none are left out."""
    called = any(prompt["trigger"] for prompt in document["prompts"])
    found: dict[tuple[int, float], dict[str, Any]] = {
        (group["column"], group["weight"]): {"losses": _losses(group)} for group in document["groups"]
    }
    for drawn in document["cells"]:
        known = found.get((drawn["column"], drawn["weight"]), {})
        counts = document["prompts"][drawn["prompt"]]["trigger"] or not called
        for name, value in drawn.get("numbers", {}).items():
            if name in _JUDGED and _is_number(value) and (counts or name == "leak"):
                known.setdefault(name, {})[drawn["prompt"], drawn["seed"]] = value
    return [Cell(column, weight, **known) for (column, weight), known in found.items()]


def _losses(group: GridGroup) -> dict[Hashable, float]:
    """By picture; none when one is no number, since their mean would be of other pictures than the others'."""
    losses = group.get("losses", [])
    numbers = [loss for loss in losses if _is_number(loss)]
    return dict(enumerate(numbers)) if len(numbers) == len(losses) else {}


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _copies(cell: Cell, base: Cell) -> bool:
    """Whether a cell's pictures are close to training pictures, and closer than those without LoRA."""
    if not cell.copy or _mean(cell.copy) >= COPYING:
        return False
    change = paired(base.copy, cell.copy)
    return change is None or change.se is None or change.is_lower


# ------------------------------------------------------------------ choosing
def _mean(values: Values) -> float:
    return statistics.fmean(values.values())


def _as_good(cells: Sequence[Cell], best: Cell, worse: Callable[[Cell, Cell], Difference | None]) -> Cell:
    """Of the cells that are no worse than the best within the error, the one that is preferred."""
    equal = [c for c in cells if c is best or ((d := worse(best, c)) is not None and d.is_within_error)]
    return min(equal, key=lambda cell: cell.preference)


def _loss_rise(first: Cell, second: Cell) -> Difference | None:
    return paired(first.losses, second.losses)


def _column(cells: Sequence[Cell], weight: float) -> list[Cell]:
    """The cells of a weight by epoch."""
    return sorted((cell for cell in cells if cell.weight == weight), key=lambda cell: cell.column)


def _turn(row: Sequence[Cell], after: int) -> Cell | None:
    """The first cell behind the lowest loss of a weight that is clearly higher, if the loss stays high to the end.

    So a single bad file in the middle of a run is no turn.

    Args:
        row: the cells of a weight by epoch.
        after: the turn is in a later column than this one.
    """
    lowest = min(row, key=lambda cell: (_mean(cell.losses), cell.column))
    found = None
    for cell in reversed([cell for cell in row if cell.column > max(lowest.column, after)]):
        rise = _loss_rise(lowest, cell)
        if rise is None or rise.is_within_error:
            break
        if rise.chance < TURNED:
            found = cell
        elif cell is row[-1]:
            break
    return found


# ------------------------------------------------------------------ with pictures that were kept aside
def _by_held_out_losses(cells: Sequence[Cell], base: Cell, document: GridDocument) -> Finding:
    measured = [cell for cell in cells if cell.losses]
    best = min(measured, key=lambda cell: (_mean(cell.losses), cell.preference))
    chosen = _as_good(measured, best, _loss_rise)
    full = min((cell.weight for cell in measured), key=lambda weight: (abs(weight - 1), weight))
    notices = [_gain(chosen, base)] if base.losses else []
    turn, weight = _turn(_column(measured, chosen.weight), chosen.column), chosen.weight
    if turn is None and chosen.weight != full:
        turn, weight = _turn(_column(measured, full), 0), full
    state, more = _without_turn(chosen, base, measured)
    edge = _at_the_edge(chosen, measured) if state != "useless" else []
    if turn is None:
        return Finding(chosen, state, None, [*notices, *more, *_too_strong(chosen, measured, full), *edge])
    over = _over(turn, weight, document)
    if state == "useless":
        return Finding(chosen, state, turn.column, [*notices, *over, *more])
    return Finding(chosen, "over", turn.column, [*notices, *over, *edge])


def _gain(chosen: Cell, base: Cell) -> Message:
    values = {"count": len(chosen.losses), "loss": _mean(chosen.losses), "base": _mean(base.losses)}
    if len(chosen.losses) == 1:
        return Message(
            "On the one picture that was not trained on, the loss is {loss:.4f}; without the LoRA it is {base:.4f}.",
            values,
        )
    return Message(
        "On {count} pictures that were not trained on, the loss is {loss:.4f}; without the LoRA it is {base:.4f}.",
        values,
    )


def _at_the_edge(chosen: Cell, measured: Sequence[Cell]) -> list[Message]:
    """Whether a weight beyond those tried may be better still."""
    row = sorted((cell for cell in measured if cell.column == chosen.column), key=lambda cell: cell.weight)
    values = {"weight": chosen.weight}
    highest = Message(
        "At weight {weight:g}, the highest that was tried, the loss was still falling; try higher ones too.", values
    )
    lowest = Message(
        "At weight {weight:g}, the lowest that was tried, the loss was still falling; try lower ones too.", values
    )
    return [
        notice
        for notice, (edge, *others) in ((highest, row[::-1]), (lowest, row))
        if edge is chosen and others and (rise := _loss_rise(edge, others[0])) is not None and rise.is_higher
    ]


def _over(turn: Cell, weight: float, document: GridDocument) -> list[Message]:
    return [
        Message(
            "Over-fitted from epoch {epoch} on: at weight {weight:g} the loss on pictures that were not trained on is "
            "clearly higher again ({loss:.4f}). Later files only learn the training pictures by heart.",
            {"epoch": document["columns"][turn.column]["epoch"], "weight": weight, "loss": _mean(turn.losses)},
        ),
        _train_less(),
    ]


def _train_less() -> Message:
    return Message(
        "Next time: fewer epochs or repeats, a lower learning rate, or more and more varied pictures. For a file that "
        "is over-fitted already, a lower weight helps."
    )


def _without_turn(chosen: Cell, base: Cell, measured: Sequence[Cell]) -> tuple[str, list[Message]]:
    """The state of a run whose loss does not rise again, and why."""
    few = _few(len(chosen.losses))
    if len(chosen.losses) == 1:
        return "unknown", few
    without = _loss_rise(chosen, base)
    if few and without is not None and not without.is_higher:
        return "unknown", few
    if without is not None and without.is_within_error:
        no_better = Message("On pictures that were not trained on, no file is better than the checkpoint without LoRA.")
        return "useless", [no_better, _check_training()]
    row = _column(measured, chosen.weight)
    before = [cell for cell in row if cell.column < chosen.column]
    fall = _loss_rise(before[-1], chosen) if before and row[-1] is chosen else None
    if fall is not None and fall.is_lower and -fall.mean >= LEVEL * _gained(chosen, base):
        return "under", [
            Message("Under-fitted: the loss was still falling clearly in the last epoch."),
            Message("Train for more epochs or steps, or with a higher learning rate; more pictures help too."),
        ]
    if len(row) == 1:
        return "unknown", [
            Message(
                "It helps, but with one file there is nothing to compare it with; draw the grid of several epochs."
            ),
            *few,
        ]
    if row[-1] is chosen:
        level = Message(
            "Good: the loss has levelled out in the last epoch, and no over-fitting could be measured. A longer run "
            "may still gain a little."
        )
        return "good", [level, *few]
    return "good", [Message("Good: later files are no better, and no over-fitting could be measured."), *few]


def _gained(chosen: Cell, base: Cell) -> float:
    """How much the LoRA lowers the loss."""
    return _mean(base.losses) - _mean(chosen.losses) if base.losses else 0.0


def _few(count: int) -> list[Message]:
    """A remark when there are few pictures."""
    if count >= FEW:
        return []
    return [
        Message(
            "Few pictures were kept aside ({count}), which shows large differences only; keep {few} or more with the "
            "held-out share.",
            {"count": count, "few": FEW},
        )
    ]


def _check_training() -> Message:
    return Message(
        "Check that captions and trigger word fit the pictures and that this checkpoint can draw such things. A "
        "training that was too short needs more epochs; one that broke needs a lower learning rate."
    )


def _too_strong(chosen: Cell, measured: Sequence[Cell], full: float) -> list[Message]:
    """Whether the same file is worse at full weight."""
    same = next((cell for cell in measured if cell.column == chosen.column and cell.weight == full), None)
    rise = _loss_rise(chosen, same) if same is not None else None
    if rise is None or not rise.is_higher:
        return []
    return [
        Message(
            "At weight {full:g} the same file is clearly worse: it is too strong there; stay at {weight:g}.",
            {"full": full, "weight": chosen.weight},
        )
    ]


# ------------------------------------------------------------------ by the drawn pictures
def _by_pictures(cells: Sequence[Cell], base: Cell, document: GridDocument) -> Finding:
    most = max(len(cell.effect) for cell in cells)
    drawn = [cell for cell in cells if len(cell.effect) == most]  # others are not finished yet
    original = [cell for cell in drawn if not cell.copies]
    candidates = original or drawn
    best = max(candidates, key=lambda cell: (_selectivity(cell), *(-part for part in cell.preference)))
    chosen = _as_good(candidates, best, _selectivity_fall)
    notices = [
        Message(
            "No pictures were kept aside, so over-fitting cannot be measured; this is judged by the drawn pictures "
            "alone. Set the held-out share to know more."
        )
    ]
    if _mean(chosen.effect) < HARDLY or _has_learned_nothing(chosen, base):
        return Finding(chosen, "useless", None, [*notices, *_no_effect(chosen)])
    turn = _copies_from(_column(drawn, chosen.weight))
    if turn is not None:
        return Finding(chosen, "over", turn.column, [*notices, *_looks_over(turn, document)])
    if not chosen.copy:
        return Finding(chosen, "unknown", None, notices)
    return Finding(
        chosen, "good", None, [*notices, Message("Nothing in the pictures speaks against this cell; look at them.")]
    )


def _selectivity(cell: Cell) -> float:
    """How much more the LoRA changes with its trigger than without."""
    return _mean(cell.effect) - (_mean(cell.leak) if cell.leak else 0.0)


def _selectivity_fall(best: Cell, other: Cell) -> Difference | None:
    """How much less selective another cell is; the errors of effect and leak, of other prompts each, are added."""
    effect, leak = paired(other.effect, best.effect), paired(best.leak, other.leak)
    if effect is None or leak is None:
        return effect
    if effect.se is None or leak.se is None:
        return Difference(effect.mean + leak.mean, None, 1)
    return Difference(effect.mean + leak.mean, math.hypot(effect.se, leak.se), min(effect.count, leak.count))


def _has_learned_nothing(chosen: Cell, base: Cell) -> bool:
    """Whether not even the loss on the training pictures is lower than without LoRA."""
    gain = _loss_rise(chosen, base)
    return gain is not None and gain.count >= FEW and gain.is_within_error


def _no_effect(chosen: Cell) -> list[Message]:
    return [
        Message(
            "The LoRA changes the pictures hardly or not for the better (difference {effect:.3f} of 1).",
            {"effect": _mean(chosen.effect)},
        ),
        _check_training(),
    ]


def _copies_from(row: Sequence[Cell]) -> Cell | None:
    """The first cell from which on all are copies."""
    found = None
    for cell in reversed(row):
        if not cell.copies:
            break
        found = cell
    return found


def _looks_over(turn: Cell, document: GridDocument) -> list[Message]:
    return [
        Message(
            "Looks over-fitted from epoch {epoch} on: the pictures get close to the training pictures ({copy:.0%} of "
            "the usual distance between these).",
            {"epoch": document["columns"][turn.column]["epoch"], "copy": _mean(turn.copy)},
        ),
        _train_less(),
    ]


# ------------------------------------------------------------------ with next to nothing
def _by_little(cells: Sequence[Cell], base: Cell) -> Finding:
    """By the loss on training pictures, or by nothing but habit."""
    measured = [cell for cell in cells if cell.losses]
    if not measured:
        last = max(cell.column for cell in cells)
        chosen = min((cell for cell in cells if cell.column == last), key=lambda cell: cell.preference)
        return Finding(
            chosen, "unknown", None, [Message("There are no numbers to judge by: this is only the last file.")]
        )
    best = min(measured, key=lambda cell: (_mean(cell.losses), cell.preference))
    chosen = _as_good(measured, best, _loss_rise)
    told = Message(
        "The loss was measured on pictures that were trained on, so it says what was learned, not what is over-fitted. "
        "Set the held-out share to know more."
    )
    if _has_learned_nothing(chosen, base):
        return Finding(
            chosen,
            "useless",
            None,
            [told, Message("Not even there is it lower than without the LoRA."), _check_training()],
        )
    return Finding(chosen, "unknown", None, [told])


# ------------------------------------------------------------------ what is said of the recommended cell
def _recommendation(cell: Cell, document: GridDocument) -> Message:
    column = document["columns"][cell.column]
    return Message(
        "Recommended: {name} (epoch {epoch}) at weight {weight:g}.",
        {"name": column["name"], "epoch": column["epoch"], "weight": cell.weight},
    )


def _remarks(cell: Cell, base: Cell) -> list[Message]:
    """What the pictures of the recommended cell say beside the verdict."""
    found = []
    if cell.copies:
        found.append(
            Message(
                "Its pictures are close to training pictures ({copy:.0%} of the usual distance between these): lower "
                "the weight, take an earlier epoch, and train with more varied pictures.",
                {"copy": _mean(cell.copy)},
            )
        )
    effect, leak = _mean(cell.effect) if cell.effect else 0.0, _mean(cell.leak) if cell.leak else 0.0
    if leak > HARDLY and leak > LEAKING * effect:
        found.append(
            Message(
                "It also changes pictures without the trigger word ({leak:.3f}, with it {effect:.3f}). If that is not "
                "wanted: put the trigger first in every caption with keep tokens at 1 or more, and describe in the "
                "captions what shall not belong to it.",
                {"leak": leak, "effect": effect},
            )
        )
    fit = paired(base.clip, cell.clip)
    if fit is not None and fit.is_lower:
        found.append(
            Message(
                "The pictures fit their prompts less than without the LoRA (CLIP {clip:.3f}, without it {base:.3f}); "
                "if prompts are ignored, lower the weight or take an earlier epoch.",
                {"clip": _mean(cell.clip), "base": _mean(base.clip)},
            )
        )
    return found
