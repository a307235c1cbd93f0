"""Writes ``docs/documents.md`` and its Chinese twin from the documents' types: ``python -m tools.write_documents``.

Each key's meaning is its line under ``Attributes:`` in the docstring of its type; the Chinese of it is in
``tools/documents_zh_CN.json``.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from lora_trainer.core.documents import Count
from lora_trainer.runs.manifest import VERSION, LogEntry, Manifest, Nothing
from lora_trainer.validation.grid.document import GRID_VERSION, GridDocument, Key, Size

FOLDER = Path(__file__).parent.parent / "docs"
PAGES = {"en": "documents.md", "zh": "documents.zh-CN.md"}
CHINESE = Path(__file__).parent / "documents_zh_CN.json"
DOCUMENTS: tuple[tuple[str, Any, int | None], ...] = (
    ("manifest.json", Manifest, VERSION),
    ("log.jsonl", LogEntry, None),
    ("grid.json", GridDocument, GRID_VERSION),
)
"""File, type and version of each document."""
_TITLE = "Documents of a run"
_INTRO = (
    "What a run's folder holds for programs to read. REST answers the manifest, the log and the grid's document with "
    "the same keys. What a later version adds are new keys: leave alone what you do not know. This page is written by "
    "`python -m tools.write_documents`."
)
_VERSION = "Version {version}."
_NOTE = "A star behind a key: it is not always there."
_HEADS = ("key", "type", "meaning")
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
_LIST, _TABLE, _NULL, _OR, _COUNT = "list: {of}", "table of: {of}", "null", " or ", "whole number, 0 or more"
_PAIR, _KEY, _NOTHING = "list of two whole numbers", "text of letters and digits", "an empty table"


class Words:
    """The page's sentences in one language; one that is missing raises :class:`KeyError`."""

    def __init__(self, language: str) -> None:
        self._known = json.loads(CHINESE.read_text(encoding="utf-8")) if language == "zh" else None

    def __call__(self, text: str, **values: object) -> str:
        """The sentence with its values."""
        found = text if self._known is None else self._known[text]
        return found.format(**values) if values else found


def page(language: str) -> str:
    """The page in one language."""
    t = Words(language)
    lines = [f"# {t(_TITLE)}", "", t(_INTRO), "", t(_NOTE)]
    shown: list[Any] = []
    for file, kind, version in DOCUMENTS:
        about = [t(_VERSION, version=version)] if version is not None else []
        lines += ["", f"## {file}", "", " ".join([t(summary(kind)), *about]), "", *_table(kind, t)]
        for part in _parts(kind):
            if part not in shown:
                shown.append(part)
                lines += ["", f"### {part.__name__}", "", t(summary(part)), "", *_table(part, t)]
    return "\n".join(lines) + "\n"


def _table(kind: Any, t: Words) -> Iterator[str]:
    yield f"| {' | '.join(map(t, _HEADS))} |"
    yield "|---|---|---|"
    meanings = meanings_of(kind)
    for key, hint in typing.get_type_hints(kind, include_extras=True).items():
        star = "" if key in kind.__required_keys__ else "*"
        yield f"| `{key}`{star} | {_words(hint, t)} | {t(meanings[key])} |"


def _parts(kind: Any) -> Iterator[Any]:
    """The tables within a table, each before what is in it."""
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        for part in _tables(hint):
            yield part
            yield from _parts(part)


def _tables(hint: Any) -> Iterator[Any]:
    if typing.is_typeddict(hint):
        yield hint
        return
    for argument in typing.get_args(hint):
        yield from _tables(argument)


def _words(hint: Any, t: Words) -> str:
    """What a value is, in words."""
    named = {Count: _COUNT, Size: _PAIR, Key: _KEY, Nothing: _NOTHING}
    if hint in named:
        return t(named[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin is Annotated:
        return _words(arguments[0], t)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return t(_OR).join(t(_NULL) if each is type(None) else _words(each, t) for each in arguments)
    if origin in (list, dict):
        return t(_LIST if origin is list else _TABLE, of=_words(arguments[-1], t))
    return t(_PLAIN[hint])


# ------------------------------------------------------------------ what the docstrings say
def summary(kind: Any) -> str:
    """What a type is: the first paragraph of its docstring, without what is for programmers."""
    first = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
    return first.partition("; see :")[0].rstrip(".") + "."


def meanings_of(kind: Any) -> dict[str, str]:
    """Key → its meaning, from the type's docstring and those of the types that it extends.

    A ``TypedDict`` does not know what it extends before Python 3.12, so its source is asked.
    """
    classes = _classes(kind.__module__)
    node = classes[kind.__name__]
    bases = [getattr(sys.modules[kind.__module__], base.id) for base in node.bases if isinstance(base, ast.Name)]
    found: dict[str, str] = {}
    for base in filter(typing.is_typeddict, bases):
        found |= meanings_of(base)
    return found | _attributes(ast.get_docstring(node) or "")


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in docstring.partition("Attributes:\n")[2].splitlines():
        key, colon, text = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("     "):
            found[key] = text
        elif found and line.strip():
            found[next(reversed(found))] += f" {line.strip()}"
    return {key: text.replace("``", "`") for key, text in found.items()}


def texts() -> set[str]:
    """Every sentence of the page, in English."""
    kinds = [part for _, kind, _ in DOCUMENTS for part in (kind, *_parts(kind))]
    said = {text for kind in kinds for text in (summary(kind), *meanings_of(kind).values())}
    fixed = {_TITLE, _INTRO, _VERSION, _NOTE, *_HEADS, *_PLAIN.values(), _LIST, _TABLE, _NULL, _OR, _COUNT, _PAIR, _KEY}
    return said | fixed | {_NOTHING}


def main() -> None:
    """Write both pages."""
    for language, name in PAGES.items():
        (FOLDER / name).write_text(page(language), encoding="utf-8")


if __name__ == "__main__":
    main()
