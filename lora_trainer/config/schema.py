"""Documents made of dataclasses: fields that describe themselves, read with checks from plain values and TOML.

Used by :mod:`lora_trainer.config.train`; nothing here knows what a training run is.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import clean_path
from lora_trainer.core.reach import reach_problem

MAX_DOCUMENT_BYTES = 1_000_000


@dataclass(frozen=True)
class Flag:
    """How the command line has an option.

    Attributes:
        help: its line in ``--help``.
        metavar: what one value of a list is called there.
        name: of the flag, where it is not the option's.
        given: ``default`` stands where the flag is left out; ``optional``: none does, and the command says what that
            means; ``required``: it must be given; ``argument``: the same, without a flag.
    """

    help: str
    metavar: str = ""
    name: str = ""
    given: str = "default"


def option(
    default: Any,
    title: str,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    advanced: bool = False,
    path: bool = False,
    flag: Flag | None = None,
) -> Any:
    """A config field with what a form, a schema, a command and a person need to know about it.

    The bounds of a list of numbers are those of each number. A text that is a ``path`` is read as people paste it, see
    :func:`lora_trainer.core.paths.clean_path`.
    """
    metadata = {
        "title": title,
        "help": help,
        "min": min,
        "max": max,
        "unit": unit,
        "choices": choices,
        "advanced": advanced,
        "is_path": path,
        "flag": flag,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One field of the document, described."""

    path: str
    type: Any
    default: Any
    title: str
    help: str
    min: float | None
    max: float | None
    unit: str
    choices: tuple[str, ...]
    advanced: bool
    is_path: bool
    flag: Flag | None = None

    @property
    def each(self) -> Any:
        """The type of a list's values; ``None`` for what is no list."""
        return typing.get_args(self.type)[0] if typing.get_origin(self.type) is list else None


def options_of(cls: type, prefix: str) -> Iterator[Option]:
    """The fields of a dataclass and of those within it; their paths begin with ``prefix``."""
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from options_of(typing.cast(type, kind), f"{item.name}.")
            continue
        default = getattr(cls(), item.name)
        yield Option(prefix + item.name, kind, default, **item.metadata)


def schema_of(cls: type) -> dict[str, Any]:
    """The JSON schema of a dataclass."""
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {}
    for item in fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            properties[item.name] = schema_of(typing.cast(type, kind))
            continue
        default = getattr(cls(), item.name)
        meta = item.metadata
        entry: dict[str, Any] = {**_schema_type(kind), "title": meta["title"], "description": meta["help"]}
        entry["default"] = default
        if meta["choices"]:
            entry["enum"] = list(meta["choices"])
        bounded = entry.get("items", entry)
        if meta["min"] is not None:
            bounded["minimum"] = meta["min"]
        if meta["max"] is not None:
            bounded["maximum"] = meta["max"]
        if meta["unit"]:
            entry["unit"] = meta["unit"]
        properties[item.name] = entry
    return {"type": "object", "title": cls.__doc__, "properties": properties, "additionalProperties": False}


def _schema_type(kind: Any) -> dict[str, Any]:
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _schema_type(typing.get_args(kind)[0])}
    if typing.get_origin(kind) is dict:
        return {"type": "object"}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}


# ------------------------------------------------------------------ reading
def read_document(
    cls: type,
    document: Any,
    prefix: str,
    errors: list[InputError],
    check: Callable[[Option, Any], Any] | None = None,
) -> Any:
    """An instance of ``cls`` from plain values; what is wrong is added to ``errors``, and the default taken.

    ``check`` is :func:`check_value`, or :func:`typed_value` where bounds are looked at elsewhere.
    """
    check = check or check_value
    if not isinstance(document, Mapping):
        errors.append(field_error(prefix.rstrip(".") or "config", "expected a section with fields."))
        return cls()
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in document.items():
        path = prefix + _shown_key(key)
        if key not in hints:
            errors.append(unknown_field(path, [prefix + name for name in hints]))
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = read_document(typing.cast(type, hints[key]), value, f"{path}.", errors, check)
        else:
            item = next(f for f in fields(cls) if f.name == key)
            try:
                values[key] = check(Option(path, hints[key], None, **item.metadata), value)
            except InputError as error:
                errors.append(error)
    return cls(**values)


