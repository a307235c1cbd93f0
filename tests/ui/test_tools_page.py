"""The panels of file tools and stacks in a real browser, as a person uses them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from lora_trainer.core.i18n import translator
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.families import SD1
from lora_trainer.network.adapters import add_adapters
from lora_trainer.network.lora_file import save_lora
from lora_trainer.ui import standalone
from lora_trainer.ui.panels.follow import Follower
from lora_trainer.ui.panels.lora_files import ToolsPanel
from lora_trainer.ui.panels.stacks import StacksPanel
from lora_trainer.ui.widgets.refresh import together
from tests.helpers import LIMIT
from tests.network.plain import randomise
from tests.runs_helpers import make_jobs
from tests.ui.browser import NO_BROWSER, choose, chromium, open_page, part

if not chromium():
    warnings.warn(NO_BROWSER, stacklevel=1)
    pytest.skip(NO_BROWSER, allow_module_level=True)

expect.set_options(timeout=LIMIT * 1000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jobs, str]]:
    """Both panels below each other, for a host with the LoRAs ``one`` and ``two``."""
    jobs = make_jobs(tmp_path_factory.mktemp("panels"))
    for name in ("one", "two"):
        with jobs.host.session(ModelRequest()) as session:
            adapters = add_adapters({"lora_unet_": session.model.unet}, SD1, rank=2, alpha=2.0)
            save_lora(jobs.host.folders.loras / f"{name}.safetensors", randomise(adapters, 0.1), {}, "fp16")
    with gr.Blocks(analytics_enabled=False) as demo:
        with gr.Column(elem_id="lora_train"):
            tools, stacks = ToolsPanel(jobs, translator("en")), StacksPanel(jobs, translator("en"))
            page = SimpleNamespace(run=gr.Textbox(visible=False))
            poll = gr.Button("poll", elem_id="lora_train_poll", elem_classes="lt-hidden")
        panels = tools, stacks, Follower(jobs, tools, stacks)
        for panel in panels:
            panel.connect(page)
        together([panel.watch.refresh for panel in panels]).on(poll.click)
        demo.load(None, None, None, _js=standalone.scripts())
    with standalone.serving(standalone.application(demo)) as port:
        yield jobs, f"http://127.0.0.1:{port}"


@pytest.fixture
def page(served: tuple[Jobs, str], browser: Browser) -> Iterator[Page]:
    with open_page(served[1], browser=browser) as opened:
        expect(opened.locator("#lora_train_tools_file input")).to_be_visible()
        yield opened


def fill(page: Page, name: str, value: str) -> None:
    widget = page.locator(f"#lora_train_{name}").locator("input, textarea").first
    widget.fill(value)
    widget.blur()


def tab(page: Page, name: str) -> None:
    page.locator("#lora_train_tools .tab-nav button", has_text=name).click()


def test_look_at_a_file_bake_it_and_look_at_the_new_one(page: Page, served: tuple[Jobs, str]) -> None:
    choose(page, "tools_file", "one")
    expect(part(page, "#lora_train_tools_info").locator(".lt-file-blocks tbody tr")).to_have_count(16)
    tab(page, "Bake")
    fill(page, "tools_bake_weight", "0.5")
    choose(page, "tools_bake_lbw_known", "OUTALL")
    expect(page.locator("#lora_train_tools_bake_lbw").locator("input, textarea").first).to_have_value("OUTALL")
    page.locator("#lora_train_tools_bake").click()
    expect(part(page, "#lora_train_tools_work")).to_contain_text("<lora:one-baked:1>")
    assert (served[0].host.folders.loras / "one-baked.safetensors").is_file()
    tab(page, "Info")
    choose(page, "tools_file", "one-baked")
    expect(part(page, "#lora_train_tools_info").locator(".lt-file-blocks tbody tr")).to_have_count(9)
    fill(page, "tools_path", "nobody")
    expect(part(page, "#lora_train_tools_info")).to_contain_text("there is no LoRA file nobody")


def test_merge_chosen_files_and_wrong_lines(page: Page) -> None:
    tab(page, "Merge")
    for name in ("one", "two"):
        choose(page, "tools_add", name)
        expect(page.locator("#lora_train_tools_merge_files textarea")).to_have_value(
            "one: 0.8" if name == "one" else "one: 0.8\ntwo: 0.4"
        )
    page.locator("#lora_train_tools_merge").click()
    expect(part(page, "#lora_train_tools_work")).to_contain_text("<lora:one-two-merged:1>")
    fill(page, "tools_merge_files", "one: heavy")
    page.locator("#lora_train_tools_merge").click()
    expect(part(page, "#lora_train_tools_feedback")).to_contain_text("must be a number, not heavy")


def test_a_stack_from_its_lines_to_drawn_mixes(page: Page) -> None:
    fill(page, "stacks_stack", "one: 0.7\ntwo: 0.6")
    expect(part(page, "#lora_train_stacks_report")).to_contain_text("sum up to 1.3")
    fill(page, "stacks_count", "3")
    page.locator("#lora_train_stacks").get_by_text("For experts").click()
    for name, value in (("width", "64"), ("height", "64"), ("steps", "1")):
        fill(page, f"stacks_{name}", value)
    page.locator("#lora_train_stacks_show").click()
    expect(part(page, "#lora_train_stacks_mixes").locator("tbody tr")).to_have_count(3)
    page.locator("#lora_train_stacks_draw").click()
    expect(part(page, "#lora_train_stacks_work")).to_contain_text("Done")
    expect(page.locator("#lora_train_stacks_gallery img")).to_have_count(3)
    page.reload()
    expect(page.locator("#lora_train_stacks_gallery img")).to_have_count(3)
