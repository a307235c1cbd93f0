"""The parser of the command line: bad input is one sentence, and lists may be written with commas or spaces."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lora_trainer.config.schema import Flag, Option, options_of
from lora_trainer.config.train import AUTO
from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import clean_path, expand, impossible
from lora_trainer.core.reach import reach_problem
from lora_trainer.runs.saved_files import epoch_names

_FROM_SHELL = re.compile(r"/dev/stdin|/(dev|proc/self)/fd/\d+")
"""What a shell hands over for ``<(…)`` and ``-``: files that it has opened already."""
_SHOWN = 200
"""Characters of a path in a sentence."""

Values = Callable[[str], "list[Any]"]
"""A list's text → its values; raises :class:`argparse.ArgumentTypeError`."""


class Parser(argparse.ArgumentParser):
    """Raises :class:`InputError` where argparse prints its usage and ends the program.

    Options are never abbreviated, so that a script goes on to work when there are more of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._lists: dict[str, Values] = {}

    def add_list(self, option: str, values: Values, *, metavar: str, help: str) -> None:
        """An option with several values, written ``1,2`` or ``1 2``, or given again; none by default.

        Args:
            option: its name, ``--seeds``.
            values: such as :func:`numbers` or :func:`epochs`.
            metavar: what one value is.
            help: what they are.
        """
        self._lists[option] = values
        several = f"{help}; several with commas or spaces between them"
        self.add_argument(option, type=values, action="extend", default=[], metavar=f"{metavar},…", help=several)

    def add_options(self, document: type, *names: str) -> None:
        """Flags for some options of a document; see :meth:`add_option`."""
        known = {item.path: item for item in options_of(document, "")}
        for name in names:
            self.add_option(known[name])

    def add_option(self, item: Option, values: Values | None = None) -> None:
        """A flag for an option that says how the command line has it.

        Args:
            item: the option.
            values: reads the values of one that is a list here alone.
        """
        shown = item.flag or Flag("")
        flag = f"--{shown.name or item.path.replace('_', '-')}"
        values = numbers(item.each) if item.each in (int, float) else values
        if values:
            self.add_list(flag, values, metavar=shown.metavar, help=shown.help)
        elif item.each is str:
            self.add_argument(flag, action="append", default=[], help=shown.help)
        elif item.type is bool:
            self.add_argument(flag, action="store_true", help=shown.help)
        else:
            self._add_value(flag, item, shown)

    def _add_value(self, flag: str, item: Option, shown: Flag) -> None:
        kind = as_path if item.is_path else item.type
        details: dict[str, Any] = {"type": kind, "metavar": shown.metavar or None, "help": shown.help}
        if item.choices:
            details["choices"] = [choice for choice in item.choices if choice != AUTO]
        if shown.given == "argument":
            self.add_argument(item.path, **details)
            return
        if shown.given == "default" and not item.is_path:
            details["default"] = item.default
        self.add_argument(flag, required=shown.given == "required", **details)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As the inherited one, but what is unknown is refused by the command that does not know it."""
        given = self._joined(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0])}")
        return found, []

    def error(self, message: str) -> Any:
        """Say what is wrong with the arguments.

        Raises:
            InputError: always.
        """
        raise InputError("{message}; see {command} --help.", message=message, command=self.prog)

    def _meant(self, unknown: str) -> str:
        close = get_close_matches(unknown.partition("=")[0], self._option_string_actions, 1)
        return f" (did you mean {close[0]}?)" if close else ""

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Each list as one argument, so that it takes its values and leaves the name of a run behind them alone."""
        rest, joined = list(arguments), list[str]()
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                return [*joined, argument, *rest]
            option, equals, first = argument.partition("=")
            if option in self._lists:
                found = [first] if equals else []
                while rest and _fits(rest[0], self._lists[option]):
                    found.append(rest.pop(0))
                argument = f"{option}={' '.join(found)}" if found else argument
            joined.append(argument)
        return joined


def _fits(text: str, values: Values) -> bool:
    try:
        return bool(values(text))
    except argparse.ArgumentTypeError:
        return False


def as_path(text: str) -> Path:
    """The value of an option that is a path, as people paste it.

    Raises:
        argparse.ArgumentTypeError: none; one of another computer or of a device; or one that can be no file's.
    """
    cleaned = clean_path(text)
    if not cleaned:
        raise argparse.ArgumentTypeError("expected a path, not an empty text")
    problem = "" if _FROM_SHELL.fullmatch(cleaned) else reach_problem(text)
    path = expand(text)
    if problem or (problem := impossible(path)):
        raise argparse.ArgumentTypeError(problem.format(text=cleaned[:_SHOWN]))
    return path


def numbers(kind: type) -> Values:
    """Values of a list of ``int`` or ``float``."""

    def values(text: str) -> list[Any]:
        parts = [part for part in re.split(r"[\s,，]+", text) if part]
        try:
            return [kind(part) for part in parts]
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"expected {wanted}, not {text!r}") from None

    return values


def epochs(text: str) -> list[str]:
    """Values of a list of epochs: ``all``, ``last``, ``every 2``, ``1-5``, ``3``, ``step 40``."""
    try:
        return epoch_names(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected all, last, every 2, 1-5 or 3, not {text!r}") from None


Add = Callable[..., Parser]


ROOT_HELP = "folder of runs, models and cache (default: here)"


def add_group(commands: Any, name: str, help: str) -> Any:
    """A command that has commands below it; returns where these are added."""
    return commands.add_parser(name, help=help, description=help).add_subparsers(metavar="WHAT", required=True)
