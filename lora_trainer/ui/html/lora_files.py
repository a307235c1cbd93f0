"""What the panels of file tools and stacks show, as HTML. Everything that comes from outside is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.core.plain_json import json_text
from lora_trainer.jobs.background import BackgroundTask
from lora_trainer.ui.html import infotext
from lora_trainer.ui.html.common import gigabytes, notice, progress_bar
from lora_trainer.ui.html.markup import EMPTY, Markup, joined, markup

if TYPE_CHECKING:
    from lora_trainer.network.blocks.stack import Stack

TOP_TAGS = 24
KINDS = {"bake": "Bake", "merge": "Merge", "resize": "Resize", "extract": "Extract", "mix": "Random mixes"}
STATES = {"queued": "Waiting", "running": "Working", "stopped": "Stopped", "failed": "Failed", "done": "Done"}
TRAINING = {
    "ss_sd_model_name": "Base model",
    "ss_base_model_version": "Base version",
    "ss_num_train_images": "pictures an epoch",
    "ss_resolution": "Resolution",
    "ss_epoch": "epochs",
    "ss_steps": "steps",
    "ss_unet_lr": "UNet learning rate",
    "ss_text_encoder_lr": "Text encoder learning rate",
    "ss_optimizer": "Optimizer",
    "ss_lr_scheduler": "Scheduler",
    "ss_seed": "Seed",
    "ss_clip_skip": "Clip skip",
    "lora_train_made_from": "Made by",
}
"""What people look for in a file's metadata, and how it is called."""


# ------------------------------------------------------------------ a file
def info_report(found: Mapping[str, Any], card: Mapping[str, Any], translate: Translate) -> Markup:
    """What :func:`lora_trainer.network.ops.info.info` found in a file, for people.

    Args:
        found: its answer.
        card: the file's ``.json``; empty when it has none.
        translate: into the page's language.
    """
    t = translate
    badges = [found["architecture"], *(f"{kind} × {count}" for kind, count in found["kinds"].items())]
    head = joined(markup('<span class="lt-badge lt-plain">{badge}</span>', badge=badge) for badge in badges)
    facts = [
        (gigabytes(found["bytes"]), "file size"),
        (", ".join(found["precision"]), "precision"),
        (_range(found["ranks"]), "rank"),
        (_range(found["alphas"]), "alpha"),
        (f"{found['norm']:.4g}", "‖ΔW‖ at weight 1"),
    ]
    shown = joined(markup("<span><b>{value}</b> {name}</span>", value=value, name=t(name)) for value, name in facts)
    name = Path(found["path"]).stem
    return (
        markup(
            '<div class="lt-head"><b>{name}</b>{head}</div><div class="lt-steps">{shown}</div>',
            name=name,
            head=head,
            shown=shown,
        )
        + _training(found["metadata"], card, t)
        + _blocks(found["blocks"], t)
    )


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _training(metadata: Mapping[str, Any], card: Mapping[str, Any], t: Translate) -> Markup:
    rows = [(t("Trigger"), str(card.get("activation text") or metadata.get("modelspec.trigger_phrase") or ""))]
    rows += [(t(TRAINING[key]), _entry(key, metadata[key])) for key in TRAINING if metadata.get(key)]
    rows = [(title, value) for title, value in rows if value and value != "None"]
    lines = joined(markup("<div><span>{title}</span> <b>{v}</b></div>", title=title, v=v[:300]) for title, v in rows)
    table = markup('<div class="lt-facts">{lines}</div>', lines=lines) if lines else EMPTY
    tags = joined(
        markup("<span>{tag} <b>{count}</b></span>", tag=tag[:80], count=count)
        for tag, count in top_tags(metadata, TOP_TAGS)
    )
    if not lines and not tags:
        return notice(t("This file says nothing about its training."))
    return table + (markup('<div class="lt-buckets">{tags}</div>', tags=tags) if tags else EMPTY)


def _entry(key: str, value: Any) -> str:
    if key == "lora_train_made_from" and isinstance(value, list):
        return " → ".join(str(step.get("made", "?")) for step in value if isinstance(step, dict))
    return value if isinstance(value, str) else json_text(value)


