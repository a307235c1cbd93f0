"""Pieces of the page as HTML. Everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import toml_value
from lora_trainer.config.train import options
from lora_trainer.core.errors import explained
from lora_trainer.core.i18n import Translate
from lora_trainer.core.messages import Message
from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.scan import Dataset, Item
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.manifest import DAMAGED
from lora_trainer.training.advice import Calculation
from lora_trainer.ui.html.common import duration, gigabytes, notice, progress_bar
from lora_trainer.ui.html.markup import EMPTY, Markup, joined, markup
from lora_trainer.ui.html.plots import Curve, chart, smooth, thin

if TYPE_CHECKING:
    from lora_trainer.training.preflight import Estimate

MAX_THUMBNAILS = 48
_THUMBNAIL = 96
_NAMED_PROBLEMS = 20
STATE_NAMES = {
    "queued": "Waiting",
    "running": "Training",
    "paused": "Paused",
    "stopped": "Stopped",
    "failed": "Failed",
    "done": "Done",
    DAMAGED: "Damaged",
}
PHASES = {
    "pictures": "Looking at the pictures",
    "latents": "Encoding pictures",
    "training": "Training",
    "samples": "Drawing samples",
    "validation": "Measuring the validation loss",
}
COUNTED = ("pictures", "latents", "samples")
"""Phases with a progress of their own."""
STOP_REQUESTS = {
    StopRequest.STOP: "It stops as soon as this is done; what it has learned is kept.",
    StopRequest.AFTER_EPOCH: "It stops after this epoch.",
    StopRequest.PAUSE: "It pauses as soon as this is done.",
    StopRequest.DISCARD: "It stops as soon as this is done, without a file.",
}
"""What a run that goes on was asked for."""
GRID_PHASES = {
    "pictures": "Drawing the grid: {done} of {of} pictures.",
    "losses": "Measuring losses: {done} of {of} files and weights.",
    "numbers": "Comparing the pictures: {done} of {of}.",
}
RATES = {"unet": "UNet learning rate", "text": "Text encoder learning rate"}


def base_model(health: dict[str, Any], translate: Translate) -> Markup:
    """The loaded checkpoint, or why there is none to train."""
    checkpoint = health["checkpoint"]
    if not checkpoint:
        return notice(translate(health["problem"]), "error")
    digest = checkpoint["sha256"][:10]
    name = checkpoint["name"]
    note = translate("Trained as it is loaded: no second copy is made.")
    return markup(
        '<div class="lt-base">'
        '<span class="lt-badge lt-done">{family}</span> <b>{name}</b> <code>{digest}</code><br>'
        "<small>{note}</small></div>",
        family=checkpoint["family"],
        name=name,
        digest=digest,
        note=note,
    )


def advice_list(found: Sequence[Message], calculation: Calculation | None, translate: Translate) -> Markup:
    """The step calculator's line and the warnings."""
    parts: list[str] = []
    if calculation:
        parts.append(markup('<div class="lt-steps">') + _calculation(calculation, translate) + markup("</div>"))
    if found:
        lines = joined(markup("<li>{sentence}</li>", sentence=a.text(translate)) for a in found)
        parts.append(markup('<ul class="lt-notice lt-warning">{lines}</ul>', lines=lines))
    elif calculation:
        parts.append(notice(translate("These settings look sound."), "good"))
    return joined(parts)


def _calculation(c: Calculation, t: Translate) -> Markup:
    pairs = [
        (c.images, "picture an epoch", "pictures an epoch"),
        (c.steps_per_epoch, "step an epoch", "steps an epoch"),
        (c.epochs, "epoch", "epochs"),
        (c.steps, "step in all", "steps in all"),
        (c.files, "LoRA file", "LoRA files"),
    ]
    return joined(
        markup("<span><b>{value:,}</b> {name}</span>", value=value, name=t(one) if value == 1 else t(many))
        for value, one, many in pairs
    )


