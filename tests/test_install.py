"""What the WebUI runs before it starts, with its ``launch`` module played by the test."""

from __future__ import annotations

import re
import runpy
import sys
import types

import pytest

from tests.helpers import ROOT


class Launch(types.ModuleType):
    """The part of the WebUI's launch module that extensions use."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("launch")
        self.fails = fails
        self.commands: list[str] = []
        self.told: list[str] = []

    def run_pip(self, command: str, description: str) -> None:
        self.commands.append(command)
        self.told.append(description)
        if self.fails:
            raise RuntimeError(f"Couldn't install {description}.\nCommand: pip {command}\nError code: 1")


def run(monkeypatch: pytest.MonkeyPatch, installed: set[str], fails: bool = False) -> Launch:
    launch = Launch(fails)
    monkeypatch.setitem(sys.modules, "launch", launch)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object() if package in installed else None)
    runpy.run_path(str(ROOT / "install.py"))
    return launch


def pinned() -> dict[str, str]:
    """The versions that everything is tested with."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.partition(";")[0].strip().split("==") for line in lines if "==" in line.partition(";")[0])


@pytest.mark.parametrize(
    ("installed", "missing"),
    [
        (set(), ["diffusers"]),
        ({"peft"}, ["diffusers"]),
        ({"diffusers"}, []),
    ],
)
def test_only_what_is_missing_is_installed_alone_and_in_the_version_that_is_tested(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], missing: list[str]
) -> None:
    launch = run(monkeypatch, installed)
    assert launch.commands == [f"install --no-deps {package}=={pinned()[package]}" for package in missing]
    assert all("LoRA Train" in text for text in launch.told)


def test_the_version_is_one_that_works_beside_what_the_webui_pins() -> None:
    """diffusers 0.31 needs a newer torch; pyproject allows it."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest = re.search(r'"diffusers>=([\d.]+)"', project)
    assert lowest is not None
    assert numbers(lowest[1]) <= numbers(pinned()["diffusers"]) < numbers("0.31")


def test_without_a_network_the_webui_starts_all_the_same_and_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = run(monkeypatch, set(), fails=True)
    assert len(launch.commands) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(f"pip install --no-deps diffusers=={pinned()['diffusers']}")


def test_nothing_but_launch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs before the WebUI's own packages are there."""
    before = set(sys.modules)
    run(monkeypatch, {"peft"})
    assert set(sys.modules) - before <= {"launch"}


def test_with_it_there_a_start_does_not_even_wait_for_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "launch", None)  # importing it would raise
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    runpy.run_path(str(ROOT / "install.py"))
