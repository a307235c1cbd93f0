"""The walls of the house: imports run downwards only, and what is heavy or belongs to a host stays in its room.

All imports count: those within functions and those for types, too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

FLOORS = (
    ("core",),
    ("config", "model"),
    ("dataset", "network.blocks", "network.types"),
    ("network", "diffusion"),
    ("network.ops", "hosts", "runs"),
    ("hosts.a1111", "hosts.standalone", "training", "validation.metrics"),
    ("validation.grid",),
    ("validation", "validation.blocks"),
    ("jobs",),
    ("api", "demo", "webui", "ui.widgets"),
    ("ui.html",),
    ("ui.panels",),
    ("ui",),
    ("cli",),
    ("",),
)
"""From the ground up: a room knows rooms below its own floor, and none beside it. ``""`` is the package itself."""
LIGHT = (
    "api.routes",
    "cli.main",
    "config.presets",
    "config.sweep",
    "core.documents",
    "core.i18n",
    "hosts.base",
    "jobs.blocks",
    "jobs.service",
    "network.blocks.stack",
    "network.blocks.weights",
    "runs.saved_files",
    "runs.store",
    "training.advice",
    "ui.tab",
    "webui.cell_tags",
)
"""What a start of the WebUI or of the command line imports."""
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
PACKAGE = ROOT / "lora_trainer"


def name_of(path: Path) -> str:
    """``jobs.service`` of a file, ``jobs`` of a package's ``__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=1)
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The folder that a module stands in; a package's ``__init__.py`` stands in its own."""
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


def imports_of(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=1)
def arrows() -> dict[str, set[str]]:
    """Module → the modules of the package that it imports."""
    return {module: {own for name in imports_of(path) if (own := _own(name))} for module, path in modules().items()}


def _own(name: str) -> str:
    """The module that an imported name of this package is, or stands in; ``""`` for all else."""
    package, _, rest = name.partition(".")
    if package != "lora_trainer" or not rest:
        return ""
    return rest if rest in modules() else rest.rpartition(".")[0]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in modules()} == {room for rooms in FLOORS for room in rooms}


def test_imports_run_downwards_only() -> None:
    upward = [
        f"{module} → {imported}"
        for module, found in arrows().items()
        for imported in sorted(found)
        if room_of(module) != room_of(imported) and floor_of(room_of(module)) <= floor_of(room_of(imported))
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Modules without imports are taken away until none is left; those of a circle stay."""
    left = {module: set(found) - {module} for module, found in arrows().items()}
    while ground := [module for module, found in left.items() if not found]:
        for module in ground:
            del left[module]
        for found in left.values():
            found.difference_update(ground)
    assert sorted(left) == []


def test_the_top_of_the_package_is_empty_but_for_its_doors() -> None:
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize(
    ("foreign", "rooms"),
    [
        ("modules", ("hosts.a1111", "webui")),
        ("gradio", ("ui", "ui.panels", "ui.widgets", "webui")),
        ("fastapi", ("api", "ui")),
        ("diffusers", ("hosts.standalone", "model", "training")),
        ("transformers", ("hosts.standalone", "model", "validation.metrics")),
    ],
)
def test_only_these_rooms_know_it(foreign: str, rooms: tuple[str, ...]) -> None:
    known = {
        room_of(module)
        for module, path in modules().items()
        if any(name.split(".")[0] == foreign for name in imports_of(path))
    }
    assert known <= set(rooms)
    assert known, f"nobody knows {foreign}: this wall stands for nothing"


@pytest.mark.parametrize("module", LIGHT)
def test_a_start_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, lora_trainer.{module}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == []
