"""Errors that a person reads: one sentence that says what, where and what to do."""

from __future__ import annotations

from typing import Any


class LoraTrainError(Exception):
    """An expected failure. ``str(error)`` is its English sentence.

    The template and its values are kept apart, so that a page can show the sentence in another
    language (see :mod:`lora_trainer.i18n`).

    Args:
        template: the sentence, with ``{names}`` where values stand.
        field: the dotted config field it concerns, e.g. ``"data.folder"``, or ``""``.
        values: what stands in the template.
    """

    def __init__(self, template: str, *, field: str = "", **values: object) -> None:
        self.template = template
        self.field = field
        self.values = values
        super().__init__(template.format(**values) if values else template)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.template, self.field, self.values))


def _rebuild(kind: type[LoraTrainError], template: str, field: str, values: dict[str, object]) -> LoraTrainError:
    return kind(template, field=field, **values)


class InputError(LoraTrainError):
    """What the person gave cannot be used: nothing was changed (exit code 2, HTTP 422)."""


class NotFound(InputError):
    """There is no run of that name (HTTP 404)."""


class RunError(LoraTrainError):
    """The work was begun and failed (exit code 1): what was finished before is kept."""


class ConfigErrors(InputError):
    """Several fields are wrong at once; ``errors`` has one :class:`InputError` a field."""

    def __init__(self, errors: list[InputError]) -> None:
        self.errors = errors
        first = errors[0]
        super().__init__(first.template, field=first.field, **first.values)

    def __str__(self) -> str:
        return " ".join(str(e) for e in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.errors,))


class Interrupted(RunError):
    """The person has stopped the drawing with the host's own button."""


class CheckpointChanged(RunError):
    """The host has switched to another checkpoint or unloaded it while a run was using it."""


def explain(error: Exception) -> dict[str, Any]:
    """The manifest's entries about an error: its sentence, and the parts of it for a translation."""
    if isinstance(error, LoraTrainError):
        values = {k: v if isinstance(v, (int, float)) else str(v) for k, v in error.values.items()}
        return {"message": str(error), "error": {"template": error.template, "field": error.field, "values": values}}
    return {"message": f"Unexpected error, {type(error).__name__}: {error}", "error": {}}
