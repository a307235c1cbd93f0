"""The documentation says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_trainer.cli import build_parser
from tools.write_options import FOLDER, PAGES, page

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_of_options_are_up_to_date(language: str) -> None:
    written = (FOLDER / PAGES[language]).read_text(encoding="utf-8")
    assert written == page(language), "write them anew: python -m tools.write_options"


@pytest.mark.parametrize("name", READMES)
def test_every_file_that_a_readme_links_to_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert not missing


@pytest.mark.parametrize("name", READMES)
def test_every_command_that_a_readme_shows_is_one(name: str) -> None:
    shown = re.findall(r"^lora-trainer ([^#\n]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) >= 5
    for line in shown:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        if "--help" in words:
            with pytest.raises(SystemExit) as ended:
                build_parser().parse_args(words)
            assert ended.value.code == 0
        else:
            build_parser().parse_args(words)


@pytest.mark.parametrize("name", READMES)
def test_every_route_that_a_readme_names_is_served(name: str) -> None:
    from fastapi import FastAPI

    from lora_trainer.api import PREFIX, mount
    from lora_trainer.hosts.standalone import StandaloneHost
    from lora_trainer.jobs import Jobs

    app = FastAPI()
    mount(app, Jobs(StandaloneHost(ROOT)))
    served = {route.path.removeprefix(PREFIX) for route in app.routes}  # type: ignore[attr-defined]
    named = re.findall(r"`(?:GET|POST) (/[^`?]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert named
    assert set(named) <= served
