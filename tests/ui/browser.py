"""Headless Chromium for the tests of the page."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as TooLate

from tests.helpers import LIMIT

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
]
NO_BROWSER = "NO BROWSER: the tests of the page are skipped; install chromium"
READY = "() => typeof executedOnLoaded === 'undefined' || (executedOnLoaded && Object.keys(opts).length > 0)"
"""The WebUI has called what waits for its page (script.js) and knows its settings: before, it may miss a press."""
FILLED = "() => window.loraTrain?.filled && document.querySelector('#lora_train_base')?.textContent.trim()"
STILL = """() => {
    const parts = [...document.querySelectorAll("#lora_train, #lora_train [id], #lora_train_grid .lt-v-table tr")];
    const now = parts.map((each) => [each.offsetTop, each.offsetHeight]).join();
    const images = [...document.querySelectorAll("#lora_train_grid img:not([loading=lazy])")];
    const isWaiting = images.some((each) => !each.complete);
    const known = window.ltStill;
    window.ltStill = { now, frames: known?.now === now && !isWaiting ? known.frames + 1 : 0 };
    return window.ltStill.frames >= 12;
}"""
"""Twelve frames with everything in its place; as many as there are, however long they take."""
MEASURE = """elements => elements.map(element => {
    const {x, y, width, height} = element.getBoundingClientRect();
    return {x, y, width, height};
})"""
_WINDOWS = Path("C:/Program Files/Google/Chrome/Application/chrome.exe")


def chromium() -> str:
    """Path of a Chromium or Chrome, or an empty text."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), "")
    return found or (str(_WINDOWS) if sys.platform == "win32" and _WINDOWS.is_file() else "")


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser for as long as the block lasts; only one at a time in a process."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def open_page(
    url: str, width: int = 1400, height: int = 1000, *, dark: bool = False, browser: Browser | None = None
) -> Iterator[Page]:
    """A page of a person's own at ``url``, in the browser or in one for it alone."""
    with nullcontext(browser) if browser else launched() as used:
        context = used.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        page.set_default_timeout(LIMIT * 1000)
        page.goto(f"{url}/?__theme={'dark' if dark else 'light'}", wait_until="domcontentloaded")
        page.wait_for_selector("#lora_train", state="attached")
        page.wait_for_function(READY)
        wait_until_still(page)
        yield page
        context.close()


def wait_for_tab(page: Page) -> None:
    """Until the tab, which is in view, has got what is in it: its lists are filled when it is seen, not before."""
    page.wait_for_function(FILLED)


def wait_until_still(page: Page) -> None:
    """Until nothing moves any more: of a press on something that moves away before the release, no click comes."""
    page.evaluate("window.ltStill = null")
    page.wait_for_function(STILL, polling="raf")


def field(page: Page, key: str) -> Locator:
    """Where a setting is typed, e.g. ``network.rank``."""
    return page.locator(f"#lora_train_{key.replace('.', '_')}").locator("input, textarea").first


def part(page: Page, selector: str) -> Locator:
    """Gradio gives an HTML block's name to its frame and its content; this is the frame."""
    return page.locator(selector).first


def fill(page: Page, **values: object) -> None:
    """Type settings, with two underscores for the dot: ``network__rank=8``."""
    for key, value in values.items():
        widget = field(page, key.replace("__", "."))
        widget.fill(str(value))
        widget.blur()


def choose(page: Page, name: str, value: str) -> None:
    """Choose from a list of ours."""
    pick(page.locator(f"#lora_train_{name}"), f"li[data-value='{value}']")


def choose_text(box: Locator, text: str) -> None:
    """Choose the first entry with a text from one of gradio's lists."""
    pick(box.first, f"ul.options li:has-text('{text}')")


def pick(box: Locator, entry: str) -> None:
    """Open a list and press an entry; again, as people do, where the page filled the list anew and so closed it."""
    for _ in range(12):
        box.locator("input").first.click()
        with suppress(TooLate):
            box.locator(entry).first.click(timeout=5_000)
            return
        box.locator("input").first.blur()
    raise AssertionError(f"the list has no {entry}: {box.inner_text()}")


def boxes(*elements: Locator) -> list[dict[str, float]]:
    """Where elements stand in the window, all at one moment: the page may scroll or fill between two questions.

    Raises:
        AssertionError: one of them is not shown.
    """
    found = elements[0].page.evaluate(MEASURE, [element.element_handle() for element in elements])
    assert all(box["width"] or box["height"] for box in found), found
    return list(found)
