"""The types of documents: every Python that we run on can read them, and each is checked down to its last list."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, ForwardRef

import pytest

from lora_trainer.core.documents import checked
from lora_trainer.runs import manifest
from lora_trainer.training import state
from lora_trainer.validation.grid import document as documents

MODULES = (manifest, documents, state)
TYPES = sorted(
    {value for module in MODULES for value in vars(module).values() if typing.is_typeddict(value)},
    key=lambda kind: kind.__name__,
)


def parts(kind: Any) -> Iterator[Any]:
    """A type and all types within it."""
    yield kind
    if typing.get_origin(kind) is typing.Literal:
        return
    for each in typing.get_args(kind):
        yield from parts(each)


ALIASES = [value for module in MODULES for value in vars(module).values() if typing.get_origin(value) is not None]


@pytest.mark.parametrize("kind", [*TYPES, *ALIASES], ids=lambda kind: getattr(kind, "__name__", "alias"))
def test_no_type_stands_in_quotes_within_another(kind: Any) -> None:
    """Python 3.10 leaves ``dict[str, "float | None"]`` as it is, where 3.11 reads what is in the quotes."""
    hints = typing.get_type_hints(kind, include_extras=True).values() if typing.is_typeddict(kind) else [kind]
    assert [part for hint in hints for part in parts(hint) if isinstance(part, (str, ForwardRef))] == []


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_type_can_be_checked(kind: Any) -> None:
    """Which finds a type that the reader does not know."""
    if not kind.__required_keys__:
        assert checked({}, kind) == {}
    else:
        with pytest.raises(ValueError, match=r"^1:1$"):
            checked([], kind)
