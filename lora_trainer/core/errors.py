"""Errors that a person reads: one sentence that says what, where and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any


class LoraTrainError(Exception):
    """An expected failure. ``str(error)`` is its English sentence.

    The template and its values are kept apart, so that a page can show the sentence in another
    language (see :mod:`lora_trainer.core.i18n`).

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


def explain(error: BaseException) -> dict[str, Any]:
    """The manifest's entries about an error: its sentence, and the parts of it for a translation."""
    if not isinstance(error, LoraTrainError):
        error = unexpected(error)
    values = {k: v if isinstance(v, (int, float)) else str(v) for k, v in error.values.items()}
    return {"message": str(error), "error": {"template": error.template, "field": error.field, "values": values}}


def unexpected(error: BaseException) -> RunError:
    """The sentence for an error that nobody has foreseen; a library's ``exit()`` is one, too."""
    if isinstance(error, SystemExit):
        return RunError(
            "The library {library} wanted to end the whole program (exit code {code}); what it printed last, in the "
            "console, tells why.",
            library=_library(error.__traceback__),
            code=error.code,
        )
    return RunError("Unexpected error, {name}: {error}.", name=type(error).__name__, error=str(error).rstrip("."))


def _library(traceback: TracebackType | None) -> str:
    """The package that raised an error; Python's own modules, such as that of ``exit()``, are passed over."""
    name = "?"
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if module and module not in sys.stdlib_module_names and module != Path(__file__).parent.parent.name:
            name = module
        traceback = traceback.tb_next
    return name


@contextmanager
def concerning(place: str) -> Iterator[None]:
    """Errors that name no field are about this one."""
    try:
        yield
    except InputError as error:
        error.field = error.field or place
        raise
