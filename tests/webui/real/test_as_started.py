"""A WebUI with another memory layout, and its own buttons: restarts, FP8, checkpoints that pictures bring along."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import load_file, save_file

from tests.helpers import until
from tests.ui.browser import NO_BROWSER, choose, chromium, field, open_page, part
from tests.webui.real.test_webui import CLEAN, WEIGHTS, document
from tests.webui.real.test_webui_page import open_tab
from tests.webui.real.webui import WebUI

needs_browser = pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
LONG = {"training__steps": 4000, "samples__prompts": []}


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """With the option under which the weights' layout is another one."""
    with WebUI(tmp_path_factory.mktemp("as-started"), "--opt-channelslast") as running:
        yield running


@pytest.fixture
def start(webui: WebUI, pictures: Path) -> Iterator[Callable[..., str]]:
    """Starts a run that is going on; it is stopped in the end."""
    names: list[str] = []

    def start(**changes: Any) -> str:
        names.append(webui.train(**document(pictures, **{**LONG, **changes})))
        webui.until(names[-1], 2)
        return names[-1]

    yield start
    for name in names:
        webui.post(f"/lora-train/v1/runs/{name}/stop", {"save": False})
        webui.finished(name)


def manifest(webui: WebUI, name: str) -> dict[str, Any]:
    return webui.get(f"/lora-train/v1/runs/{name}")


def manifest_on_disk(webui: WebUI, name: str) -> dict[str, Any]:
    return json.loads((webui.data / "lora-train" / "runs" / name / "manifest.json").read_text(encoding="utf-8"))


def goes_on(webui: WebUI, name: str) -> None:
    """Wait for steps that come after this moment."""
    webui.in_state(name, "running")
    webui.until(name, manifest(webui, name)["step"] + 2)


def press(page: Page, tab: str, button: str | re.Pattern[str]) -> None:
    page.locator("#tabs > .tab-nav button", has_text=tab).click()
    page.locator("button:visible", has_text=button).first.click()


def test_what_is_written_is_contiguous_fp32_whatever_layout_the_model_has(webui: WebUI, pictures: Path) -> None:
    assert not webui.probe("""
from modules import shared
result = all(p.is_contiguous() for p in shared.sd_model.parameters())
""")
    webui.probe(CLEAN)
    before = webui.probe(WEIGHTS)
    done = webui.finished(webui.train(**document(pictures, network__targets="attention+conv")))
    assert (done["state"], done["message"]) == ("done", "")
    assert len(done["samples"]) == 2
    latents = list((webui.data / "lora-train" / "cache" / "latents").glob("*/*.safetensors"))
    assert latents
    assert all(tensor.dtype == torch.float32 for path in latents for tensor in load_file(path).values())
    webui.probe(CLEAN)
    assert webui.probe(WEIGHTS) == before


def callbacks(webui: WebUI) -> list[str]:
    """The names by which the WebUI knows what it calls of ours."""
    return webui.probe(
        "from modules import script_callbacks; result = sorted("
        "each.name for known in script_callbacks.callback_map.values() for each in known if 'lora-train' in each.name)"
    )


@needs_browser
def test_a_run_and_its_samples_go_on_through_the_button_reload_ui(webui: WebUI, start: Callable[..., str]) -> None:
    ours = callbacks(webui)
    assert {f"lora-train/lora_train.py/{event}" for event in ("before_ui", "ui_tabs", "app_started")} < set(ours)
    name = start(samples__prompts=["zorp"], samples__every_steps=10)
    with open_page(webui.url) as page:
        press(page, "Settings", "Reload UI")
        webui.until_reloaded()
    assert callbacks(webui) == ours
    assert manifest(webui, name)["state"] == "running"
    goes_on(webui, name)
    assert "could not be drawn" not in manifest(webui, name)["message"]
    assert webui.log().count("Drawing a sample failed") == 0
    for _ in range(100):  # the person's own Interrupt is one again
        webui.post("/sdapi/v1/interrupt")
        if manifest(webui, name)["state"] != "running":
            break
    assert webui.finished(name)["state"] == "stopped"


@needs_browser
def test_a_run_goes_on_after_apply_and_restart(webui: WebUI, start: Callable[..., str], pictures: Path) -> None:
    """And the one behind it keeps its place."""
    name = start()
    behind = webui.train(**document(pictures))
    with open_page(webui.url) as page:
        press(page, "Extensions", re.compile("Apply and (restart|quit)"))
        webui.until_gone()
    left = manifest_on_disk(webui, name)
    assert (left["state"], left["message"]) == ("queued", "")
    assert left["step"] >= 2
    webui.kill_and_start()
    assert manifest(webui, name)["step"] >= left["step"]
    goes_on(webui, name)
    assert manifest(webui, behind)["state"] in ("queued", "paused")
    webui.post(f"/lora-train/v1/runs/{name}/stop", {"save": False})
    assert webui.in_state(behind, "done")["step"] == 4


