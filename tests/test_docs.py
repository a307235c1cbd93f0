"""The documentation says what is so."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import pytest

from lora_trainer.cli.main import build_parser
from tests.helpers import ROOT
from tools import write_documents
from tools.write_options import FOLDER, PAGES, page

READMES = ("README.md", "README.zh-CN.md")


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_of_options_are_up_to_date(language: str) -> None:
    written = (FOLDER / PAGES[language]).read_text(encoding="utf-8")
    assert written == page(language), "write them anew: python -m tools.write_options"


@pytest.mark.parametrize("language", write_documents.PAGES)
def test_the_pages_of_documents_are_up_to_date(language: str) -> None:
    written = (FOLDER / write_documents.PAGES[language]).read_text(encoding="utf-8")
    assert written == write_documents.page(language), "write them anew: python -m tools.write_documents"


def test_the_chinese_of_documents_is_all_used() -> None:
    known = json.loads(write_documents.CHINESE.read_text(encoding="utf-8"))
    assert list(known) == sorted(write_documents.texts())
    assert all(re.search("[\u4e00-\u9fff]", chinese) for chinese in known.values() if chinese != "null")


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in write_documents.DOCUMENTS])
def test_every_key_that_a_run_has_written_is_documented(name: str, kind: Any) -> None:
    """The kept run was trained and drawn by the program itself."""
    run = ROOT / "tests" / "kept_run" / "runs" / "kept"
    (path,) = run.rglob(name)
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    assert lines
    assert [key for line in lines for key in undocumented(json.loads(line), kind)] == []


def undocumented(value: Any, hint: Any) -> list[str]:
    """Keys of a document that its type does not know."""
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        inner = [key for name in value if name in hints for key in undocumented(value[name], hints[name])]
        return [f"{hint.__name__}.{name}" for name in value if name not in hints] + inner
    found = [each for each in typing.get_args(hint) if each is not type(None)]
    if isinstance(value, list) and found:
        return [key for each in value for key in undocumented(each, found[0])]
    tables = [each for each in found if typing.is_typeddict(each)]
    return undocumented(value, tables[0]) if isinstance(value, dict) and value and tables else []


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

    from lora_trainer.api.routes import PREFIX, mount
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.jobs.service import Jobs

    app = FastAPI()
    mount(app, Jobs(StandaloneHost(ROOT)))
    served = {route.path.removeprefix(PREFIX) for route in app.routes}  # type: ignore[attr-defined]
    named = re.findall(r"`(?:GET|POST) (/[^`?]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert named
    assert set(named) <= served


WEBUIS_OWN = {"Reload UI", "Apply and restart UI", "重载 UI", "应用并重启用户界面"}
_BUTTON = re.compile(r"(?:点|[Pp]ress(?:es)?)\s*\*\*([^*]+)\*\*(?:\s*(?:或|or)\s*\*\*([^*]+)\*\*)?")


@pytest.mark.parametrize("name", READMES)
def test_every_button_that_a_readme_names_is_called_so(name: str) -> None:
    catalogue = json.loads((ROOT / "lora_trainer/localization/zh_CN.json").read_text(encoding="utf-8"))
    labels = set(catalogue.values() if "zh" in name else catalogue) | WEBUIS_OWN
    text = (ROOT / name).read_text(encoding="utf-8")
    named = {label for pair in _BUTTON.findall(text) for label in pair if label}
    assert len(named) >= 8
    assert named <= labels


def test_one_term_for_one_thing_in_chinese() -> None:
    for path in ("README.zh-CN.md", "lora_trainer/localization/zh_CN.json", *map("docs/{}".format, PAGES.values())):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not re.findall("轮数|留出比例|验证比例", text), path


WHILE_IT_TRAINS = {
    "generate a picture": "test_pictures_are_drawn_meanwhile_and_interrupt_is_theirs",
    "press **Pause**": "test_pause_and_resume",
    "press **Stop and keep** or **Stop after this epoch**": "test_stop_and_keep_and_stop_after_this_epoch",
    "choose another checkpoint": "test_another_checkpoint_is_chosen_and_its_own_again",
    "choose another VAE": "test_pause_and_resume",
    "press the WebUI's **Interrupt**": "test_pictures_are_drawn_meanwhile_and_interrupt_is_theirs",
    "press Train again": "test_runs_wait_in_line_while_the_webui_is_killed_and_restarted",
    "press **Reload UI**": "test_a_run_and_its_samples_go_on_through_the_button_reload_ui",
    "press **Apply and restart UI**": "test_a_run_goes_on_after_apply_and_restart",
    "set FP8 weight": "test_fp8_is_set_and_taken_back",
    "run out of disk space": "test_the_disk_is_full_and_has_room_again",
    "close the WebUI, lose power": "test_runs_wait_in_line_while_the_webui_is_killed_and_restarted",
}
"""Each line of the table *While it trains*, and the host test that does it by the page's own buttons."""


def rows(name: str, heading: str) -> list[str]:
    """First cells of the table below a heading."""
    section = (ROOT / name).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]


def test_every_line_of_while_it_trains_is_tried_by_the_pages_buttons() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "webui" / "real").glob("test_*.py"))
    assert rows("README.md", "While it trains") == list(WHILE_IT_TRAINS)
    assert len(rows("README.zh-CN.md", "训练时")) == len(WHILE_IT_TRAINS)
    assert [name for name in WHILE_IT_TRAINS.values() if f"def {name}(" not in tests] == []


def test_every_case_is_tried_by_a_test() -> None:
    """The small inputs that once failed, each named where it is tried."""
    cases = ROOT / "tests" / "cases"
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"[\w-]+", tests))
    assert {path.name for path in cases.iterdir() if path.is_dir()} - named - {"__pycache__"} == set()
