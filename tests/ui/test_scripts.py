"""The page's scripts as the WebUI loads them: one file after the other, all in one scope."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.helpers import ROOT
from tests.ui.browser import ARGUMENTS, NO_BROWSER, chromium

if not chromium():
    warnings.warn(NO_BROWSER, stacklevel=1)
    pytest.skip(NO_BROWSER, allow_module_level=True)

FILES = sorted((ROOT / "javascript").glob("*.js"))
BODY = """
<div id="lora_train" hidden><button id="lora_train_opened"></button><button id="lora_train_poll"></button></div>
"""
COUNT = """() => {
    window.pressed = {};
    document.addEventListener("click", ({ target }) => { pressed[target.id] = (pressed[target.id] || 0) + 1; });
}"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """An empty page without our scripts."""
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto("about:blank")
    opened.evaluate(COUNT)
    yield opened
    assert problems == []


def load(page: Page) -> None:
    for path in FILES:
        page.add_script_tag(content=path.read_text(encoding="utf-8"))


def test_they_share_one_name_and_leave_no_other_behind(page: Page) -> None:
    names = "Object.getOwnPropertyNames(window)"
    before = set(page.evaluate(names))
    load(page)
    assert set(page.evaluate(names)) - before == {"loraTrain"}
    # a name of the scripts' common scope is no property of the window
    declared = [name for path in FILES for name in re.findall(r"^(?:const|let|class)\s+(\w+)", path.read_text(), re.M)]
    assert declared == []


def test_the_first_file_makes_what_the_others_use() -> None:
    assert FILES[0].name == "lora_train.js"
    assert all(path.read_text(encoding="utf-8").count("loraTrain.define(") == 1 for path in FILES[1:])


def test_all_parts_are_set_up_and_each_once(page: Page) -> None:
    """Also where the extension is installed twice."""
    page.evaluate("window.setUps = []")
    page.add_script_tag(content=FILES[0].read_text(encoding="utf-8"))
    page.evaluate(
        """() => {
            const { define } = loraTrain;
            loraTrain.define = (name, needs, setUp) => define(name, needs, (parts) => {
                setUps.push(name);
                return setUp(parts);
            });
        }"""
    )
    for _ in range(2):
        load(page)
    set_up = page.evaluate("setUps")
    named = [re.search(r'loraTrain\.define\("(\w+)"', path.read_text(encoding="utf-8")) for path in FILES[1:]]
    assert sorted(set_up) == sorted(found[1] for found in named if found)


def test_a_part_waits_for_those_that_it_needs(page: Page) -> None:
    page.add_script_tag(content=FILES[0].read_text(encoding="utf-8"))
    page.evaluate(
        """() => {
            window.order = [];
            loraTrain.define("last", ["first", "second"], ({ first }) => { order.push("last", first.told); });
            loraTrain.define("second", [], () => { order.push("second"); });
            loraTrain.define("first", ["second"], () => { order.push("first"); return { told: "by first" }; });
            loraTrain.define("never", ["nowhere"], () => { order.push("never"); });
        }"""
    )
    assert page.evaluate("order") == ["second", "first", "last", "by first"]


@pytest.mark.parametrize("first", ["scripts", "tab"])
def test_the_server_is_asked_when_the_tab_is_seen_and_not_before(page: Page, first: str) -> None:
    """Whichever of them is there first: gradio makes the tab long after the scripts were loaded."""
    put_in = f"document.body.insertAdjacentHTML('beforeend', {json.dumps(BODY)})"
    for step in (first, "tab" if first == "scripts" else "scripts"):
        if step == "scripts":
            load(page)
        else:
            page.evaluate(put_in)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("pressed") == {}
    page.evaluate("document.querySelector('#lora_train').hidden = false")
    page.wait_for_function("pressed.lora_train_poll > 1")  # once when it is seen, then by the clock
    assert page.evaluate("pressed.lora_train_opened") == 1


def test_what_changes_within_the_tab_is_looked_at_once(page: Page) -> None:
    load(page)
    page.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(BODY)})")
    page.evaluate("window.looks = 0")
    page.evaluate("loraTrain.define('looks', [], ({ whenChanged }) => whenChanged(() => { looks += 1; }))")
    assert page.evaluate("looks") == 1  # at once
    page.evaluate("for (let i = 0; i < 50; i += 1) document.querySelector('#lora_train').append(String(i))")
    page.wait_for_function("looks === 2")


def test_files_that_comments_name_are_there() -> None:
    named = {ROOT / "lora_trainer": r"\b(ui/\w+(?:/\w+)*\.py)\b", ROOT / "javascript": r"\b(lora_train\w*\.js)\b"}
    readers = [*FILES, *(ROOT / "lora_trainer" / "ui").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    found = {folder / name for path in readers for folder, pattern in named.items()
             for name in re.findall(pattern, path.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(found) > 8
    assert [path for path in sorted(found) if not path.is_file()] == []
