"""Heat map, ranked blocks and learned weights as HTML. Everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from lora_trainer.core.errors import explained
from lora_trainer.core.i18n import Translate
from lora_trainer.core.messages import Message
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.jobs.blocks import Cost
from lora_trainer.ui.html.common import duration, notice, progress_bar
from lora_trainer.ui.html.markup import EMPTY, Markup, joined, markup

_SHOWN = 80
"""Side in pixels of a small picture, which is sent at twice the size for sharp screens."""
_RAMP = ((0.0, (68, 1, 84)), (0.25, (59, 82, 139)), (0.5, (33, 145, 140)), (0.75, (94, 201, 98)), (1.0, (253, 231, 37)))
"""Viridis (van der Walt & Smith, 2015), which grows evenly in lightness: also for the colour-blind, and in print."""
_HIGHEST = 1.5
_WEAK = 0.1
"""Below this largest norm the others would be all zeros in two decimals."""
_MANY = 20
"""Columns; with more there is seldom room for numbers."""


def heat_table(heat: Mapping[str, Any], chosen: str, translate: Translate) -> Markup:
    """‖ΔW‖ with files as rows and blocks as columns; ``chosen`` is the name of the file whose row is marked."""
    t = translate
    if not heat["rows"]:
        return notice(t("This run has no LoRA files yet."))
    largest = max((norm for row in heat["rows"] for norm in row["norms"] if norm is not None), default=0.0)
    times = 1000 if largest < _WEAK else 1
    title = t("‖ΔW‖ of each block at weight 1") if times == 1 else t("‖ΔW‖ × 1000 of each block at weight 1")
    tells = t("How strongly a file changes each block, from the file alone; what that does, the pictures below show.")
    heads = joined(markup("<th scope='col'>{block}</th>", block=block) for block in heat["blocks"])
    rows = joined(_heat_row(row, heat["blocks"], (largest, times), row["name"] == chosen, t) for row in heat["rows"])
    many = markup(' class="lt-many"') if len(heat["blocks"]) > _MANY else ""
    scale = joined(markup('<i style="background:{colour}"></i>', colour=_colour(share / 20)[0]) for share in range(21))
    return markup(
        '<div class="lt-heat"><div class="lt-steps"><span>{title}</span>'
        '<span class="lt-scale">0 {scale} {times:.3g}</span></div><div class="lt-scroll">'
        "<table{many}><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<small>{tells}</small></div>",
        title=title,
        scale=scale,
        times=times * largest,
        many=many,
        heads=heads,
        rows=rows,
        tells=tells,
    )


def _heat_row(
    row: Mapping[str, Any], blocks: Sequence[str], scale: tuple[float, int], chosen: bool, t: Translate
) -> Markup:
    label = _label(row, t)
    marked = markup(' class="lt-chosen"') if chosen else ""
    if row["problem"]:
        sentence = Message.from_dict(row["problem"]).text(t)
        return markup(
            '<tr{marked}><th scope="row">{label}</th><td colspan="{value}">{sentence}</td></tr>',
            marked=marked,
            label=label,
            value=max(1, len(blocks)),
            sentence=sentence,
        )
    cells = joined(_heat_cell(label, block, norm, *scale) for block, norm in zip(blocks, row["norms"], strict=True))
    return markup('<tr{marked}><th scope="row">{label}</th>{cells}</tr>', marked=marked, label=label, cells=cells)


def _heat_cell(label: str, block: str, norm: float | None, largest: float, times: int) -> Markup:
    if norm is None:
        return markup('<td title="{label} · {block}: –">–</td>', label=label, block=block)
    back, front = _colour(norm / largest if largest else 0.0)
    return markup(
        '<td style="background:{back};color:{front}" title="{label} · {block}: {norm:.4g}"><span>{short}</span></td>',
        back=back,
        front=front,
        label=label,
        block=block,
        norm=norm,
        short=_short(times * norm),
    )


def _label(row: Mapping[str, Any], t: Translate) -> str:
    by_step = row.get("by_step", row["label"] == f"step {row['step']}")
    return t("step {step}", step=row["step"]) if by_step else t("epoch {epoch}", epoch=row["epoch"])


def _short(norm: float) -> str:
    """At most four characters."""
    return f"{norm:.0f}" if norm >= 100 else f"{norm:.1f}" if norm >= 10 else f"{norm:.2f}"


def _colour(share: float) -> tuple[str, str]:
    """Background and a text colour that can be read on it, for 0 … 1."""
    share = min(1.0, max(0.0, share))
    for (low, first), (high, second) in pairwise(_RAMP):
        if share <= high:
            part = (share - low) / (high - low)
            red, green, blue = (round(a + part * (b - a)) for a, b in zip(first, second, strict=True))
            light = 0.299 * red + 0.587 * green + 0.114 * blue
            return f"#{red:02x}{green:02x}{blue:02x}", "#000" if light > 120 else "#fff"
    raise AssertionError(share)


# ------------------------------------------------------------------ by pictures
def analysis_report(document: Mapping[str, Any], request: int, translate: Translate) -> Markup:
    """The notes, and each block with bars and small pictures of one prompt and seed."""
    t = translate
    request = min(max(request, 0), len(document["requests"]) - 1)
    shown = document["requests"][request]
    largest = (
        max((max(e["only"]["rms"], e["without"]["rms"], _leak(e)) for e in document["blocks"]), default=0.0) or 1.0
    )
    heads = [t("difference ×{gain}", gain=document["gain"]), t("only this block"), t("without it"), t("all blocks")]
    rows = joined(
        _block_row(entry, entry["pictures"][request], shown["full"], heads, largest, t) for entry in document["blocks"]
    )
    keys = [("lt-bar-only", t("alone")), ("lt-bar-without", t("left out"))]
    if document["all_leak"] is not None:
        keys.append(("lt-bar-leak", t("without the trigger word")))
    legend = joined(markup('<span><i class="{name}"></i>{text}</span>', name=name, text=text) for name, text in keys)
    captions = joined(markup("<span>{head}</span>", head=head) for head in heads)
    whole = t(
        "The whole LoRA changes {share:.0%} of the picture (RMS {rms:.3f}).",
        share=document["all"]["share"],
        rms=document["all"]["rms"],
    )
    return (
        _sentences(document["notes"], t)
        + markup('<div class="lt-steps"><span>{whole}</span></div>', whole=whole)
        + markup(
            '<div class="lt-blocks"><div class="lt-block lt-blocks-head"><b></b><div class="lt-legend">{legend}</div>',
            legend=legend,
        )
        + markup('<div class="lt-thumbs">{captions}</div></div>{rows}</div>', captions=captions, rows=rows)
    )


def _block_row(
    entry: Mapping[str, Any],
    pictures: Mapping[str, str],
    full: str,
    heads: Sequence[str],
    largest: float,
    t: Translate,
) -> Markup:
    bars = _bar("lt-bar-only", entry["only"], largest) + _bar("lt-bar-without", entry["without"], largest)
    if entry["leak"]:
        bars += _bar("lt-bar-leak", {"rms": _leak(entry)}, largest)
    places = (pictures["difference"], pictures["only"], pictures["without"], full)
    thumbs = joined(_thumbnail(path, f"{entry['block']}: {head}") for path, head in zip(places, heads, strict=True))
    block = entry["block"]
    return markup(
        '<div class="lt-block"><b>{block}</b><div class="lt-bars">{bars}</div>'
        '<div class="lt-thumbs">{thumbs}</div></div>',
        block=block,
        bars=bars,
        thumbs=thumbs,
    )


def _bar(kind: str, numbers: Mapping[str, float], largest: float) -> Markup:
    spread = f" ±{numbers['rms_sd']:.3f}" if numbers.get("rms_sd") else ""
    share = f" · {numbers['share']:.1%} > 20" if "share" in numbers else ""
    title = f"{numbers['rms']:.4f}{spread}{share}"
    return markup(
        '<div class="lt-effect" title="{title}"><i class="{kind}" style="width:{rms:.1%}"></i>'
        "<span>{rms2:.3f}{spread}</span></div>",
        title=title,
        kind=kind,
        rms=numbers["rms"] / largest,
        rms2=numbers["rms"],
        spread=spread,
    )


def _leak(entry: Mapping[str, Any]) -> float:
    leak = entry["leak"]
    return (leak["only"]["rms"] + leak["without"]["rms"]) / 2 if leak else 0.0


def _thumbnail(path: str, text: str) -> Markup:
    try:
        data = _small(path, Path(path).stat().st_mtime_ns)
    except (OSError, PictureError):
        return markup('<span class="lt-broken" title="{text}">⚠</span>', text=text)
    return markup('<img src="data:image/jpeg;base64,{data}" alt="{text}" title="{text}">', data=data, text=text)


@lru_cache(maxsize=1024)
def _small(path: str, modified: int) -> str:
    image = read_picture(Path(path))
    image.thumbnail((2 * _SHOWN, 2 * _SHOWN), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------ learned weights
def tuning_report(document: Mapping[str, Any], translate: Translate) -> Markup:
    """The verdict, what was compared, the weights as bars and the list to type."""
    t = translate
    first, *others = document["sentences"]
    kind = "good" if document["recommended"] != "none" else "info"
    return (
        notice(Message.from_dict(first).text(t), kind)
        + _sentences(others, t)
        + _compared(document, t)
        + _weights(document, t)
    )


def _compared(document: Mapping[str, Any], t: Translate) -> Markup:
    names = {
        "tuned": t("learned block weights"),
        "single": t("one weight, {weight}", weight=document["single"]["name"]),
        "preset": t("preset {name}", name=document["preset"]["name"]),
    }
    heads = [t("on other pictures"), t("loss before"), t("loss after"), t("lower by"), t("prompt")]
    rows = joined(
        _compared_row(
            names[kind],
            document[kind],
            document if kind == "tuned" else document[kind],
            kind == document["recommended"],
            t,
        )
        for kind in names
    )
    table = joined(markup("<th>{head}</th>", head=head) for head in heads)
    losses = document["losses"]
    facts = [
        (losses["base"], t("without LoRA")),
        (losses["before"], t("all blocks at 1")),
        (losses["fitted"], t("fitted, on the same pictures")),
    ]
    shown = joined(markup("<span><b>{value:.4f}</b> {name}</span>", value=value, name=name) for value, name in facts)
    return markup(
        '<div class="lt-steps">{shown}</div><div class="lt-scroll">'
        '<table class="lt-files lt-compared"><thead><tr>{table}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>",
        shown=shown,
        table=table,
        rows=rows,
    )


def _compared_row(name: str, found: Mapping[str, Any], use: Mapping[str, Any], best: bool, t: Translate) -> Markup:
    star = markup(' <span class="lt-badge lt-done">{recommended}</span>', recommended=t("recommended")) if best else ""
    error = found["error"] / found["before"]
    return markup(
        "<tr><td>{name}{star}</td><td>{before:.4f}</td><td>{after:.4f}</td>"
        "<td>{relative:+.2%} ± {error:.2%}</td><td>{use}</td></tr>",
        name=name,
        star=star,
        before=found["before"],
        after=found["after"],
        relative=found["relative"],
        error=error,
        use=_use(use["prompt"], t),
    )


def _weights(document: Mapping[str, Any], t: Translate) -> Markup:
    bars = joined(
        markup(
            '<div class="lt-weight{style}" title="{block}: {weight:g}"><span>{weight:g}</span><div>'
            '<i style="height:{weight2:.1%}"></i></div><b>{block}</b></div>',
            style="" if weight == 1 else " lt-changed",
            block=block,
            weight=weight,
            weight2=weight / _HIGHEST,
        )
        for block, weight in document["weights"].items()
    )
    return markup(
        '<div class="lt-scroll"><div class="lt-weights" style="--one:{value:.1%}">{bars}</div>'
        '</div><div><code class="lt-list">{lbw}</code> {use}</div>',
        value=1 / _HIGHEST,
        bars=bars,
        lbw=document["lbw"],
        use=_use(document["prompt"], t),
    )


def _use(prompt: str, t: Translate) -> Markup:
    return markup(
        '<button class="lt-use" data-prompt="{prompt}">{label}</button>', prompt=prompt, label=t("To txt2img")
    )


# ------------------------------------------------------------------ both
def _sentences(notes: Sequence[Mapping[str, Any]], t: Translate) -> Markup:
    lines = joined(markup("<li>{sentence}</li>", sentence=Message.from_dict(note).text(t)) for note in notes)
    return markup('<ul class="lt-notice">{lines}</ul>', lines=lines) if lines else EMPTY


def blocks_status(progress: Mapping[str, Any], translate: Translate) -> Markup:
    """How far an analysis or a tuning is, or why it ended."""
    t = translate
    state = progress.get("state", "")
    if state == "queued":
        return notice(t("Waiting for its turn."))
    if state == "running":
        done, of = progress["done"], progress["of"]
        if progress.get("stopping"):
            return notice(t("It stops after this picture."))
        if not of:
            return notice(t("Preparing {file}.", file=progress["file"]))
        if progress["kind"] == "analysis":
            says = t("Drawing {file}: {done} of {of} pictures.", file=progress["file"], done=done, of=of)
        else:
            says = t("Learning the weights of {file}: {done} of {of}.", file=progress["file"], done=done, of=of)
        return _progress(says, done / of if of else 0.0, progress.get("seconds_left"), t)
    if state in ("failed", "stopped"):
        return notice(explained(progress).text(t), "error" if state == "failed" else "info")
    return EMPTY


def _progress(says: str, share: float, seconds_left: Any, t: Translate) -> Markup:
    left = duration(seconds_left) if isinstance(seconds_left, (int, float)) else ""
    time_left = markup("<span><b>{left}</b> {time_left}</span>", left=left, time_left=t("time left")) if left else ""
    return markup(
        '<div class="lt-status">{progress_bar}<div class="lt-steps"><span>{says}</span>{time_left}</div></div>',
        progress_bar=progress_bar(share),
        says=says,
        time_left=time_left,
    )


def costs(analysis: Cost, tuning: Cost, translate: Translate) -> Markup:
    """What both buttons would take, before one of them is pressed."""
    t = translate

    def with_time(says: str, cost: Cost) -> str:
        return says if cost.seconds is None else t("{says} (about {time})", says=says, time=duration(cost.seconds))

    both = (
        with_time(t("What each block does: {count:,} pictures to draw", count=analysis.count), analysis),
        with_time(t("The best weights: learned from {count:,} noisy pictures", count=tuning.count), tuning),
    )
    return (
        markup('<div class="lt-steps">')
        + joined(markup("<span>{each}</span>", each=each) for each in both)
        + markup("</div>")
    )