def dataset_report(dataset: Dataset, translate: Translate) -> Markup:
    """Counts, buckets, what is left out, and small pictures with their crop and caption."""
    t = translate
    report = dataset.report()
    counts = joined(
        markup("<span><b>{value}</b> {name}</span>", value=value, name=t(one) if value == 1 else t(many))
        for value, one, many in (
            (report["pictures"], "picture", "pictures"),
            (report["images_per_epoch"], "with repeats", "with repeats"),
            (len(report["buckets"]), "bucket", "buckets"),
            (len(report["skipped"]), "skipped", "skipped"),
        )
    )
    buckets = joined(
        markup("<span><b>{size}</b> × {count}</span>", size=size, count=count)
        for size, count in report["buckets"].items()
    )
    shown = dataset.items[:MAX_THUMBNAILS]
    pictures = joined(_thumbnail(item, t) for item in shown)
    more = len(dataset.items) - len(shown)
    return (
        markup('<div class="lt-steps">{counts}</div>', counts=counts)
        + _problems(dataset, t)
        + markup(
            '<div class="lt-buckets">{buckets}</div><div class="lt-pictures">{pictures}</div>',
            buckets=buckets,
            pictures=pictures,
        )
        + (notice(t("… and {count} more.", count=more)) if more > 0 else EMPTY)
    )


def _problems(dataset: Dataset, t: Translate) -> Markup:
    sentences = [remark.message.text(t) for remark in dataset.remarks]
    if dataset.ignored:
        count = len(dataset.ignored)
        sentences.append(t("{count} pictures lie outside the numbered folders and are not used.", count=count))
    if dataset.uncaptioned:
        sentences.append(t("{count} pictures have no caption.", count=len(dataset.uncaptioned)))
    if enlarged := dataset.enlarged():
        sentences.append(
            t(
                "{count} pictures are smaller than their bucket and are enlarged, {name} most ({scale:.2f}×); use "
                "larger ones, lower the resolution, or switch “{option}” off.",
                count=len(enlarged),
                name=enlarged[0].path.name,
                scale=enlarged[0].fit.scale,
                option=t("Enlarge small pictures"),
            )
        )
    broken = [problem.text(t) for problem in dataset.problems]
    sentences += broken[:_NAMED_PROBLEMS]
    if len(broken) > _NAMED_PROBLEMS:
        sentences.append(t("… and {count} more.", count=len(broken) - _NAMED_PROBLEMS))
    lines = joined(markup("<li>{s}</li>", s=s) for s in sentences)
    return markup('<ul class="lt-notice lt-warning">{lines}</ul>', lines=lines) if lines else EMPTY


def _thumbnail(item: Item, t: Translate) -> Markup:
    try:
        image = read_picture(item.path)
    except PictureError as problem:
        return markup('<figure class="lt-broken" title="{problem}">⚠</figure>', problem=problem.text(t))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = item.size
    left, top, right, bottom = item.fit.crop
    frame = (
        f"left:{left / width:.1%};top:{top / height:.1%};width:{(right - left) / width:.1%};"
        f"height:{(bottom - top) / height:.1%}"
    )
    caption = item.caption
    size = "×".join(map(str, item.fit.bucket))
    return markup(
        '<figure title="{name}: {caption}"><span class="lt-crop">'
        '<img alt="" src="data:image/jpeg;base64,{data}"><i style="{frame}"></i></span>'
        "<figcaption><b>{size}</b> {caption}</figcaption></figure>",
        name=item.path.name,
        caption=caption,
        data=data,
        frame=frame,
        size=size,
    )


def estimate(measured: Estimate, translate: Translate) -> Markup:
    """What a run would take, and what to change when that is too much."""
    t = translate
    facts = [] if measured.needed is None else [(gigabytes(measured.needed), "memory needed")]
    facts += [] if measured.expected is None else [(gigabytes(measured.expected), "expected by computation")]
    facts += [(gigabytes(measured.free), "free")]
    if measured.step_seconds is not None and measured.seconds is not None:
        facts += [(f"{measured.step_seconds:.2g} s", "a step"), (duration(measured.seconds), "for all steps")]
    shown = joined(markup("<span><b>{value}</b> {name}</span>", value=value, name=t(name)) for value, name in facts)
    titles = {item.path: item.title for item in options()}
    changes = ", ".join(f"{t(titles[path])} = {toml_value(value)}" for path, value in measured.changes.items())
    if not measured.fits:
        verdict = notice(t("It does not fit; lower the resolution or the rank, or close other programs."), "error")
    elif changes:
        verdict = notice(t("It fits with these settings: {changes}", changes=changes), "warning")
    else:
        verdict = notice(t("It fits."), "good")
    return markup('<div class="lt-steps">{shown}</div>', shown=shown) + verdict