def top_tags(metadata: Mapping[str, Any], count: int) -> list[tuple[str, int]]:
    """The most frequent tags of the captions, from ``ss_tag_frequency``: folder → tag → count."""
    counts: Counter[str] = Counter()
    folders = metadata.get("ss_tag_frequency")
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if isinstance(number, int) and str(tag).strip():
                counts[str(tag).strip()] += number
    return counts.most_common(count)


def _blocks(blocks: Sequence[Mapping[str, Any]], t: Translate) -> Markup:
    largest = max((block["norm"] for block in blocks), default=0.0) or 1.0
    rows = joined(_block(block, largest, t) for block in blocks)
    heads = joined(markup("<th>{head}</th>", head=t(head)) for head in ("block", "modules", "rank", "‖ΔW‖", "strength"))
    table = markup(
        '<table class="lt-files lt-file-blocks"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>',
        heads=heads,
        rows=rows,
    )
    return markup('<div class="lt-scroll">{table}</div>', table=table)


def _block(block: Mapping[str, Any], largest: float, t: Translate) -> Markup:
    share = block["norm"] / largest
    unknown = block["unknown"]
    more = markup(" <small>{unknown}</small>", unknown=t("+ {count} unknown", count=unknown)) if unknown else ""
    bar = markup('<div class="lt-strength"><i style="width:{share:.1%}"></i></div>', share=share)
    return markup(
        "<tr><td>{block}</td><td>{modules}</td><td>{range}</td><td>{norm:.4f}{more}</td><td>{bar}</td></tr>",
        block=block["block"],
        modules=block["modules"],
        range=_range(block["ranks"]),
        norm=block["norm"],
        more=more,
        bar=bar,
    )


# ------------------------------------------------------------------ work in the line
def tasks_mark(tasks: Iterable[BackgroundTask]) -> list[Any]:
    """What tells whether :func:`task_cards` would show something else."""
    return [(each.id, each.state, each.done, each.of, bool(each.result), bool(each.error)) for each in tasks]


def task_cards(tasks: Iterable[BackgroundTask], translate: Translate) -> Markup:
    """How far each is, and what it made; the newest first."""
    return joined(_task_card(task, translate) for task in tasks)


def _task_card(task: BackgroundTask, t: Translate) -> Markup:
    badge = markup('<span class="lt-badge lt-{state}">{states}</span>', state=task.state, states=t(STATES[task.state]))
    kind = t(KINDS[task.kind])
    head = markup(
        '<div class="lt-head">{badge}<b>{title}</b><span>{kind}</span></div>', badge=badge, title=task.title, kind=kind
    )
    if task.is_working:
        bar = progress_bar(task.done / task.of if task.of else 0.0)
        return markup('<div class="lt-task">{head}{bar}</div>', head=head, bar=bar)
    result = _made(task.result, t) if task.state == "done" and task.kind != "mix" else ""
    return markup(
        '<div class="lt-task">{head}{said}{result}</div>', head=head, said=_said(task.error, t), result=result
    )


def _said(error: LoraTrainError | None, t: Translate) -> Markup:
    if error is None:
        return EMPTY
    return notice(error.text(t), "error")


def _made(made: Any, t: Translate) -> Markup:
    """A new file: what came out, and its prompt."""
    facts = [(_fact(key, made.facts[key]), t(FACTS[key])) for key in FACTS if _says_something(key, made.facts.get(key))]
    shown = joined(markup("<span><b>{value}</b> {name}</span>", value=value, name=name) for value, name in facts)
    remarks = joined(notice(each.text(t), "warning") for each in made.notices)
    prompt = f"<lora:{made.path.stem}:1>"
    return markup(
        '<div class="lt-steps">{shown}</div>{remarks}<div><code>{prompt}</code> {use_button}<br>'
        "<small>{path}</small></div>",
        shown=shown,
        remarks=remarks,
        prompt=prompt,
        use_button=use_button(prompt, t),
        path=str(made.path),
    )


