"""What a person may ask of a grid. Page, REST, command line and docs make theirs from it, so it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.config.schema import Flag, Option, option, options_of

DEFAULT_WEIGHTS = (0.3, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class GridOptions:
    """What a person wants to see of a run's files."""

    epochs: str = option(
        "all",
        "Epochs to compare",
        "all, every 2, 1-5, or 3, 6",
        flag=Flag("all (default), last, every 2, 1-5, 3, step 40", "EPOCH"),
    )
    weights: list[float] = option(
        [],
        "Weights",
        "LoRA weights to compare.",
        min=-2,
        max=2,
        flag=Flag(f"of the LoRA (default: {' '.join(f'{weight:g}' for weight in DEFAULT_WEIGHTS)})", "WEIGHT"),
    )
    seeds: list[int] = option(
        [],
        "Seeds",
        "Several seeds tell chance from effect.",
        min=0,
        max=2**32 - 1,
        flag=Flag("of the pictures (default: that of the samples)", "SEED"),
    )
    prompts: list[str] = option(
        [],
        "Prompts",
        "One a line; empty: the sample prompts. One without the trigger word shows what the LoRA does unasked; it is "
        "added where all have it.",
        flag=Flag("may be given several times (default: the run's sample prompts)", name="prompt"),
    )
    numbers: bool = option(
        True,
        "Measure numbers",
        "Validation loss, novelty, leak and effect, and a recommendation.",
        flag=Flag("pictures only", name="no-numbers"),
    )
    together: int = option(
        4,
        "Pictures drawn together",
        "More is faster and takes more memory.",
        min=1,
        max=64,
        flag=Flag("pictures drawn at once (default: 4)"),
    )
    clip: str = option(
        "",
        "CLIP folder",
        "A CLIP model on this machine (config.json beside its weights), to measure prompt against picture.",
        path=True,
        flag=Flag("folder of a CLIP model to measure the pictures with"),
    )


def grid_options() -> dict[str, Option]:
    """The options by name, in order."""
    return {item.path: item for item in options_of(GridOptions, "")}
