"""Block weights found for the person: learned, looked for among presets, and held against one weight for all.

A few weights fitted to a few pictures always look good on these pictures. So everything that is said about gains is
cross-fitted: the weights are fitted on one half of the pictures and measured on the other, and the reverse; the gain
is the mean over pictures of (loss before - loss after), each with the same noise, with its standard error. The weights
that are recommended are fitted on all pictures. Presets and one weight for the whole LoRA are chosen and judged in the
same way, so that it is seen when something simpler does as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.core.errors import InputError
from lora_trainer.core.files import file_hash, write_json
from lora_trainer.core.messages import Message
from lora_trainer.hosts.base import LoraUse, Session
from lora_trainer.model.block_lists import TEXT_BLOCKS, Architecture
from lora_trainer.network.blocks.block_map import architecture_of
from lora_trainer.network.blocks.presets import Presets, shipped_presets
from lora_trainer.network.blocks.weights import BlockWeights, number_text, of_blocks, resolve
from lora_trainer.network.lora_file import read_metadata
from lora_trainer.validation.blocks.proximal_adam import Weights
from lora_trainer.validation.blocks.tuner import Effort, Gain, Tuner
from lora_trainer.validation.metrics.evaluation_set import TRAINING, Pictures

SINGLE_WEIGHTS = (1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2)
_FEW = 6
_SIMPLEST_FIRST = ("single", "preset", "tuned")


def tune(
    session: Session,
    file: Path,
    pictures: Pictures,
    *,
    precision: str = "auto",
    weight: float = 1.0,
    effort: Effort | None = None,
    presets: Presets | None = None,
    output: Path | None = None,
    on_part: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, Any]:
    """Learn block weights, search the presets and one weight for all, and say what is worth using.

    Args:
        session: the hold on the model.
        file: the LoRA.
        pictures: two or more.
        precision: the config's.
        weight: of the LoRA; what is found multiplies it.
        effort: how thoroughly.
        presets: to search; the shipped ones by default.
        output: where the document is written.
        on_part: called after every picture with how much is done and of how much; what it raises ends the work.

    Returns:
        The document: losses (``base`` without the LoRA, ``before`` with all blocks at 1, ``fitted`` on the pictures
        that the weights were fitted to), the cross-fitted ``tuned``, ``single`` and ``preset``, the ``weights``, their
        ``lbw`` list and ``prompt``, what is ``recommended``, and ``sentences``.

    Raises:
        InputError: the file or the weight cannot be used, or the loss with them is no number.
        RunError: memory ran out.
    """
    if not -2 <= weight <= 2 or weight == 0:
        raise InputError("weight: use a number from -2 to 2 that is not 0.", field="weight")
    progress = _Progress(on_part)
    tuner = Tuner(session, file, pictures, precision, weight, effort, progress.note)
    try:
        document = _document(tuner, file, pictures, weight, presets or shipped_presets(), progress)
    finally:
        tuner.close()
    document["sentences"] = [sentence.to_dict() for sentence in verdict(document)]
    if output is not None:
        write_json(output, document)
    return document


class _Progress:
    """Counts of pictures, against how many there will be at most."""

    def __init__(self, told: Callable[[int, int], object]) -> None:
        self._told = told
        self.of = 0

    def note(self, done: int) -> None:
        self._told(min(done, self.of), self.of)


def _document(
    tuner: Tuner, file: Path, pictures: Pictures, weight: float, presets: Presets, progress: _Progress
) -> dict[str, Any]:
    """Everything that is measured."""
    keys, blocks = list(tuner.adapters.layers), tuner.blocks
    architecture = architecture_of(keys, read_metadata(file))
    named = preset_weights(presets, architecture, blocks)
    single = {number_text(w): (w,) * len(blocks) for w in SINGLE_WEIGHTS}
    nothing = (0.0,) * len(blocks)
    fixed = {*named.values(), *single.values(), nothing}
    progress.of = 3 * tuner.effort.steps * tuner.effort.batch + (len(fixed) + 2) * tuner.count

    def text(weights: Weights) -> str:
        return of_blocks(dict(zip(blocks, weights, strict=True)), keys, architecture).text

    every = range(tuner.count)
    if not all(math.isfinite(loss) for loss in tuner.losses(tuner.ones, every)):
        raise InputError(
            "With {file} the loss is no number (NaN or Inf), so there is nothing to learn weights by; choose an "
            "earlier epoch, or train with a lower learning rate.",
            field="file",
            file=file.name,
        )
    tuned, halves = tuner.compare(lambda on: tuner.fit(on, tuple(on)))
    fitted = tuner.fit(every, "all")
    one, best_single = _searched(tuner, single)
    preset, best_preset = _searched(tuner, named)
    losses = {"base": nothing, "before": tuner.ones, "fitted": fitted}
    document = {
        "version": 1,
        "file": str(file),
        "name": file.stem,
        "sha256": file_hash(file),
        "architecture": architecture.name,
        "weight": weight,
        "pictures": {"kind": pictures.kind, "count": tuner.count},
        "effort": vars(tuner.effort),
        "losses": {name: statistics.fmean(tuner.losses(weights, every)) for name, weights in losses.items()},
        "weights": dict(zip(blocks, fitted, strict=True)),
        "halves": [dict(zip(blocks, half, strict=True)) for half in halves],
        "lbw": text(fitted),
        "prompt": LoraUse(file, weight, text(fitted)).tag,
        "tuned": tuned.to_dict(),
        "single": {
            **best_single,
            **one.to_dict(),
            "prompt": LoraUse(file, round(weight * float(best_single["name"]), 4)).tag,
        },
        "preset": {
            **best_preset,
            **preset.to_dict(),
            "prompt": LoraUse(file, weight, text(named[best_preset["name"]])).tag,
        },
        "recommended": recommended({"single": one, "preset": preset, "tuned": tuned}),
    }
    progress.note(progress.of)
    return document


def preset_weights(presets: Presets, architecture: Architecture, blocks: Sequence[str]) -> dict[str, Weights]:
    """The presets that fit an architecture, as weights of the blocks; each set of weights once, all at 1 first."""
    found: dict[Weights, str] = {(1.0,) * len(blocks): "ALL"}
    for name in presets.names(architecture):
        try:
            resolved = resolve(name, architecture, presets)
        except InputError:  # a line of the person's own file with a value that is no number
            continue
        found.setdefault(tuple(_of_block(resolved, block) for block in blocks), name)
    return {name: weights for weights, name in found.items()}


def _of_block(resolved: BlockWeights, block: str) -> float:
    if block in TEXT_BLOCKS:
        encoders = resolved.text_encoders
        return encoders[TEXT_BLOCKS.index(block)] if encoders else resolved.weights[0]
    return resolved.weights[resolved.blocks.index(block)] if block in resolved.blocks else 0.0


def _searched(tuner: Tuner, candidates: Mapping[str, Weights]) -> tuple[Gain, dict[str, Any]]:
    """The best of some fixed weights, and what they gain on pictures that they were not chosen on."""
    gain, _ = tuner.compare(lambda on: candidates[tuner.best_of(candidates, on)])
    every = range(tuner.count)
    losses = {name: statistics.fmean(tuner.losses(weights, every)) for name, weights in candidates.items()}
    best = tuner.best_of(candidates, every)
    return gain, {"name": best, "loss": losses[best], "tried": losses}


def recommended(gains: Mapping[str, Gain]) -> str:
    """``single``, ``preset``, ``tuned`` or ``none``: the simplest that helps and that no other one beats.

    One weight for the whole LoRA is simpler than a preset, and that than a list of learned numbers.
    """
    usable = [gains[kind] for kind in _SIMPLEST_FIRST if gains[kind].state != "no"]
    for kind in _SIMPLEST_FIRST:
        if gains[kind] in usable and not any(gains[kind].is_beaten_by(other) for other in usable):
            return kind
    return "none"


def verdict(document: Mapping[str, Any]) -> list[Message]:
    """What the numbers say in words, the recommendation first."""
    tuned, pictures = document["tuned"], document["pictures"]
    values = {"gain": tuned["relative"], "error": tuned["error"] / tuned["before"]}
    said = [_advice(document), _judged(tuned["state"], values)]
    if pictures["kind"] == TRAINING:
        said.append(
            Message(
                "These are the pictures that the LoRA was trained on, so what was learned by heart counts as good; "
                "keep pictures aside (validation.share) to find out what generalises."
            )
        )
    if pictures["count"] < _FEW:
        said.append(
            Message(
                "Only {count} pictures were there to fit and to test on; the figures are rough.",
                {"count": pictures["count"]},
            )
        )
    return said


def _judged(state: str, values: dict[str, Any]) -> Message:
    if state == "no":
        return Message(
            "Learned block weights do not help here: on pictures that they were not fitted to, the loss becomes lower "
            "by {gain:.2%} ± {error:.2%}.",
            values,
        )
    if state == "maybe":
        return Message(
            "Learned block weights may help: on pictures that they were not fitted to, the loss becomes lower by "
            "{gain:.2%} ± {error:.2%}, which may be chance.",
            values,
        )
    return Message(
        "Learned block weights help: on pictures that they were not fitted to, the loss becomes lower by {gain:.2%} ± "
        "{error:.2%}.",
        values,
    )


def _advice(document: Mapping[str, Any]) -> Message:
    choice = document["recommended"]
    if choice == "tuned":
        return Message("Use the learned block weights: {prompt}", {"prompt": document["prompt"]})
    if choice == "preset":
        return Message("Use the preset {preset}: nothing else does better.", {"preset": document["preset"]["name"]})
    if choice == "single":
        return Message(
            "Leave the blocks alone and use the LoRA at the weight {weight:g}: block weights do not do better.",
            {"weight": round(document["weight"] * float(document["single"]["name"]), 4)},
        )
    return Message(
        "Leave the block weights alone: nothing that was tried does better on pictures it was not chosen on."
    )