def require_known(document: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse what nothing reads.

    Raises:
        InputError: the document has a key that is not in ``known``.
    """
    for key in document:
        if key not in known:
            raise unknown_field(_shown_key(key), list(known))


def _shown_key(key: object) -> str:
    return str(key)[:100].encode("utf-8", "replace").decode()


def unknown_field(path: str, known: list[str]) -> InputError:
    """The sentence for a field that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(path, known, n=1)
    if close:
        return field_error(path, "there is no such field; did you mean {close}?", close=close[0])
    return field_error(path, "there is no such field; see the documentation for the fields of a run.")


def field_error(path: str, sentence: str, **values: object) -> InputError:
    """An error about one field; the sentence begins with its path."""
    return InputError("{path}: " + sentence, field=path, path=path, **values)


def check_value(item: Option, value: Any) -> Any:
    """A plain value as the field has it: of its type, a path without what was pasted along.

    Raises:
        InputError: another type, out of bounds, or none of the choices.
    """
    value = typed_value(item, value)
    for number in value if item.each in (int, float) else [value]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _require_within(item, number)
    return value


def typed_value(item: Option, value: Any) -> Any:
    """The same without the bounds, for whoever has sentences of its own about those.

    Raises:
        InputError: another type, or none of the choices.
    """
    if item.is_path:
        return _path(item, value)
    if item.each in (int, float):
        return _numbers(item, value)
    value = _typed(item.path, item.type, value)
    if item.choices and value not in item.choices:
        raise field_error(item.path, "“{value}” is not one of {choices}.", value=value, choices=", ".join(item.choices))
    return value


def bounds(item: Option) -> tuple[float, float]:
    """The least and the most that a number, or each of a list, may be."""
    return -math.inf if item.min is None else item.min, math.inf if item.max is None else item.max


def _require_within(item: Option, value: float) -> None:
    low, high = bounds(item)
    if low <= value <= high:
        return
    if item.each is int:
        raise _not_whole(item)
    raise field_error(
        item.path,
        "{value} is out of range; use {low} to {high}.",
        value=_plain(value),
        low=_plain(low),
        high=_plain(high),
    )


def _numbers(item: Option, value: Any) -> list[Any]:
    """A list of numbers of one kind."""
    is_list = isinstance(value, (list, tuple))
    fits = _is_whole if item.each is int else _is_finite
    if is_list and all(isinstance(v, (int, float)) and not isinstance(v, bool) and fits(v) for v in value):
        return [item.each(v) for v in value]
    if item.each is int:
        raise _not_whole(item)
    raise field_error(item.path, "expected a list of {wanted}.", wanted="numbers")


def _not_whole(item: Option) -> InputError:
    low, high = bounds(item)
    return field_error(item.path, "give whole numbers from {low} to {high}.", low=_plain(low), high=_plain(high))


def _path(item: Option, value: Any) -> str:
    text = clean_path(value) if isinstance(value, str) else value
    if isinstance(text, str) and any(ord(c) < 32 for c in text):  # "C:\temp" says C:, a tab, and emp
        raise field_error(
            item.path,
            "the path has a tab, a line break or the like in it, which \\t and \\n mean in double quotes; write a "
            "Windows path with /, as C:/temp/new, or in TOML in single quotes.",
        )
    text = str(_typed(item.path, item.type, text))
    if problem := reach_problem(text):
        raise field_error(item.path, problem, text=text[:200])
    return text


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))


