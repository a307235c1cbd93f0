"""The WebUI of the tests is like the real one where our code meets it, and leaves nothing behind.

The first is held against the real one's source, where that is at hand (``WEBUI_ROOT``).
"""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fake_webui import FOLDER, fake_webui
from tests.helpers import ROOT

SOURCE = Path(os.environ.get("WEBUI_ROOT", Path.home() / "stable-diffusion-webui"))
_PLACES = {"modules": "modules", "lora": "extensions-builtin/Lora", "scripts": "scripts"}
_MOVED = {
    ("sd_hijack.py", "FrozenCLIPEmbedderWithCustomWords"): "modules/sd_hijack_clip.py",
    ("sd_hijack.py", "EmbeddingDatabase"): "modules/textual_inversion/textual_inversion.py",
    ("sd_hijack.py", "DirWithTextualInversionEmbeddings"): "modules/textual_inversion/textual_inversion.py",
    ("processing.py", "InterruptedException"): "modules/sd_samplers_common.py",
}
"""Where the real one has what the fake keeps elsewhere."""
_OWN = {"sampled", "noise_of", "load_script", "install", "FrozenCLIPEmbedderWithCustomWords.forward"}
"""What only the fake has, or the WebUI from a base class."""
needs_source = pytest.mark.skipif(
    not (SOURCE / "modules" / "sd_models.py").is_file(), reason=f"NO WEBUI: {SOURCE} has no source to compare with"
)

Functions = dict[str, ast.FunctionDef]


def functions(path: Path) -> Functions:
    """All functions of a file, those of its classes as ``Class.name``."""
    found: Functions = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}": each for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def signature(node: ast.FunctionDef) -> tuple[list[str], list[str], int]:
    """Names of the arguments by place and by name, and how many have a default."""
    arguments = node.args
    by_place = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    return by_place, [each.arg for each in arguments.kwonlyargs], len(arguments.defaults)


def fields(path: Path) -> dict[str, set[str]]:
    """The annotated fields of a file's classes."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return {
        each.name: {n.target.id for n in each.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        for each in classes
    }


def pairs() -> Iterator[tuple[Path, Path]]:
    for folder, place in _PLACES.items():
        for path in sorted((FOLDER / folder).glob("*.py")):
            if (SOURCE / place / path.name).is_file():
                yield path, SOURCE / place / path.name


@needs_source
def test_every_file_of_the_fake_is_one_of_the_webuis() -> None:
    ours = {path.name for folder in _PLACES for path in (FOLDER / folder).glob("*.py")}
    assert ours - {theirs.name for _, theirs in pairs()} == {"__init__.py"}


@needs_source
def test_functions_of_the_fake_have_the_arguments_of_the_webuis() -> None:
    compared, different = 0, []
    for path, theirs in pairs():
        real = functions(theirs)
        for (file, owner), place in _MOVED.items():
            if file == path.name:
                real |= {n: f for n, f in functions(SOURCE / place).items() if n.partition(".")[0] == owner}
        for name, node in functions(path).items():
            last = name.rpartition(".")[2]
            if last.startswith("_") and last != "__init__":
                continue
            if name not in real:
                different += [] if name in _OWN else [f"{path.name} {name}: the WebUI has none"]
                continue
            compared += 1
            if signature(node) != signature(real[name]):
                different.append(f"{path.name} {name}: {signature(node)}, not {signature(real[name])}")
    assert different == []
    assert compared > 80


@needs_source
def test_a_picture_of_the_fake_has_fields_of_the_webuis() -> None:
    ours = fields(FOLDER / "modules" / "processing.py")
    theirs = fields(SOURCE / "modules" / "processing.py")
    renamed = {"scripts", "script_args"}  # properties there
    for name in ("StableDiffusionProcessing", "StableDiffusionProcessingTxt2Img"):
        known = theirs["StableDiffusionProcessing"] | theirs[name] | renamed
        assert ours[name] - known == set(), name


@needs_source
def test_our_code_uses_nothing_of_the_webui_that_it_does_not_have() -> None:
    """Each ``from modules.x import y`` and ``module.name`` of ours, in the files that run in the WebUI."""
    missing, seen = [], 0
    files = [*(ROOT / "lora_trainer/hosts/a1111").glob("*.py"), *(ROOT / "lora_trainer/webui").glob("*.py")]
    for path in (*files, *(ROOT / "scripts").glob("*.py")):
        for module, name in used(ast.parse(path.read_text(encoding="utf-8"))):
            seen += 1
            if name not in names_in(SOURCE / "modules" / f"{module}.py"):
                missing.append(f"{path.name}: {module}.{name}")
    assert missing == []
    assert seen > 60


@functools.cache
def names_in(path: Path) -> set[str]:
    """What a module of the WebUI has by name: defined, assigned or imported at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found


def used(tree: ast.Module) -> set[tuple[str, str]]:
    """Module of ``modules`` and name in it."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {each.name for node in imports if node.module == "modules" for each in node.names}
    found = {
        (node.module.removeprefix("modules."), each.name)
        for node in imports
        if node.module and node.module.startswith("modules.")
        for each in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((node.value.id, node.attr))
    return found


def test_nothing_is_left_behind(tmp_path: Path, other_checkpoint: Path) -> None:
    from lora_trainer.hosts.a1111 import network_views

    layers = [torch.nn.Linear.forward, torch.nn.Conv2d._load_from_state_dict]
    before, path = dict(sys.modules), list(sys.path)
    with fake_webui(tmp_path / "webui", other_checkpoint):
        from lora_trainer.hosts.a1111 import host

        assert host is sys.modules["lora_trainer.hosts.a1111.host"]
        assert torch.nn.Linear.forward is not layers[0]
    gone = {"modules", "networks", "network", "lora_trainer.hosts.a1111.host", "lora_trainer.webui.callbacks"}
    assert not gone & sys.modules.keys()
    assert sys.modules["lora_trainer.hosts.a1111.network_views"] is network_views
    assert not hasattr(sys.modules["lora_trainer.hosts.a1111"], "host")
    assert (sys.path, "FAKE_WEBUI_DATA" in os.environ) == (path, False)
    assert [torch.nn.Linear.forward, torch.nn.Conv2d._load_from_state_dict] == layers
    assert before.keys() <= sys.modules.keys()
