"""Errors that a person reads: one sentence that says what, where and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_trainer.core.messages import Message


class LoraTrainError(Exception):
    """An expected failure: its :class:`~lora_trainer.core.messages.Message` says what, where and what to do.

    ``str(error)`` is the English sentence, :meth:`text` that of another language.

    Args:
        template: the sentence, with ``{names}`` where values stand.
        field: the dotted config field it concerns, e.g. ``"data.folder"``, or ``""``.
        values: what stands in the template.
    """

    def __init__(self, template: str, *, field: str = "", **values: object) -> None:
        self.message = Message(template, values, field)
        super().__init__(str(self.message))

    @classmethod
    def of(cls, message: Message) -> LoraTrainError:
        """An error that says this."""
        return cls(message.template, field=message.field or "", **message.values)

    @property
    def field(self) -> str:
        """The dotted config field it concerns, or ``""``."""
        return self.message.field or ""

    def text(self, translate: Callable[[str], str]) -> str:
        """The sentence in the person's language."""
        return self.message.text(translate)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message))


def _rebuild(kind: type[LoraTrainError], message: Message) -> LoraTrainError:
    return kind.of(message)


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
        super().__init__(first.message.template, field=first.field, **first.message.values)

    def text(self, translate: Callable[[str], str]) -> str:
        """One sentence after the other."""
        return " ".join(each.text(translate) for each in self.errors)

    def __str__(self) -> str:
        return " ".join(map(str, self.errors))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.errors,))


class Interrupted(RunError):
    """The person has stopped the drawing with the host's own button."""


class CheckpointChanged(RunError):
    """The host has switched to another checkpoint or unloaded it while a run was using it."""


def explain(error: BaseException) -> dict[str, Any]:
    """The entries of a document about an error: its English sentence, and the parts of it for a translation."""
    if not isinstance(error, LoraTrainError):
        error = unexpected(error)
    return {"message": str(error), "error": error.message.to_dict()}


def explained(entries: Mapping[str, Any]) -> Message:
    """What :func:`explain` has written; an earlier version wrote the English sentence only."""
    message = Message.from_dict(entries.get("error") or {})
    return message if message.template else Message(str(entries.get("message") or ""))


def unexpected(error: BaseException) -> RunError:
    """The sentence for an error that nobody has foreseen; a library's ``exit()`` is one, too."""
    if isinstance(error, SystemExit):
        return RunError(
            "The library {library} wanted to end the whole program (exit code {code}); what it printed last, in the "
            "console, tells why.",
            library=_library(error.__traceback__),
            code=error.code if isinstance(error.code, int) else str(error.code),
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
        if not error.field:
            error.message = replace(error.message, field=place)
        raise
