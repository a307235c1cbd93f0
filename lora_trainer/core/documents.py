"""Documents that are read back, which may be damaged, hand-edited or of another version: JSON, checked by type.

A document's type is a ``TypedDict``. What is read through it has every required key, and every known key has a value
of its type, down to the last list; so whoever shows it need not look twice. Keys that are not known, which another
version may have written, stay as they are. JSON has no NaN and no Infinity: they are written and read as ``null``.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from lora_trainer.core.files import patiently
from lora_trainer.core.reach import asks_another_computer

MAX_BYTES = 256_000_000
"""Of a document; a grid of tens of thousands of cells is far smaller."""
MAX_DEPTH = 40
"""Of what is not known; whatever is nested deeper could end the program that writes it out again."""
LARGEST = 2**53
"""The largest whole number that every reader of JSON keeps."""
Check = Callable[[Any, str], Any]


class Damaged(ValueError):
    """What is read is not what its type says; ``place`` tells where, e.g. ``files[2].step``."""

    def __init__(self, place: str) -> None:
        self.place = place[:200]
        super().__init__(place)


def _not_negative(value: float) -> bool:
    return value >= 0


def _is_path(value: str) -> bool:
    """Whether it can be asked for without an error of the system's own, and without asking another computer."""
    parts = value.replace("\\", "/").split("/")
    if asks_another_computer(value) or "\0" in value or len(value.encode()) >= 4096:
        return False
    return all(len(part.encode()) < 256 for part in parts)


Count = Annotated[int, _not_negative]
PathText = Annotated[str, _is_path]


# ------------------------------------------------------------------ reading
def read_document(path: Path, kind: Any) -> Any:
    """The document in a file, see :func:`checked`.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        Damaged: it is no JSON, too large, or not of this type.
    """
    if path.stat().st_size > MAX_BYTES:
        raise Damaged(f"{MAX_BYTES} bytes")
    return parsed(patiently(path.read_bytes), kind)


def parsed(text: bytes | str, kind: Any) -> Any:
    """The document in JSON text. Raises :class:`Damaged`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Damaged(f"{error.lineno}:{error.colno}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number with thousands of digits, nested too deeply
        raise Damaged("1:1") from error
    return checked(value, kind)


def checked(value: Any, kind: Any, place: str = "") -> Any:
    """A new value like ``value`` that is of a type for certain.

    Args:
        value: as JSON gives it.
        kind: a ``TypedDict``, ``str``, ``int``, ``float``, ``bool``, ``Any``, ``Literal[…]``, ``list[…]``,
            ``dict[str, …]``, a union of one of these with ``None`` or of scalars, or ``Annotated[…, predicate]``.
        place: where it stands.

    Raises:
        Damaged: it is not of this type.
    """
    return _check_of(kind)(value, place)


@lru_cache(maxsize=512)
def _check_of(kind: Any) -> Check:
    """What reads a value of a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        return _of_table(kind)
    if origin is Annotated:
        return _with_predicate(_check_of(arguments[0]), arguments[1])
    if origin is Literal:
        return _of_choices(arguments)
    if origin in (Union, types.UnionType):
        return _of_union([_check_of(each) for each in arguments if each is not type(None)], type(None) in arguments)
    if origin is list:
        return _of_list(_check_of(arguments[0]))
    if origin is dict:
        return _of_dict(_check_of(arguments[1]))
    return _PLAIN[kind]


def _of_table(kind: Any) -> Check:
    hints = typing.get_type_hints(kind, include_extras=True)
    checks = {key: _check_of(hint) for key, hint in hints.items()}
    required = kind.__required_keys__

    def check(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise Damaged(place or "1:1")
        start = f"{place}." if place else ""
        for key in required:
            if key not in value:
                raise Damaged(start + key)
        return {_text(key, start): checks.get(key, _anything)(each, start + key) for key, each in value.items()}

    return check


def _with_predicate(inner: Check, is_right: Callable[[Any], bool]) -> Check:
    def check(value: Any, place: str) -> Any:
        found = inner(value, place)
        if not is_right(found):
            raise Damaged(place)
        return found

    return check


def _of_choices(choices: tuple[Any, ...]) -> Check:
    def check(value: Any, place: str) -> Any:
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value in choices:
            return value
        raise Damaged(place)

    return check


def _of_union(checks: list[Check], may_be_none: bool) -> Check:
    def check(value: Any, place: str) -> Any:
        if may_be_none and (value is None or (isinstance(value, float) and not math.isfinite(value))):
            return None
        for each in checks[:-1]:
            try:
                return each(value, place)
            except Damaged:
                continue
        return checks[-1](value, place)

    return check


def _of_list(inner: Check) -> Check:
    def check(value: Any, place: str) -> Any:
        if not isinstance(value, list):
            raise Damaged(place)
        return [inner(each, f"{place}[{index}]") for index, each in enumerate(value)]

    return check


def _of_dict(inner: Check) -> Check:
    def check(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise Damaged(place)
        return {_text(key, place): inner(each, f"{place}.{key}") for key, each in value.items()}

    return check


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise Damaged(place)
    return value if value.isascii() else value.encode("utf-8", "replace").decode()  # JSON can say half a character


def _whole(value: Any, place: str) -> int:
    number = _number(value, place)
    if number != int(number) or abs(number) > LARGEST:
        raise Damaged(place)
    return int(number)


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Damaged(place)
    try:
        if math.isfinite(value):
            float(value)
            return value
    except OverflowError:  # a whole number with hundreds of digits
        pass
    raise Damaged(place)


def _truth(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise Damaged(place)
    return value


def _anything(value: Any, place: str, depth: int = 0) -> Any:
    """Any JSON that can be written again."""
    if depth > MAX_DEPTH:
        raise Damaged(place)
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, list):
        return [_anything(each, place, depth + 1) for each in value]
    if isinstance(value, dict):
        return {_text(key, place): _anything(each, place, depth + 1) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PLAIN: dict[Any, Check] = {str: _text, int: _whole, float: _number, bool: _truth, Any: _anything}
