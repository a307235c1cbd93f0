"""The page's style sheet: one table of colours, no rule twice, none for what is nowhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui import standalone
from lora_trainer.ui.html.grid import KINDS, LINES
from lora_trainer.ui.html.lora_files import STATES
from lora_trainer.ui.html.run import STATE_NAMES
from lora_trainer.ui.tab import Tab
from tests.helpers import CHECKPOINT, ROOT

COLOUR = re.compile(
    r"#[0-9a-f]{3,8}\b|\b(?:rgb|hsl)a?\(|(?<![\w-])(?:white|black|red|green|blue|gr[ae]y|orange)(?![\w-])", re.I
)
MADE = {f"lt-{each}" for each in (*STATE_NAMES, *STATES, *KINDS.values())}
"""Classes that the code puts together: of states, notices and the lines of charts."""
LINE = {f"lt-line-{number}" for number in range(LINES)}

Rule = tuple[tuple[str, ...], str, str]
"""The @rules around it, its selectors, its declarations."""


def rules(text: str) -> list[Rule]:
    """All rules in their order."""
    quoted = lambda found: found[0].translate({ord(c): "_" for c in "{};"})  # noqa: E731
    text = re.sub(r'"[^"]*"', quoted, re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))
    around, found, since = [], [], 0
    for mark in re.finditer(r"[{}]", text):
        head = " ".join(text[since : mark.start()].split())
        if mark[0] == "{":
            around.append(head)
        else:
            name = around.pop()
            if not name.startswith("@"):
                found.append((tuple(around), name, head))
        since = mark.end()
    assert around == []
    return found


def selectors(rule: Rule) -> list[str]:
    """Each of a rule's selectors; commas within brackets divide none."""
    return [each.strip() for each in re.split(r",(?![^()]*\))", rule[1])]


@pytest.fixture(scope="module")
def sheet() -> list[Rule]:
    return rules(standalone.style())


def test_colours_stand_in_one_table(sheet: list[Rule]) -> None:
    tables = [name for _, name, body in sheet if COLOUR.search(re.sub(r"var\([^()]*\)|url\([^()]*\)", "", body))]
    assert tables == [":root", ".dark"]
    named = re.findall(r"(--lt-[\w-]+):", sheet[0][2])
    assert set(re.findall(r"(--lt-[\w-]+):", sheet[1][2])) <= set(named)
    used = " ".join(body for _, _, body in sheet[2:])
    assert [name for name in named if not re.search(rf"var\({name}[,)]", used)] == []
    assert {f"--{name}" for name in LINE} <= set(named)


def test_a_colour_outside_the_table_is_found() -> None:
    other = rules("a { color: var(--x, red) } @media (a) { b, c:is(d, e) { background: rgba(0, 0, 0, 1) } }")
    assert [bool(COLOUR.search(re.sub(r"var\([^()]*\)", "", body))) for _, _, body in other] == [False, True]
    assert (other[1][0], selectors(other[1])) == (("@media (a)",), ["b", "c:is(d, e)"])


def test_no_selector_is_declared_twice(sheet: list[Rule]) -> None:
    counts = Counter((rule[0], selector) for rule in sheet for selector in selectors(rule))
    assert [each for each, count in counts.items() if count > 1] == []


def test_every_rule_is_about_something_that_the_page_has(sheet: list[Rule], tmp_path: Path) -> None:
    folders = ((ROOT / "lora_trainer", "**/*.py"), (ROOT / "javascript", "*.js"), (ROOT / "scripts", "*.py"))
    code = "".join(path.read_text(encoding="utf-8") for folder, glob in folders for path in folder.glob(glob))
    page = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))).blocks
    ids = {each["props"].get("elem_id") for each in page.get_config_file()["components"]}
    about = " ".join(name for _, name, _ in sheet)
    classes = set(re.findall(r"\.(lt-[\w-]+)", about)) - MADE - LINE
    assert [name for name in sorted(classes) if not re.search(rf"{name}(?![\w-])", code)] == []
    assert set(re.findall(r"#(lora_train[\w-]*)", about)) - ids == set()
