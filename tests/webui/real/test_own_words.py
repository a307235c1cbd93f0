"""What our extension adds to the WebUI's own words and to its ``ui-config.json``, in the real WebUI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lora_trainer.config.train import TrainConfig
from lora_trainer.runs.store import Runs
from tests.helpers import LIMIT
from tests.runs_helpers import document
from tests.ui.browser import NO_BROWSER, choose_text, chromium, open_page
from tests.webui.real.webui import WebUI

pytestmark = pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
expect.set_options(timeout=LIMIT * 1000)

PACK = {"Resize": "缩放", "Train": "模型训练", "Steps": "步数（语言包）", "Sampler": "采样器（语言包）"}
"""A language pack for the WebUI, whose words are ours too, with other translations."""

HOST_TEXTS = """() => {
    const ours = "#tab_lora_train, [id^=setting_lora_train], [id^=lora_train]";
    const elements = [...gradioApp().querySelectorAll("*")].filter((each) => !each.closest(ours));
    const texts = elements.flatMap((each) => [
        each.title, each.placeholder,
        ...[...each.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.textContent),
    ]);
    return [...new Set(texts.filter((text) => typeof text === "string").map((text) => text.trim()))];
}"""


class PackedWebUI(WebUI):
    """With the language pack beside our extension."""

    def _prepare(self, settings: dict[str, Any]) -> None:
        super()._prepare(settings)
        folder = self.data / "extensions" / "a-language-pack" / "localizations"  # read before ours, which would win
        folder.mkdir(parents=True)
        (folder / "zh_CN.json").write_text(json.dumps(PACK), encoding="utf-8")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with PackedWebUI(tmp_path_factory.mktemp("packed"), settings={"localization": "zh_CN"}) as running:
        yield running


def make_run(webui: WebUI, name: str) -> None:
    runs = Runs(webui.data / "lora-train" / "runs")
    runs.create(TrainConfig.from_dict(document(webui.data, name)), checkpoint={}).update(state="done", now=True)


def ui_config(webui: WebUI) -> dict[str, Any]:
    return json.loads((webui.data / "ui-config.json").read_text(encoding="utf-8"))


def test_no_word_of_the_webui_is_ours(webui: WebUI) -> None:
    own = json.loads((webui.data / "extensions/lora-train/localizations/zh_CN.json").read_text(encoding="utf-8"))
    with open_page(webui.url) as page:
        texts = page.evaluate(HOST_TEXTS)
    assert len(texts) > 1000
    assert {"Resize", "Train", "Seed"} <= set(texts)
    axes = {text for text in texts if text in own and text.startswith("LoRA ")}  # in the list of the X/Y/Z plot
    assert set(texts) & own.keys() == axes


def test_a_language_pack_has_its_words_and_our_page_has_ours(chinese: WebUI) -> None:
    with open_page(chinese.url) as page:
        expect(page.locator("#tabs > .tab-nav button", has_text="模型训练")).to_have_count(1)
        assert PACK.keys() <= set(page.evaluate("Object.keys(window.localization)"))
        texts = page.evaluate(HOST_TEXTS)
        assert PACK["Resize"] in texts
        assert "调整 rank" not in texts
        page.locator("#tabs > .tab-nav button", has_text="LoRA Train").click()
        expect(page.locator("#lora_train_start")).to_have_text("训练")
        expect(page.locator("#lora_train_step_3")).to_contain_text("图片")


def open_setting(page: Page, key: str) -> str:
    """The text of a setting, with what the WebUI's script has added to it."""
    page.wait_for_function(f"opts._comments_after && opts._comments_after.{key} !== undefined")
    page.locator("#tabs > .tab-nav button").nth(-2).click()
    page.locator("#settings > .tab-nav button", has_text="LoRA Train").click()
    setting = page.locator(f"#setting_{key}")
    expect(setting.locator(".info")).to_be_visible()
    return setting.inner_text()


def test_the_settings_are_read_as_they_are_meant(webui: WebUI, chinese: WebUI) -> None:
    with open_page(webui.url) as page:
        assert "(<lora:name:1:lbw=…>; left to" in open_setting(page, "lora_train_block_weights")
        assert "Who goes first" in page.locator("#setting_lora_train_priority").inner_text()
    with open_page(chinese.url) as page:
        assert "(<lora:name:1:lbw=…>；若" in open_setting(page, "lora_train_block_weights")
        priority = page.locator("#setting_lora_train_priority")
        expect(priority).to_contain_text("谁优先")
        priority.locator("label", has_text="轮流").click()
        page.locator("#settings_submit").click()
        page.wait_for_function("opts.lora_train_priority === 'fair'")
    assert chinese.probe("from modules import shared; result = shared.opts.lora_train_priority") == "fair"


def test_nothing_of_ours_is_in_the_ui_config(webui: WebUI, chinese: WebUI) -> None:
    for running in (webui, chinese):
        saved = ui_config(running)
        assert len(saved) > 500
        assert [key for key in saved if "lora_train" in key.lower() or "lora train" in key.lower()] == []


def test_a_page_opened_later_finds_the_newest_run_everywhere(chinese: WebUI) -> None:
    """Also one that another version's entry in ``ui-config.json`` names, and after a restart."""
    make_run(chinese, "older")
    path: Path = chinese.data / "ui-config.json"
    stale = {f"lora_train/{label}/value": "older" for label in ("训练任务", "Training run", "文件所属的训练任务")}
    script = {
        f"customscript/lora_train_grid.py/txt2img/{label}/value": "older" for label in ("训练任务", "网格的训练任务")
    }
    path.write_text(json.dumps({**ui_config(chinese), **stale, **script}), encoding="utf-8")
    chinese.kill_and_start()
    make_run(chinese, "newest")
    with open_page(chinese.url) as page:
        page.locator("#tabs > .tab-nav button", has_text="LoRA Train").click()
        for selector in ("#lora_train_run input", "#lora_train_blocks_run input"):
            expect(page.locator(selector)).to_have_value("newest")
        page.locator("#tabs > .tab-nav button", has_text="txt2img").click()
        choose_text(page.locator("#txt2img_script_container #script_list"), "LoRA Train grid")
        expect(page.locator("#lora_train_script_run input")).to_have_value("newest")