def status_card(
    manifest: Mapping[str, Any], waiting: int, translate: Translate, request: StopRequest | None = None
) -> Markup:
    """State, progress bar, speed, time left, loss and rates of a run.

    Args:
        manifest: the run's.
        waiting: its place in line; 0 when it does not wait.
        translate: into the person's language.
        request: what it was asked for and has not done yet.
    """
    t = translate
    state = manifest["state"]
    if state == DAMAGED:
        return _damaged_card(manifest, t)
    done, of = _progress(manifest)
    phase = _phase(manifest, t)
    facts = _facts(manifest, t)
    share = done / of if of else (1.0 if state == "done" else 0.0)
    before = f" · {t('{count} before it', count=waiting)}" if state == "queued" and waiting else ""
    message = explained(manifest).text(t)
    kind = "error" if state == "failed" else "warning"
    badge = markup('<span class="lt-badge lt-{state}">{label}</span>', state=state, label=t(STATE_NAMES[state]))
    return (
        markup(
            '<div class="lt-status"><div class="lt-head">{badge}<b>{name}</b><span>{phase}</span>'
            '</div>{progress_bar}<div class="lt-steps">{facts}</div></div>',
            badge=badge,
            name=manifest["name"],
            phase=phase + before,
            progress_bar=progress_bar(share),
            facts=facts,
        )
        + notice(t(STOP_REQUESTS[request]) if state == "running" and request else "")
        + notice(message, kind)
    )


def _damaged_card(manifest: Mapping[str, Any], t: Translate) -> Markup:
    badge = markup('<span class="lt-badge lt-failed">{label}</span>', label=t(STATE_NAMES[DAMAGED]))
    head = markup('<div class="lt-head">{badge}<b>{name}</b></div>', badge=badge, name=manifest["name"])
    return markup('<div class="lt-status">{head}</div>', head=head) + notice(explained(manifest).text(t), "error")


def _phase(manifest: Mapping[str, Any], t: Translate) -> str:
    if manifest["state"] == "paused" and manifest.get("waits"):
        return t("Its checkpoint is not loaded")
    if manifest["state"] != "running":
        return ""
    if manifest.get("waiting"):
        return t("Paused for a picture or other work")
    phase = manifest.get("phase") or ""
    return "" if phase == "training" else t(PHASES.get(phase, ""))  # the badge says that it trains


def _progress(manifest: Mapping[str, Any]) -> tuple[int, int]:
    if manifest["state"] == "running" and manifest.get("phase") in COUNTED:
        return manifest.get("phase_done", 0), manifest.get("phase_total", 0)
    return manifest["step"], manifest["steps"]


def _facts(m: Mapping[str, Any], t: Translate) -> Markup:
    facts: list[tuple[str, str]] = [(f"{m['step']}/{m['steps']}", "step"), (f"{m['epoch']}/{m['epochs']}", "epoch")]
    if m.get("steps_per_second"):
        pace = m["steps_per_second"]
        facts.append((f"{pace:.2f}/s" if pace >= 1 else f"{1 / pace:.1f} s", "steps" if pace >= 1 else "a step"))
    if m.get("seconds"):
        facts.append((duration(m["seconds"]), "spent"))
    if m["state"] == "running" and m.get("seconds_left"):
        facts.append((duration(m["seconds_left"]), "time left"))
    if m.get("loss_average") is not None:
        facts.append((f"{m['loss_average']:.4f}", "loss"))
    validation = m.get("validation", {})
    if "last" in validation:  # null where it was no number
        facts.append((_loss(validation["last"]), "validation loss"))
        facts.append((_loss(validation.get("base")), "without LoRA"))
    facts += [(rate_text(rate), RATES.get(name, name)) for name, rate in _rates(m).items()]
    return joined(markup("<span><b>{value}</b> {name}</span>", value=value, name=t(name)) for value, name in facts)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _rates(entry: Mapping[str, Any]) -> dict[str, float]:
    """The learning rates of a manifest or log entry."""
    return {name: rate for name, rate in (entry.get("lr") or {}).items() if rate is not None}


def rate_text(rate: float) -> str:
    """A learning rate as people write it, in three digits: ``0.0001``, ``1.71 × 10⁻⁷``."""
    if rate == 0 or abs(rate) >= 1e-5:
        return f"{rate:.3g}" if abs(rate) >= 1e-4 or rate == 0 else f"{rate:.7f}".rstrip("0")
    digits, _, power = f"{rate:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')} × 10" + str(int(power)).translate(
        str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    )


