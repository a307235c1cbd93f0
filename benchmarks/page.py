"""What the extension costs the WebUI's start and its page: a real WebUI with the extension and without it, in turn.

``python -m benchmarks.page`` needs a WebUI as the host tests do (``WEBUI_ROOT``), and Chromium. Each side has a data
folder of its own, equal but for ``extensions/lora-train``, and is started once unmeasured, so that what Python compiles
at a first start is there. Every start opens the page in fresh browsers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import CDPSession, Page, sync_playwright

from tests.ui.browser import ARGUMENTS, chromium
from tests.webui.real.webui import PROJECT, PYTHON, ROOT, STARTED, WebUI, copy_extension

RESULTS = Path(__file__).parent / "results"
Figures = dict[str, float]

BUILT = "() => window.executedOnLoaded && Object.keys(window.opts || {}).length && performance.now()"
"""The WebUI has called what waits for its page (script.js), and its settings have come."""
OPENED = "() => document.querySelector('#lora_train_form')?.offsetParent && performance.now()"
COUNTS = """() => ({
    elements: document.querySelectorAll("*").length,
    our_elements: document.querySelectorAll("#tab_lora_train *").length,
    components: gradio_config.components.length,
    dependencies: gradio_config.dependencies.length,
    load_events: gradio_config.dependencies.filter((each) => each.trigger === "load").length,
})"""
QUIET = 0.7
"""Seconds without a request after which a page has come to rest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="starts of each side")
    parser.add_argument("--loads", type=int, default=3, help="times that each start opens the page")
    parser.add_argument("--before", type=Path, help="another working tree of the extension, measured besides")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{time.strftime('%Y-%m-%d')}-page.json")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # people's WebUIs compile a file once, not at each start
    trees = {"without": None, **({"before": args.before} if args.before else {}), "with": PROJECT}
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), trees, args.pairs, args.loads)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({part: report[part] for part in ("cost", "median")}, indent=1))


def measure(folder: Path, trees: dict[str, Path | None], pairs: int, loads: int) -> dict[str, Any]:
    """All starts, and what they come to."""
    load = os.getloadavg()[0]
    before = f" --before {Path(trees['before']).name}" if "before" in trees else ""
    found: dict[str, list[Figures]] = {name: [] for name in trees}
    for number in range(pairs + 1):
        for name, tree in trees.items():
            figures = start(folder / name, tree, loads)
            print(name, json.dumps(figures), flush=True)
            if number:  # the first start compiles
                found[name].append(figures)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.page --pairs {pairs} --loads {loads}{before}",
        "host": "stable-diffusion-webui v1.10.1, CPU, small checkpoint",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "cost": {name: cost(found["without"], starts) for name, starts in found.items() if trees[name]},
        "median": {name: summary(starts) for name, starts in found.items()},
        "starts": found,
    }


class Started(WebUI):
    """A WebUI with one tree's extension or none, on a folder that outlives it."""

    def __init__(self, data: Path, tree: Path | None) -> None:
        self._tree = tree
        super().__init__(data)

    def _prepare(self, settings: dict[str, Any]) -> None:
        if not self.data.exists():
            super()._prepare(settings)

    def _add_extensions(self, folder: Path) -> None:
        folder.mkdir()
        if self._tree:
            copy_extension(self._tree, folder)

    def until(self, text: str) -> None:  # type: ignore[override]
        """Wait until the process has printed something."""
        while text not in self.log():
            if self._process.poll() is not None:
                raise RuntimeError(f"the WebUI did not start:\n{self.log()[-3000:]}")
            time.sleep(0.02)


def start(data: Path, tree: Path | None, loads: int) -> Figures:
    """Start the WebUI, open its page, and end it; the figures of it."""
    figures = installer(tree) if tree else {}
    began = time.monotonic()
    webui = Started(data, tree)
    try:
        webui.until(STARTED)
        figures["start"] = time.monotonic() - began
        webui.until("Model loaded in")  # by another thread, with processor seconds of its own
        figures["start_processor"] = processor(webui)
        figures |= profile(webui.get("/internal/profile-startup")["records"])
        figures["page_bytes"] = html_bytes(webui)
        figures |= medians([page(webui, opens=bool(tree)) for _ in range(loads)])
    finally:
        webui.close()
    return {name: round(value, 4) for name, value in figures.items()}


