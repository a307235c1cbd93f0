"""The README's table *While it trains*, tried by the page's own buttons; tests/test_docs.py knows each line's test."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.torch import load_file, save_file

from tests.helpers import LIMIT, temporary_files, until
from tests.ui.browser import NO_BROWSER, choose, choose_text, chromium, fill, open_page, part
from tests.webui.real.test_webui import CLEAN, WEIGHTS, tensors
from tests.webui.real.test_webui_page import open_tab
from tests.webui.real.webui import ASSETS, WebUI

pytestmark = pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
expect.set_options(timeout=LIMIT * 1000)

EPOCHS = 24


class OnSmallDisk(WebUI):
    """Its runs and LoRA files are on a disk of their own, of 64 MB, that exists for this process alone."""

    SCRIPT = (
        'mkdir -p "$1" "$2" "$3" && mount -t tmpfs -o size=64m tmpfs "$1" && mkdir "$1/runs" "$1/loras" && '
        'mount --bind "$1/runs" "$2" && mount --bind "$1/loras" "$3" && shift 3 && exec "$@"'
    )

    def _start(self) -> None:
        places = [self.data / "disk", self.data / "lora-train", self.data / "models" / "Lora"]
        apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", self.SCRIPT, "sh", *map(str, places)]
        self._command = [*apart, *self._command]
        super()._start()

    def seen(self, path: str | Path) -> Path:
        """A path of the process, as it is seen from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def filler(self) -> Path:
        """A person's own big file."""
        return self.seen(self.data / "disk" / "film.mkv")

    def fill_up(self) -> None:
        """Leave no byte."""
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass


def can_mount() -> bool:
    """Whether a process may have a disk of its own here."""
    test = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(test, capture_output=True, check=False).returncode == 0