def _typed(path: str, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UnionType):
        raise TypeError(f"{path}: config fields have one type")
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, (int, float)) and not isinstance(value, bool) and _is_whole(value):
        return int(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if kind is str and isinstance(value, str):
        if any(ord(c) < 32 and c not in "\t\n\r" for c in value) or len(value) > 10_000:
            raise field_error(path, "the text has control characters or is longer than 10000 characters.")
        if not _is_unicode(value):
            raise field_error(path, "the text has characters that are not Unicode.")
        return value
    if typing.get_origin(kind) is list and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return [_typed(path, str, v) for v in value]
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return {_typed(path, str, str(k)): _argument(path, v) for k, v in value.items()}
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    origin = typing.get_origin(kind)
    wanted = "a list of texts" if origin is list else "a table of values" if origin is dict else names[kind]
    raise field_error(path, "expected {wanted}, not {value}.", wanted=wanted, value=_shown(value))


def _argument(path: str, value: Any) -> Any:
    """A value of a free table: one that TOML and JSON can both say, without tables in it."""
    if isinstance(value, (list, tuple)):
        return [_scalar(path, v) for v in value]
    return _scalar(path, value)


def _scalar(path: str, value: Any) -> Any:
    kind = next((k for k in (bool, int, float, str) if isinstance(value, k)), None)
    if kind is None:
        raise field_error(path, "{value} is not a number, a text, true, false or a list of these.", value=_shown(value))
    return _typed(path, kind, value)


def _shown(value: Any) -> str:
    """A wrong value as a person typed it, shortened."""
    try:
        return json.dumps(value, default=str)[:60]
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"


def _is_whole(value: float) -> bool:
    return _is_finite(value) and value == int(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number with hundreds of digits
        return False


def _is_unicode(text: str) -> bool:
    """Whether it can be written down; JSON can say half a character (a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------ texts
def read_text(item: Option, text: str) -> Any:
    """What a text typed for a field means, by the field's type: ``2024`` is a name for a name, a number for a number.

    A text may stand in TOML's quotes, a list is written as TOML's or is one text, a table with or without its braces.

    Returns:
        a plain value for :func:`check_value`; the text itself where it says no value of the type.
    """
    text = text.strip() or text  # a separator may be a blank
    origin = typing.get_origin(item.type)
    if origin is dict:
        return _toml_or(text, text if text.startswith("{") else f"{{{text}}}")
    if origin is list:
        found = _toml_or(text, text)
        if not text:
            return []
        return found if isinstance(found, list) else [found if _is_quoted(text) else text]
    if item.type is str:
        return _toml_or(text, text) if _is_quoted(text) and not item.is_path else text
    if item.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return _toml_or(text, re.sub(r"^([+-]?)\.(?=\d)", r"\g<1>0.", text))


def split_values(text: str) -> list[str]:
    """``a, "b, c", [d, e]`` → its parts; commas in quotes and brackets part nothing, and ``，`` parts as ``,`` does.

    Raises:
        ValueError: a quote or a bracket is not closed.
    """
    parts, quote, depth = [""], "", 0
    for letter in text:
        if quote:
            quote = "" if letter == quote and not _is_escaped(parts[-1], quote) else quote
        elif letter in "\"'" and (depth or not parts[-1].strip()):
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter in ",，" and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    if quote or depth > 0:
        raise ValueError("a quote or a bracket is not closed")
    return [part.strip() for part in parts]


def _is_escaped(before: str, quote: str) -> bool:
    return quote == '"' and (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


def _toml_or(text: str, value: str) -> Any:
    try:
        document = parse_toml(f"value = {value}")
    except ValueError:
        return text
    return document["value"] if list(document) == ["value"] else text


# ------------------------------------------------------------------ TOML
def read_toml(path: Path | str) -> dict[str, Any]:
    """The document in a TOML file.

    Raises:
        InputError: the file is missing, too large, not UTF-8 or not TOML.
    """
    path, text = Path(path), ""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InputError("{path} is larger than 1 MB, so it is not a training configuration.", path=path)
        text = path.read_text(encoding="utf-8-sig")
        return parse_toml(text)
    except FileNotFoundError as error:
        raise InputError("{path} does not exist; check the path.", path=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The configuration {path} cannot be read: {error}.", path=path, error=error) from error
    except ValueError as error:
        raise _toml_error(path, text, error) from error


def _toml_error(path: Path, text: str, error: ValueError) -> InputError:
    lines = text.split("\n")
    place = re.search(r"at line (\d{1,9})\b", str(error))
    line = lines[min(int(place[1]), len(lines)) - 1] if place else lines[-1]
    if "\\" in line:  # what begins with one has a meaning in double quotes, or none
        return InputError(
            "The configuration {path} is not valid TOML: {error}. Write Windows paths in single quotes, as "
            "'C:\\pictures', or with /, as \"C:/pictures\".",
            path=path,
            error=error,
        )
    return InputError("The configuration {path} is not valid TOML: {error}.", path=path, error=error)


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML with the standard library, or on Python 3.10 with tomli or pip's own copy of it.

    Raises:
        ValueError: it is not TOML, or nested absurdly deep.
    """
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            from pip._vendor import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def toml_value(value: Any) -> str:
    """One value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(str(k))} = {toml_value(v)}" for k, v in value.items()) + "}"
    raise InputError("{value} cannot be written as TOML.", value=repr(value)[:60])


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else toml_value(key)
