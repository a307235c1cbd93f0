"""The kinds of work that page, REST and command line can start by name; each is a function with :func:`kind` above."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.hosts.base import Host
from lora_trainer.jobs.job import Progress, Work
from lora_trainer.jobs.library import LoraFolder
from lora_trainer.jobs.requests import read

FILES, DRAWING = "files", "drawing"
"""The queues: of work on files alone, and of what needs the model to draw."""


@dataclass(frozen=True)
class Prepared:
    """Work that was asked for and checked.

    Attributes:
        title: name of what is made.
        work: makes it.
    """

    title: str
    work: Work


@dataclass(frozen=True)
class NewFile:
    """Work that writes a LoRA file.

    Attributes:
        name: as the person gave it, or empty.
        default: where it goes without a name.
        write: writes it there, and returns something with its ``path``.
    """

    name: str
    default: Path
    write: Callable[[Path, Progress], Any]

    def named(self, host: Host, awaited: Iterable[str]) -> Prepared:
        """The work with a path that nothing has; the host knows the file when it is there.

        Args:
            host: whose LoRA folder it is.
            awaited: names of files that are being made.

        Raises:
            InputError: the name cannot be used, or is taken.
        """
        output = LoraFolder(host).new(self.name, self.default, awaited)

        def work(progress: Progress) -> Any:
            made = self.write(output, progress)
            host.announce(made.path)
            return made

        return Prepared(output.stem, work)


Prepare = Callable[[Host, Any, bool], "Prepared | NewFile"]
"""Checks a document; the last argument tells whether files outside of the LoRA folder may be read."""


@dataclass(frozen=True)
class Kind:
    """A kind of work.

    Attributes:
        name: of it.
        document: the class of what may be asked for.
        queue: that it waits in.
        prepare: checks what is asked for.
        complete: fills in what one value says of another, before the document is read.
    """

    name: str
    document: type
    queue: str
    prepare: Prepare
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def prepared(self, host: Host, body: Mapping[str, Any], *, outside: bool) -> Prepared | NewFile:
        """The work that ``body`` asks for; raises :class:`InputError`, with the field's path."""
        return self.prepare(host, read(self.document, self.complete(body)), outside)


KINDS: dict[str, Kind] = {}


def kind(
    name: str, document: type, queue: str, complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> Callable[[Prepare], Prepare]:
    """Register the function below as a :class:`Kind`."""

    def register(prepare: Prepare) -> Prepare:
        KINDS[name] = Kind(name, document, queue, prepare, complete)
        return prepare

    return register