class WithVAE(WebUI):
    """With the VAE at the top of the page, and one to choose."""

    def _prepare(self, settings: dict[str, Any]) -> None:
        super()._prepare({"quicksettings_list": ["sd_model_checkpoint", "sd_vae"], **settings})
        prefix = "first_stage_model."
        weights = load_file(ASSETS / "small-sd1.safetensors")
        vae = {k.removeprefix(prefix): v * 1.05 for k, v in weights.items() if k.startswith(prefix)}
        folder = self.data / "models" / "VAE"
        folder.mkdir()
        save_file(vae, folder / "darker.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with WithVAE(tmp_path_factory.mktemp("while-it-trains")) as running:
        yield running


@pytest.fixture(scope="module")
def reference(webui: WebUI, pictures: Path) -> dict[str, bytes]:
    """What a run that nobody disturbs learns; the run ``reference``."""
    with opened(webui) as page:
        train(page, "reference", pictures)
        expect(status(page)).to_contain_text("Done")
    return tensors(manifest(webui, "reference"))


@pytest.fixture
def page(webui: WebUI, reference: dict[str, bytes]) -> Iterator[Page]:
    """The tab, with the settings of the reference filled in; every run is stopped in the end."""
    with opened(webui) as page:
        choose(page, "run", "reference")
        expect(status(page)).to_contain_text("reference")
        press(page, "Use its settings")
        expect(part(page, "#lora_train_feedback")).to_contain_text("The settings of reference")
        yield page
    for run in webui.get("/lora-train/v1/runs"):
        if run["state"] in ("queued", "running") or run.get("waits"):
            webui.post(f"/lora-train/v1/runs/{run['name']}/stop", {"save": False})
            webui.in_state(run["name"], "stopped")


@contextlib.contextmanager
def opened(webui: WebUI) -> Iterator[Page]:
    with open_page(webui.url) as page:
        open_tab(page)
        yield page


def train(page: Page, name: str, pictures: Path | None = None, epochs: int = 0) -> None:
    """Fill in the form, or what is different in it, and press Train."""
    fill(page, name=name)
    if pictures:
        settings = {"data__folder": pictures, "data__resolution": 128, "data__trigger": "zorp"}
        fill(page, **settings, training__batch_size=2, training__epochs=EPOCHS, save__every_epochs=EPOCHS // 2)
    if epochs:
        fill(page, training__epochs=epochs)
    page.locator("#lora_train_start").click()
    expect(status(page)).to_contain_text(name)


def press(page: Page, button: str) -> None:
    page.locator("#lora_train_buttons").get_by_role("button", name=button, exact=True).click()


def status(page: Page) -> Any:
    return part(page, "#lora_train_status")


def manifest(webui: WebUI, name: str) -> dict[str, Any]:
    return webui.get(f"/lora-train/v1/runs/{name}")


def goes_on(webui: WebUI, name: str) -> None:
    """Wait for steps that come after this moment."""
    webui.in_state(name, "running")
    webui.until(name, manifest(webui, name)["step"] + 3)


def at_the_top(page: Page, setting: str, value: str) -> None:
    """Choose from a list at the top of the WebUI's page."""
    choose_text(page.locator(f"#setting_{setting}"), value)


def to_tab(page: Page, name: str) -> None:
    page.locator("#tabs > .tab-nav button", has_text=name).first.click()


def learned_the_same(webui: WebUI, name: str, reference: dict[str, bytes]) -> None:
    assert tensors(webui.in_state(name, "done", seconds=600)) == reference


def test_pause_and_resume(webui: WebUI, page: Page, reference: dict[str, bytes]) -> None:
    """And another VAE is chosen meanwhile, which changes nothing for the run."""
    train(page, "paused")
    webui.until("paused", 3)
    at_the_top(page, "sd_vae", "darker")
    until(lambda: "darker" in webui.probe("from modules import sd_vae; result = str(sd_vae.loaded_vae_file)"))
    press(page, "Pause")
    expect(status(page)).to_contain_text("Paused")
    found = manifest(webui, "paused")
    assert (found["state"], found["message"], found["files"]) == ("paused", "", [])
    assert 3 <= found["step"] < found["steps"]
    press(page, "Resume")
    expect(status(page)).to_contain_text("Done")
    learned_the_same(webui, "paused", reference)
    at_the_top(page, "sd_vae", "Automatic")
    until(lambda: webui.probe("from modules import sd_vae; result = sd_vae.loaded_vae_file is None"))


def test_stop_and_keep_and_stop_after_this_epoch(webui: WebUI, page: Page, reference: dict[str, bytes]) -> None:
    train(page, "stopped")
    webui.until("stopped", 3)
    press(page, "Stop and keep")
    expect(status(page)).to_contain_text("Stopped")
    first = manifest(webui, "stopped")
    kept = Path(first["files"][-1]["path"])
    assert load_file(kept)
    assert first["files"][-1]["step"] == first["step"] < first["steps"]
    press(page, "Resume")
    goes_on(webui, "stopped")
    press(page, "Stop after this epoch")
    expect(status(page)).to_contain_text("Stopped")
    second = manifest(webui, "stopped")
    per_epoch = second["steps"] // EPOCHS
    assert first["step"] < second["step"] < second["steps"]
    assert second["step"] % per_epoch == 0
    assert second["files"][-1]["step"] == second["step"]
    assert load_file(second["files"][-1]["path"])
    press(page, "Resume")
    expect(status(page)).to_contain_text("Done")
    learned_the_same(webui, "stopped", reference)
    assert kept.is_file()


def drawn(page: Page, steps: int) -> Image.Image:
    """Press Generate; returns the picture."""
    gallery = page.locator("#txt2img_gallery img")
    before = gallery.first.get_attribute("src") if gallery.count() else None
    page.locator("#txt2img_generate").click()
    if steps > 100:
        page.locator("#txt2img_interrupt").click()  # is there while a picture is drawn
    page.wait_for_function(
        "before => { const image = gradioApp().querySelector('#txt2img_gallery img');"
        " return image && image.getAttribute('src') !== before; }",
        arg=before,
    )
    source = gallery.first.evaluate("image => image.src")
    return Image.open(io.BytesIO(page.context.request.get(source.split("?")[0]).body())).convert("RGB")


def test_pictures_are_drawn_meanwhile_and_interrupt_is_theirs(
    webui: WebUI, page: Page, reference: dict[str, bytes]
) -> None:
    def settings(steps: int) -> None:
        for name, value in (("seed", 7), ("width", 128), ("height", 128), ("steps", steps)):
            widget = page.locator(f"#txt2img_{name} input[type=number]").first
            widget.fill(str(value))
            widget.blur()

    to_tab(page, "txt2img")
    page.locator("#txt2img_prompt textarea").fill("red circle")
    settings(6)
    alone = drawn(page, 6)
    to_tab(page, "LoRA Train")
    train(page, "beside")
    webui.until("beside", 3)
    to_tab(page, "txt2img")
    assert drawn(page, 6).tobytes() == alone.tobytes()
    assert manifest(webui, "beside")["state"] == "running"
    expect(page.locator("#txt2img_interrupt")).to_be_hidden()
    settings(150)
    drawn(page, 150)
    goes_on(webui, "beside")
    learned_the_same(webui, "beside", reference)


def test_another_checkpoint_is_chosen_and_its_own_again(webui: WebUI, page: Page, reference: dict[str, bytes]) -> None:
    train(page, "switched")
    webui.until("switched", 3)
    at_the_top(page, "sd_model_checkpoint", "other")
    expect(status(page)).to_contain_text("Its checkpoint is not loaded")
    found = manifest(webui, "switched")
    assert found["state"] == "paused"
    assert 3 <= found["step"] < found["steps"]
    at_the_top(page, "sd_model_checkpoint", "small")
    expect(status(page)).to_contain_text("Done")
    learned_the_same(webui, "switched", reference)


def test_fp8_is_set_and_taken_back(webui: WebUI, page: Page, reference: dict[str, bytes]) -> None:
    def set_fp8(value: str) -> None:
        to_tab(page, "Settings")
        page.locator("#settings > .tab-nav button", has_text="Optimizations").click()
        page.locator("#setting_fp8_storage").get_by_label(value, exact=True).check()
        page.locator("#settings_submit").click()

    train(page, "fp8")
    webui.until("fp8", 3)
    set_fp8("Enable")
    to_tab(page, "LoRA Train")
    expect(status(page)).to_contain_text("FP8")
    assert manifest(webui, "fp8")["state"] == "paused"
    set_fp8("Disable")
    to_tab(page, "LoRA Train")
    learned_the_same(webui, "fp8", reference)


@contextlib.contextmanager
def asked_all_the_time(webui: WebUI) -> Iterator[None]:
    """As by many open pages: a request in every moment of its start."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.002):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{webui.url}/internal/ping", timeout=60) as answer,
            ):
                answer.read()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


def test_runs_wait_in_line_while_the_webui_is_killed_and_restarted(
    webui: WebUI, page: Page, reference: dict[str, bytes]
) -> None:
    """With this page open all the time, asking once a second; the killed run goes on when Resume is pressed."""

    def line() -> list[str]:
        runs = [run for run in webui.get("/lora-train/v1/runs") if run["state"] == "queued"]
        return [run["name"] for run in sorted(runs, key=lambda run: run.get("place") or run["created"])]

    train(page, "cut")
    webui.until("cut", 3)
    for name in ("second", "third", "fourth"):
        train(page, name)
        expect(status(page)).to_contain_text("Waiting")
    expect(status(page)).to_contain_text("3 before it")
    for button, order in (
        ("Train it next", ["fourth", "second", "third"]),
        ("Train it later", ["second", "fourth", "third"]),
        ("Train it later", ["second", "third", "fourth"]),
        ("Train it earlier", ["second", "fourth", "third"]),
    ):
        press(page, button)
        until(lambda order=order: line() == order)
    with asked_all_the_time(webui):
        webui.kill_and_start()
    webui.in_state("second", "running")
    until(lambda: line() == ["fourth", "third"])  # they come back one after the other, the first trains already
    expect(status(page)).to_contain_text("fourth")
    expect(status(page)).to_contain_text("1 before it")
    for name in ("second", "fourth", "third"):
        choose(page, "run", name)
        expect(status(page)).to_contain_text(name)
        press(page, "Stop and keep")
        webui.in_state(name, "stopped")
    choose(page, "run", "cut")
    expect(status(page)).to_contain_text("Stopped")
    press(page, "Resume")
    expect(status(page)).to_contain_text("Done")
    learned_the_same(webui, "cut", reference)


@pytest.mark.skipif(not can_mount(), reason="NO DISK: no process may mount a disk of its own here")
def test_the_disk_is_full_and_has_room_again(tmp_path: Path, pictures: Path, reference: dict[str, bytes]) -> None:
    with OnSmallDisk(tmp_path) as webui, opened(webui) as page:
        webui.probe(CLEAN)
        weights = webui.probe(WEIGHTS)
        train(page, "cramped", pictures)
        webui.until("cramped", 3)
        webui.fill_up()
        expect(status(page)).to_contain_text("The disk is full")
        expect(status(page)).to_contain_text("Failed")
        expect(status(page)).to_contain_text(str(webui.data))
        for folder in ("lora-train", "models/Lora"):
            assert temporary_files(webui.seen(webui.data / folder)) == []
        assert webui.probe(WEIGHTS) == weights
        webui.filler.unlink()
        press(page, "Resume")
        expect(status(page)).to_contain_text("Done")
        path = webui.seen(manifest(webui, "cramped")["files"][-1]["path"])
        assert {k: v.numpy().tobytes() for k, v in load_file(path).items()} == reference