def installer(tree: Path) -> Figures:
    """What ``install.py`` takes, which the WebUI runs before each start (and the tests leave out)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with subprocess.Popen([PYTHON, tree / "install.py"], env=environment) as process:
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
    return {"installer": time.monotonic() - began, "installer_processor": used.ru_utime + used.ru_stime}


def html_bytes(webui: WebUI) -> int:
    """Length of the page's HTML, which has all components in it."""
    with urllib.request.urlopen(webui.url) as answer:
        return len(answer.read())


def processor(webui: WebUI) -> float:
    """Seconds of the processor that the WebUI has used, all threads together: what counts on a busy machine."""
    used = psutil.Process(webui.pid).cpu_times()
    return used.user + used.system


def profile(records: Figures) -> Figures:
    """The WebUI's own clock of its start, from its imports to its API; the parts that an extension adds to."""
    parts = ["list extensions", "load scripts", "scripts before_ui_callback", "create ui", "gradio launch", "add APIs"]
    parts.append("app_started_callback")
    whole = sum(seconds for name, seconds in records.items() if "/" not in name)
    ours = sum(seconds for name, seconds in records.items() if "lora_train" in name)
    return {"timer": whole, "timer_ours": ours, **{f"timer_{name}": records.get(name, 0.0) for name in parts}}


def page(webui: WebUI, opens: bool) -> Figures:
    """One opening of the page by a browser that has nothing of it; ``opens`` our tab besides."""
    server = processor(webui)
    with browser_page() as shown:
        clock = shown.context.new_cdp_session(shown)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        shown.goto(f"{webui.url}/?__theme=light", wait_until="commit")
        figures = {"page_built": shown.wait_for_function(BUILT).json_value() / 1000}
        rest(shown)
        figures |= {f"page_{name}": seconds for name, seconds in busy(clock).items()}
        figures["page_server_processor"] = processor(webui) - server
        figures |= shown.evaluate(COUNTS)
        if opens:
            before = busy(clock)
            began = shown.evaluate("performance.now()")
            shown.locator("#tabs > .tab-nav button", has_text="LoRA Train").click()
            figures["tab_opened"] = (shown.wait_for_function(OPENED).json_value() - began) / 1000
            shown.wait_for_timeout(1000 * QUIET)
            figures |= {f"tab_{name}": seconds - before[name] for name, seconds in busy(clock).items()}
    return figures


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a new browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def rest(shown: Page) -> None:
    """Wait until nothing has been asked of the server for a while."""
    last = {"asked": time.monotonic()}
    for event in ("request", "requestfinished"):
        shown.on(event, lambda _: last.update(asked=time.monotonic()))
    while time.monotonic() - last["asked"] < QUIET:
        shown.wait_for_timeout(50)


def busy(clock: CDPSession) -> Figures:
    """Seconds of the processor that the page's own thread has used, and how many of them in scripts and in layout."""
    found = {each["name"]: each["value"] for each in clock.send("Performance.getMetrics")["metrics"]}
    layout = found["LayoutDuration"] + found["RecalcStyleDuration"]
    return {"busy": found["TaskDuration"], "scripts": found["ScriptDuration"], "layout": layout}


def medians(list_: list[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(each[name] for each in list_) for name in list_[0]}


def summary(starts: list[Figures]) -> dict[str, dict[str, float]]:
    """Median, smallest and largest of each figure."""
    values = {name: [each[name] for each in starts] for name in starts[0]}
    return {name: {"median": statistics.median(of), "min": min(of), "max": max(of)} for name, of in values.items()}


def cost(without: list[Figures], starts: list[Figures]) -> dict[str, dict[str, float]]:
    """By how much a side is above the one without the extension, start by start beside each other."""
    found = {}
    for name in starts[0]:
        each = [ours[name] - theirs.get(name, 0.0) for ours, theirs in zip(starts, without, strict=True)]
        found[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return {name: {k: round(v, 4) for k, v in of.items()} for name, of in found.items()}


if __name__ == "__main__":
    main()
