"""A grid's document as the page's viewer (javascript/lora_train_grid_viewer.js) and the pieces around it show it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lora_trainer.core.i18n import Translate
from lora_trainer.core.messages import Message
from lora_trainer.core.plain_json import json_text
from lora_trainer.hosts.base import LoraUse
from lora_trainer.ui.html import common, infotext
from lora_trainer.ui.html.markup import EMPTY, Markup, joined, markup, single_quoted
from lora_trainer.ui.html.plots import Curve, chart

LINES = 8
"""Colours of lines in style.css."""
KINDS = {"good": "good", "under": "warning", "over": "warning", "useless": "error"}
_DIGITS = 4
_OF_CELLS = "-cells"


def file_url(path: Path) -> str:
    """Where gradio serves a file, relative to the page; see :func:`shown_files`."""
    return "file=" + quote(str(path.absolute()))


def shown_files(document: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """The files that the page shows or links to, all of them within the grid's folder."""
    for cell in document["cells"]:
        if cell["picture"]:
            yield _picture(cell, folder)
    yield from _downloads(document, folder)


def _picture(cell: Mapping[str, Any], folder: Path) -> Path:
    return folder / "cells" / Path(f"{cell['key']}.png").name


def _downloads(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """The sheets, the table of numbers, and the one of each picture's numbers beside it."""
    paths = [folder / Path(name).name for name in document["sheets"]]
    if document["csv"]:
        table = folder / Path(document["csv"]).name
        paths += [table, table.with_name(f"{table.stem}{_OF_CELLS}{table.suffix}")]
    return [path for path in paths if path.is_file()]


def grid_data(view: Mapping[str, Any], revision: str) -> Markup:
    """What :func:`grid_view` made, for the viewer, which looks whether the revision is another."""
    quoted = single_quoted(json_text(view, compact=True))
    return markup(
        '<div class="lt-grid-data" data-revision="{revision}" data-view=\'{quoted}\'></div>',
        revision=revision,
        quoted=quoted,
    )


def grid_view(
    document: Mapping[str, Any], votes: Mapping[str, int], folder: Path, translate: Translate
) -> dict[str, Any]:
    """Everything the viewer needs, small, and in the person's language.

    Args:
        document: of the grid.
        votes: by the cells' keys.
        folder: of the grid.
        translate: into the person's language.
    """
    t = translate
    weights = document["weights"]
    verdict = document["verdict"] or {}
    return {
        "run": document["run"],
        "size": document["size"],
        "negative": document["negative"],
        "settings": _settings(document, folder),
        "pictures": file_url(folder / "cells") + "/",
        "columns": [{"label": _column(c, t), "file": bool(c["file"])} for c in document["columns"]],
        "weights": [{"label": f"{weight:g}", "value": weight} for weight in weights],
        "prompts": document["prompts"],
        "seeds": document["seeds"],
        "cells": [_cell(cell, weights) for cell in document["cells"]],
        "groups": [_group(group, document) for group in document["groups"]],
        "best": {key: verdict[key] for key in ("column", "weight") if verdict.get(key) is not None},
        "votes": dict(votes),
        "numbers": _number_names(_is_held_out(document), t),
        "texts": _texts(t),
    }


def _settings(document: Mapping[str, Any], folder: Path) -> str:
    """What all pictures have in common, for the WebUI to read back."""
    drawn = next((cell for cell in document["cells"] if cell["picture"]), None)
    width, height = document["size"]
    request = {**{name: document[name] for name in ("steps", "sampler", "cfg")}, "width": width, "height": height}
    return infotext.settings(request, infotext.other_settings(_picture(drawn, folder)) if drawn else "")


def _cell(cell: Mapping[str, Any], weights: list[float]) -> list[Any]:
    """Column, place of the weight (-1 for the checkpoint alone), prompt, seed, key, whether it is drawn, numbers."""
    weight = weights.index(cell["weight"]) if cell["column"] else -1
    numbers = _rounded(cell["numbers"])
    return [cell["column"], weight, cell["prompt"], cell["seed"], cell["key"], int(bool(cell["picture"])), numbers]


def _group(group: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    column, weight = group["column"], group["weight"]
    file = document["columns"][column]["file"]
    return {
        "column": column,
        "weight": document["weights"].index(weight) if column else -1,
        "tag": LoraUse(Path(file), weight).tag if file and weight else "",
        "numbers": _rounded(group["numbers"]),
    }


def _rounded(numbers: Mapping[str, Any]) -> dict[str, float]:
    """To a few digits; JSON knows no NaN."""
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in numbers.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _column(column: Mapping[str, Any], t: Translate) -> str:
    if not column["file"]:
        return t("no LoRA")
    if column["label"].startswith("step"):
        return t("step {step}", step=column["step"])
    return t("epoch {epoch}", epoch=column["epoch"])


def _is_held_out(document: Mapping[str, Any]) -> bool:
    """Whether losses were measured on pictures that were not trained on."""
    return bool(document.get("measured", {}).get("held_out"))


def _number_names(held_out: bool, t: Translate) -> list[dict[str, Any]]:
    """The numbers in the order they are shown: key, short name, what it tells, name of its spread, decimals.

    ``better`` says which end of a ranking comes first.
    """
    loss = t("Error on training pictures, since none were kept aside: it cannot show overfitting.")
    if held_out:
        loss = t("Error on pictures that were not trained on; lower is better.")
    copy = t("Distance to the nearest training picture; near 0 it is a copy.")
    leak = t("Change of pictures without the trigger word; lower is better.")
    effect = t("Change of pictures with the trigger word.")
    clip = t("How well CLIP finds the prompt in the picture; higher is better.")
    return [
        {"key": key, "name": name, "tells": tells, "better": better, "spread": spread, "digits": digits}
        for key, name, tells, better, spread, digits in (
            ("loss", t("loss"), loss, "low", "loss_se", 4),
            ("copy", t("novelty"), copy, "high", "copy_sd", 3),
            ("leak", t("leak"), leak, "low", "leak_sd", 3),
            ("effect", t("effect"), effect, "high", "effect_sd", 3),
            ("clip", t("CLIP match"), clip, "high", "clip_sd", 3),
        )
    ]


def _texts(t: Translate) -> dict[str, str]:
    """What the viewer says."""
    return {
        "rows": t("Rows"),
        "columns": t("Columns"),
        "column": t("Epoch"),
        "weight": t("Weight"),
        "prompt": t("Prompt"),
        "seed": t("Seed"),
        "weightValue": t("weight {weight}"),
        "seedValue": t("seed {seed}"),
        "noTrigger": t("without the trigger word"),
        "recommended": t("recommended"),
        "waiting": t("not drawn yet"),
        "size": t("Picture size"),
        "use": t("Use this cell"),
        "used": t("The prompt and its settings are in txt2img."),
        "copied": t("The prompt and its settings are copied."),
        "lost": t("The server does not answer; reload the page."),
        "card": t("Write into the card"),
        "preview": t("As preview"),
        "bake": t("Bake into a new file"),
        "continue": t("Continue training from here"),
        "voteUp": t("Good picture"),
        "voteDown": t("Bad picture"),
        "pinA": t("Pin as A"),
        "pinB": t("Pin as B"),
        "compare": t("Compare A and B"),
        "side": t("Side by side"),
        "flicker": t("Flicker"),
        "wipe": t("Wipe"),
        "stop": t("Stop"),
        "go": t("Go on"),
        "close": t("Close"),
        "ranking": t("Ranking"),
        "votes": t("votes"),
        "mean": t("mean of this epoch and weight"),
        "open": t("Open the picture"),
        "keys": t("Click a picture, then move with the arrow keys."),
    }


# ------------------------------------------------------------------ around the viewer
def verdict(document: Mapping[str, Any], folder: Path, translate: Translate) -> Markup:
    """The verdict in words, what went wrong, and links to the sheets and the table of numbers."""
    t = translate
    found = document["verdict"]
    parts: list[str] = []
    if found:
        sentences = joined(markup("<li>{sentence}</li>", sentence=_sentence(s, t)) for s in found["sentences"])
        title = _verdict_title(found["state"], t)
        kind = KINDS.get(found["state"], "info")
        parts.append(
            markup(
                '<div class="lt-notice lt-verdict lt-{kind}" role="status"><b>{title}</b><ul>{sentences}</ul></div>',
                kind=kind,
                title=title,
                sentences=sentences,
            )
        )
    problems = document.get("problems", [])
    parts += [common.notice(_sentence(problem, t), "error") for problem in problems]
    return joined(parts) + _links(document, folder, t)


def _sentence(said: Mapping[str, Any], t: Translate) -> str:
    return Message.from_dict(said).text(t)


def _verdict_title(state: str, t: Translate) -> str:
    titles = {
        "good": t("A good LoRA"),
        "under": t("Under-fitted"),
        "over": t("Over-fitted"),
        "useless": t("It has learned nothing of use"),
    }
    return titles.get(state, t("No verdict"))


def _links(document: Mapping[str, Any], folder: Path, t: Translate) -> Markup:
    downloads = _downloads(document, folder)
    sheets = [path for path in downloads if path.suffix == ".png"]

    def name(path: Path) -> str:
        if path in sheets:
            number = sheets.index(path) + 1
            return t("Sheet {number} (PNG)", number=number) if len(sheets) > 1 else t("Sheet (PNG)")
        return t("Numbers of each picture (CSV)") if path.stem.endswith(_OF_CELLS) else t("Numbers (CSV)")

    links = joined(
        markup(
            '<a href="{file_url}" download="{run}">{name}</a>',
            file_url=file_url(path),
            run=document["run"] + "-" + path.name,
            name=name(path),
        )
        for path in downloads
    )
    return markup('<div class="lt-links">{links}</div>', links=links) if links else EMPTY


def grid_losses(document: Mapping[str, Any], translate: Translate) -> Markup:
    """The loss over the epochs, a line a weight; empty when it was not measured."""
    t = translate
    columns = document["columns"]
    epochs = [column["epoch"] for column in columns if column["file"]]
    unit = "epoch" if len(set(epochs)) == len(epochs) else "step"
    losses = {
        (group["column"], group["weight"]): loss
        for group in document["groups"]
        if (loss := group["numbers"].get("loss")) is not None
    }
    base = losses.get((0, 0.0))
    last = float(max((column[unit] for column in columns), default=1))
    curves = [Curve("lt-faint", t("without LoRA"), [(0.0, base), (last, base)] if base is not None else [])]
    weights = document["weights"]
    for place, weight in enumerate(weights[:: math.ceil(len(weights) / LINES)]):  # more lines nobody can tell apart
        found = [
            (float(c[unit]), losses[i, weight]) for i, c in enumerate(columns) if c["file"] and (i, weight) in losses
        ]
        name = t("weight {weight}", weight=f"{weight:g}")
        curves.append(Curve(f"lt-line-{place}", name, sorted(found), marked=True))
    if not any(curve.points for curve in curves[1:]):
        return EMPTY
    title = t("Validation loss") if _is_held_out(document) else t("Loss on training pictures")
    return chart(title, curves, t("epoch") if unit == "epoch" else t("step"), last)
