"""What all panels show: notices, progress, sizes and times."""

from __future__ import annotations

from collections.abc import Callable

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.ui.html.markup import EMPTY, Markup, markup
from lora_trainer.ui.widgets.fields import Fields, field_sentences, form_fields


def notice(text: str, kind: str = "info") -> Markup:
    """A framed sentence; ``kind`` is info, good, warning or error."""
    return (
        markup('<div class="lt-notice lt-{kind}" role="status">{text}</div>', kind=kind, text=text) if text else EMPTY
    )


def error_notice(error: LoraTrainError, translate: Translate, fields: Fields | None = None) -> Markup:
    """An error's sentences, framed; the page's script marks the fields that they are about (lora_train_fields.js).

    Args:
        error: one, or several at once.
        translate: into the person's language.
        fields: that stand on the page; those of the form when ``None``.
    """
    found = field_sentences(error, form_fields() if fields is None else fields, translate)
    lines = markup(" ").join(markup('<span data-field="{w}">{s}</span>', w=w, s=s) for w, s in found)
    return markup('<div class="lt-notice lt-error" role="status">{lines}</div>', lines=lines)


def answered(action: Callable[[], object], done: str, translate: Translate, fields: Fields | None = None) -> Markup:
    """Do something; the sentence ``done``, or what was wrong. ``done`` is empty where the status tells it."""
    try:
        action()
    except LoraTrainError as error:
        return error_notice(error, translate, fields)
    return notice(translate(done)) if done else EMPTY


def gigabytes(size: int) -> str:
    """``1.2 GB``, ``45 MB``, ``0.3 MB``, ``7 kB``."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    if size >= 1e5:
        return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def progress_bar(share: float) -> Markup:
    """A bar, filled up to ``share`` of 1."""
    return markup(
        '<div class="lt-bar" role="progressbar" aria-valuenow="{share:.0f}">'
        '<i style="width:{share2:.1%}"></i><span>{share2:.0%}</span></div>',
        share=share * 100,
        share2=share,
    )