FACTS = {
    "ranks": "rank",
    "error": "relative error",
    "covered": "of the difference covered",
    "kept": "modules",
    "changed": "with another weight",
    "dropped": "modules left out",
    "expanded": "written in full",
    "unchanged": "unchanged layers",
    "lbw": "block weights",
}


def _says_something(key: str, value: Any) -> bool:
    return bool(value) and not (key == "lbw" and set(value.split(",")) == {"1"})


def _fact(key: str, value: Any) -> str:
    if key == "ranks":
        return _range(value)
    return f"{value:.2%}" if key in ("error", "covered") else str(value)


def use_button(prompt: str, translate: Translate, *, negative: str | None = None, settings: str = "") -> Markup:
    """A button that carries a prompt to txt2img: behind what is there, or with a ``negative`` in its place.

    Args:
        prompt: the text.
        translate: into the page's language.
        negative: the negative prompt; ``None`` leaves what is there.
        settings: of the picture, see :func:`lora_trainer.ui.html.infotext.settings`, with the seed.
    """
    place = "" if negative is None else markup(' data-replace="" data-negative="{negative}"', negative=negative)
    place += markup(' data-settings="{settings}"', settings=settings) if settings else ""
    data = prompt
    return markup(
        '<button class="lt-use" data-prompt="{data}"{place}>{label}</button>',
        data=data,
        place=place,
        label=translate("To txt2img"),
    )


# ------------------------------------------------------------------ stacks
def stack_report(stack: Stack, translate: Translate) -> Markup:
    """The LoRAs in their order, the sum of their weights, and the tags to type."""
    t = translate
    rows = joined(
        markup(
            "<tr><td>{number}</td><td>{name}</td><td>{weights:g}</td><td>{value}</td></tr>",
            number=number,
            name=tag.name,
            weights=stack.weights[tag.name],
            value=tag.lbw or "–",
        )
        for number, tag in enumerate(stack.tags, start=1)
    )
    heads = joined(
        markup("<th>{head}</th>", head=t(head)) for head in ("order", "LoRA file", "weight", "block weights")
    )
    table = markup(
        '<table class="lt-files lt-stack"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>',
        heads=heads,
        rows=rows,
    )
    remarks: str = joined(notice(each.text(t), "warning") for each in stack.notices())
    if not remarks and len(stack.tags) > 1:
        remarks = notice(t("The weights sum up to {total:g}; that is sound.", total=round(stack.total, 6)), "good")
    return markup(
        '<div class="lt-scroll">{table}</div>{remarks}<div><code>{stack}</code> {use_button}</div>',
        table=table,
        remarks=remarks,
        stack=str(stack),
        use_button=use_button(str(stack), t),
    )


def mixes_table(document: Mapping[str, Any], translate: Translate) -> Markup:
    """The mixes with their weights, and a button for each."""
    t = translate
    if not document["mixes"]:
        return EMPTY
    names = [lora["name"] for lora in document["loras"]]
    request = document["request"]
    heads = joined(markup("<th>{head}</th>", head=head) for head in ("№", *names, t("sum"), t("prompt")))
    rows = joined(_mix_row(mix, names, request, t) for mix in document["mixes"])
    table = markup(
        '<table class="lt-files lt-mixes"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>',
        heads=heads,
        rows=rows,
    )
    return markup('<div class="lt-scroll">{table}</div>', table=table)


def _mix_row(mix: Mapping[str, Any], names: Sequence[str], request: Mapping[str, Any], t: Translate) -> Markup:
    weights = joined(markup("<td>{weights:g}</td>", weights=mix["weights"][name]) for name in names)
    if request["prompt"]:
        settings = infotext.with_seed(infotext.settings(request), request["seed"])
        button = use_button(mix["prompt"], t, negative=request["negative"], settings=settings)
    else:
        button = use_button(mix["tags"], t)
    return markup(
        "<tr><td>{number}</td>{weights}<td>{total:g}</td><td><code>{tags}</code> {button}</td></tr>",
        number=mix["number"],
        weights=weights,
        total=mix["total"],
        tags=mix["tags"],
        button=button,
    )