def curves(entries: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], translate: Translate) -> Markup:
    """Loss, validation loss and learning rates over the steps."""
    t = translate
    losses = [(e["step"], e["loss"]) for e in entries if isinstance(e.get("loss"), (int, float))]
    tested = [(e["step"], e["validation"]) for e in entries if e.get("validation") is not None and not e.get("base")]
    base = manifest.get("validation", {}).get("base")
    steps = float(manifest["steps"] or 0) or None
    straight = [(0.0, base), (steps or 1.0, base)] if base is not None else []
    rates = sorted({name for e in entries for name in _rates(e)})
    rate_curves = [
        Curve(
            f"lt-line-{i}",
            t(RATES.get(name, name)),
            thin([(e["step"], _rates(e)[name]) for e in entries if name in _rates(e)]),
        )
        for i, name in enumerate(rates)
    ]
    loss_curves = [
        Curve("lt-faint", t("each step"), thin(losses)),
        Curve("lt-line-0", t("average"), thin(smooth(losses, 0.95))),
    ]
    validation_curves = [
        Curve("lt-faint", t("without LoRA"), straight),
        Curve("lt-line-1", t("held-out pictures"), tested, marked=True),
    ]
    return (
        chart(t("Loss"), loss_curves, t("step"), steps)
        + chart(t("Validation loss"), validation_curves, t("step"), steps)
        + chart(t("Learning rate"), rate_curves, t("step"), steps)
    )


def files_table(manifest: Mapping[str, Any], trigger: str, translate: Translate) -> Markup:
    """The run's LoRA files with the text to type, and their losses."""
    t = translate
    files = manifest["files"]
    if not files:
        return EMPTY
    best = _best_file(files)
    rows = joined(_file_row(entry, trigger, entry is best, t) for entry in reversed(files))
    heads = joined(markup("<th>{h}</th>", h=t(h)) for h in ("epoch", "prompt", "validation loss", "loss", "step"))
    table = markup(
        '<table class="lt-files"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>', heads=heads, rows=rows
    )
    return markup('<div class="lt-scroll">{table}</div>', table=table)


def _best_file(files: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    tested = [f for f in files if f.get("metrics", {}).get("validation") is not None]
    return min(tested, key=lambda f: f["metrics"]["validation"]) if tested else None


def _file_row(entry: Mapping[str, Any], trigger: str, is_best: bool, t: Translate) -> Markup:
    metrics = entry.get("metrics", {})

    def number(name: str) -> str:
        value = metrics.get(name)
        return f"{value:.4f}" if value is not None else "–"

    prompt = f"<lora:{Path(entry['path']).stem}:0.8>" + (f" {trigger}" if trigger else "")
    star = markup(' <span class="lt-badge lt-done">{lowest}</span>', lowest=t("lowest")) if is_best else ""
    button = markup(
        '<button class="lt-use" data-prompt="{prompt}">{label}</button>', prompt=prompt, label=t("To txt2img")
    )
    return markup(
        "<tr><td>{epoch}</td><td><code>{prompt}</code> {button}</td><td>{number}{star}</td>"
        "<td>{number2}</td><td>{step}</td></tr>",
        epoch=entry["epoch"],
        prompt=prompt,
        button=button,
        number=number("validation"),
        star=star,
        number2=number("loss"),
        step=entry["step"],
    )


def grid_status(grid: Mapping[str, Any], translate: Translate) -> Markup:
    """How far a grid is."""
    if not grid:
        return EMPTY
    if grid["state"] in ("failed", "stopped"):
        return notice(explained(grid).text(translate), "error" if grid["state"] == "failed" else "info")
    if grid["state"] == "done":
        return EMPTY
    return _grid_progress(grid, translate)


def _grid_progress(grid: Mapping[str, Any], t: Translate) -> Markup:
    share = grid["done"] / grid["of"] if grid["of"] else 0.0
    left = grid.get("seconds_left")
    says = t(GRID_PHASES.get(grid.get("phase", ""), GRID_PHASES["pictures"]), done=grid["done"], of=grid["of"])
    if grid["state"] == "queued":
        says = t("The grid waits for its turn.")
    time_left = (
        markup("<span><b>{duration}</b> {time_left}</span>", duration=duration(left), time_left=t("time left"))
        if left
        else ""
    )
    return markup(
        '<div class="lt-status">{progress_bar}<div class="lt-steps"><span>{says}</span>{time_left}</div></div>',
        progress_bar=progress_bar(share),
        says=says,
        time_left=time_left,
    )