def test_fp8_pauses_a_run_and_is_refused_at_once(webui: WebUI, start: Callable[..., str], pictures: Path) -> None:
    name = start()
    try:
        webui.post("/sdapi/v1/options", {"fp8_storage": "Enable"})
        paused = webui.in_state(name, "paused")
        assert "FP8" in paused["message"]
        status, answer = webui.request("POST", "/lora-train/v1/runs", document(pictures))
        assert status == 422
        assert answer["detail"][0]["field"] == "checkpoint"
        assert "FP8" in answer["detail"][0]["msg"]
        assert webui.picture("zorp").size == (128, 128)
    finally:
        webui.post("/sdapi/v1/options", {"fp8_storage": "Disable"})
    goes_on(webui, name)


def test_a_picture_with_another_checkpoint_does_not_park_a_run(webui: WebUI, start: Callable[..., str]) -> None:
    overrides = {"sd_model_checkpoint": "other.safetensors"}
    alone = webui.picture("zorp", override_settings=overrides)
    assert webui.get("/lora-train/v1/health")["checkpoint"]["name"] == "small.safetensors"
    name = start()
    assert webui.picture("zorp", override_settings=overrides).tobytes() == alone.tobytes()
    goes_on(webui, name)
    assert manifest(webui, name)["checkpoint"]["name"] == "small.safetensors"
    assert manifest(webui, name)["message"] == ""


@needs_browser
def test_load_its_checkpoint_chooses_it_at_the_top_of_the_page(webui: WebUI, start: Callable[..., str]) -> None:
    name = start()
    webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "other.safetensors"})
    webui.in_state(name, "paused")
    with open_page(webui.url) as page:
        chosen = page.locator("#setting_sd_model_checkpoint input")
        expect(chosen).to_have_value(re.compile("^other"))
        open_tab(page)
        choose(page, "run", name)
        expect(part(page, "#lora_train_status")).to_contain_text(name)
        page.locator("#lora_train_bring").click()
        expect(chosen).to_have_value(re.compile("^small"))
    goes_on(webui, name)


@needs_browser
def test_a_trigger_that_prompts_take_for_something_else_is_told(webui: WebUI) -> None:
    embedding = {"emb_params": torch.ones(1, 64)}
    folder = webui.data / "embeddings"
    folder.mkdir(exist_ok=True)
    save_file(embedding, folder / "gloop.safetensors")
    webui.picture("red circle")  # reads it
    save_file(embedding, folder / "brand new.safetensors")
    wildcards = webui.data / "wildcards"
    wildcards.mkdir()
    (wildcards / "hats.txt").write_text("cap\nbonnet\n")
    found = webui.probe("""
from modules import shared
from modules.styles import PromptStyle
from lora_trainer.hosts.a1111.host import A1111Host
host = A1111Host()
shared.prompt_styles.styles["Sketchy"] = PromptStyle("Sketchy", "pencil", "")
triggers = ("zorp_xx", "gloop", "Gloop_xx, tall", "gloopy", "brand new", "sketchy", "__hats__", "__caps__",
            "star (symbol)",
            "a AND b", "sand and", "<lora:x:1>", "zorp #1")
result = [[list(each) for each in host.words(trigger)] for trigger in triggers]
del shared.prompt_styles.styles["Sketchy"]
""")
    gloop = [["embedding", "gloop"]]
    assert found == [
        *([], gloop, gloop, [], [["embedding", "brand new"]], [["style", "Sketchy"]], [["wildcard", "__hats__"]], []),
        *([["syntax", "("]], [["syntax", "AND"]], [], [["syntax", "<lora:x:1>"]], [["syntax", "#"]]),
    ]
    with open_page(webui.url) as page:
        open_tab(page)
        widget = field(page, "data.trigger")
        widget.fill("gloop")
        widget.blur()
        expect(part(page, "#lora_train_advice")).to_contain_text("an embedding named “gloop”")


def test_without_a_run_the_sentence_does_not_end_in_a_name(webui: WebUI) -> None:
    status, answer = webui.request(
        "POST",
        "/sdapi/v1/txt2img",
        {"prompt": "zorp", "script_name": "lora train grid", "script_args": ["", "all", "1", 1, False]},
    )
    assert status == 422
    assert "No training run is chosen" in answer["detail"]


def test_waiting_is_over_when_the_page_is_there(webui: WebUI) -> None:
    until(lambda: webui.probe("from lora_trainer.hosts.a1111.rebuild import reload; result = not reload.going_on"))
