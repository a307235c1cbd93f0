"""The one way in which the page's HTML is made: what is written here is markup, and whatever is put into it is not.

MarkupSafe, which comes with gradio's own jinja2, escapes every value but markup itself, so that no text of a run's
folder, a file's name or its metadata becomes part of the page. A test (tests/ui/html) finds HTML made otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape

EMPTY = Markup()


def markup(template: str, **values: Any) -> Markup:
    """The template with each value escaped in its place; of values that are markup nothing is.

    Args:
        template: HTML with ``{names}``, which may have a format as in :meth:`str.format`.
        values: texts, numbers, and what this function made.
    """
    return Markup(template).format(**values)  # noqa: S704 - the template is code, see the test


def single_quoted(text: str) -> Markup:
    """A text for an attribute in single quotes, in which double ones may stay: JSON is full of them."""
    return Markup('"').join(escape(part) for part in text.split('"'))


def joined(parts: Iterable[str]) -> Markup:
    """Pieces of markup behind each other; texts among them are escaped."""
    return EMPTY.join(parts)
