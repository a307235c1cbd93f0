"""The tab in the real WebUI's page, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from lora_trainer.config.train import TrainConfig
from lora_trainer.runs.store import Runs
from tests.grids_made import make_files, make_grid
from tests.helpers import LIMIT
from tests.runs_helpers import document
from tests.ui.browser import ARGUMENTS, NO_BROWSER, chromium, fill, open_page, part, wait_for_tab
from tests.webui.real.test_webui import document as short_run
from tests.webui.real.webui import WebUI

pytestmark = pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
expect.set_options(timeout=LIMIT * 1000)


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A second WebUI: in Chinese, its API behind a password."""
    with WebUI(tmp_path_factory.mktemp("chinese"), settings={"localization": "zh_CN"}, auth="me:secret") as running:
        yield running


def open_tab(page: Page) -> None:
    page.locator("#tabs > .tab-nav button", has_text="LoRA Train").click()
    expect(page.locator("#lora_train_start")).to_be_visible()
    wait_for_tab(page)


def settings(pictures: Path) -> dict[str, object]:
    return {"data__folder": pictures, "data__resolution": 128, "data__trigger": "zorp", "training__epochs": 2}


def test_from_the_page_to_a_picture_with_the_lora(webui: WebUI, pictures: Path) -> None:
    with open_page(webui.url) as page:
        open_tab(page)
        expect(part(page, "#lora_train_base")).to_contain_text("small.safetensors")
        fill(page, name="pagerun", **settings(pictures))
        page.locator("#lora_train_start").click()
        expect(part(page, "#lora_train_status")).to_contain_text("pagerun")
        expect(part(page, "#lora_train_status")).to_contain_text("Done")
        page.locator("#lora_train_files .lt-use").first.click()
        prompt = page.locator("#txt2img_prompt textarea")
        expect(prompt).to_be_visible()
        expect(prompt).to_have_value("<lora:pagerun:0.8> zorp")


def test_the_lora_has_a_card_that_fills_in_weight_and_trigger(webui: WebUI, pictures: Path) -> None:
    if "pagerun" not in [run["name"] for run in webui.get("/lora-train/v1/runs")]:
        test_from_the_page_to_a_picture_with_the_lora(webui, pictures)
    with open_page(webui.url) as page:
        page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora").click()
        page.locator("#txt2img_lora_extra_refresh:visible").first.click()
        card = page.locator("#txt2img_lora_cards .card[data-name='pagerun']")
        expect(card).to_be_visible()
        expect(card.locator("img.preview")).to_have_count(1)
        # the WebUI's own script fetches its settings after the page is there, and would write "undefined" before
        page.wait_for_function("opts.extra_networks_add_text_separator !== undefined")
        card.click()
        # the space is the WebUI's own, extraNetworks.js
        expect(page.locator("#txt2img_prompt textarea")).to_have_value(" <lora:pagerun:0.8> zorp")


def test_cards_come_into_the_webuis_lora_tab_by_themselves(webui: WebUI, pictures: Path) -> None:
    """With their previews, in both tabs, for whoever looks at them all the time or opens the page later."""

    def card(page: Page, tab: str, name: str) -> Locator:
        return page.locator(f"#{tab}_lora_cards .card[data-name='{name}']")

    def look_at_cards(page: Page) -> None:
        page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora").click()

    with open_page(webui.url) as page:
        look_at_cards(page)
        name = webui.train(**short_run(pictures))  # by another program; this page's tab was never opened
        webui.finished(name)
        expect(card(page, "txt2img", name)).to_be_visible()
        for tab in ("txt2img", "img2img"):
            expect(card(page, tab, name).locator("img.preview")).to_have_count(1)
        path = webui.data / "models" / "Lora" / name / f"{name}-resized.safetensors"
        status, answer = webui.request(
            "POST", "/lora-train/v1/loras/resize", {"file": name, "rank": 1, "output": f"{name}/{path.stem}"}
        )
        assert status == 200, answer
        expect(card(page, "txt2img", path.stem)).to_be_visible()
    later = webui.finished(webui.train(**short_run(pictures)))["name"]  # while no page is open
    with open_page(webui.url) as page:
        look_at_cards(page)
        expect(card(page, "txt2img", later).locator("img.preview")).to_have_count(1)


def test_a_grid_on_the_page_and_its_cell_into_txt2img(webui: WebUI, pictures: Path) -> None:
    """With the pictures under the WebUI's own routes, and the cell's weight and picture on its card."""
    with open_page(webui.url) as page:
        open_tab(page)
        fill(page, name="pagegrid", **settings(pictures))
        page.locator("#lora_train_start").click()
        expect(part(page, "#lora_train_status")).to_contain_text("pagegrid")
        expect(part(page, "#lora_train_status")).to_contain_text("Done")
        for name, value in (("weights", "0.5"), ("grid_seeds", "3")):
            page.locator(f"#lora_train_{name}").locator("input, textarea").fill(value)
        page.locator("#lora_train_draw").click()
        pictures_shown = page.locator("#lora_train_grid td.lt-cell img")
        expect(part(page, "#lora_train_grid_verdict")).to_contain_text("Sheet")
        expect(pictures_shown).to_have_count(3)
        for picture in pictures_shown.all():
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        page.locator("#lora_train_grid td.lt-cell").nth(1).click()
        for act, name in (("card", "pagegrid-000001.json"), ("preview", "pagegrid-000001.png")):
            page.locator(f"[data-act={act}]").click()
            expect(page.locator(".lt-v-said")).to_contain_text(name)
        for name, value in (("seed", "77"), ("width", "512"), ("steps", "33")):
            page.locator(f"#txt2img_{name} input[type=number]").first.evaluate(
                "(field, value) => { field.value = value; field.dispatchEvent(new Event('input')); }", value
            )
        page.locator("[data-act=use]").click()
        prompt = page.locator("#txt2img_prompt textarea")
        expect(prompt).to_be_visible()
        expect(prompt).to_have_value(re.compile(r"^zorp.* <lora:pagegrid-000001:0\.5>$"))
        expect(page.locator("#txt2img_seed input")).to_have_value("3")
        expect(page.locator("#txt2img_steps input[type=number]")).to_have_value("20")
        expect(page.locator("#txt2img_width input[type=number]")).to_have_value("128")
        expect(page.locator("#txt2img_override_settings")).to_be_hidden()
        page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora").click()
        page.locator("#txt2img_lora_extra_refresh:visible").first.click()
        card = page.locator("#txt2img_lora_cards .card[data-name='pagegrid-000001']")
        expect(card.locator("img.preview")).to_have_count(1)
        page.wait_for_function("opts.extra_networks_add_text_separator !== undefined")
        prompt.fill("")
        card.click()
        expect(prompt).to_have_value(" <lora:pagegrid-000001:0.5> zorp")


def test_under_the_webuis_login_the_grids_pictures_are_served(tmp_path: Path) -> None:
    """And to nobody without it."""
    running = WebUI(tmp_path, "--gradio-auth", "me:secret", auth="me:secret")
    try:
        running.wait()
        runs = Runs(tmp_path / "lora-train" / "runs")
        run = runs.create(TrainConfig.from_dict(document(tmp_path, "made")), checkpoint={})
        run.update(state="done", now=True)
        make_files(run, tmp_path / "models" / "Lora" / "made", 2)
        make_grid(run)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(LIMIT * 1000)
            page.context.request.post(f"{running.url}/login", form={"username": "me", "password": "secret"})
            page.goto(running.url, wait_until="domcontentloaded")
            open_tab(page)
            picture = page.locator("#lora_train_grid td.lt-cell img").first
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
            url = f"{running.url}/{picture.get_attribute('src')}"
            assert page.context.request.get(url).status == 200
            assert playwright.request.new_context().get(url).status == 401
            browser.close()
    finally:
        running.close()


def test_a_reloaded_page_finds_the_run_that_goes_on(webui: WebUI, pictures: Path) -> None:
    with open_page(webui.url) as page:
        open_tab(page)
        fill(page, name="reloaded", **{**settings(pictures), "training__epochs": 500})
        page.locator("#lora_train_start").click()
        expect(part(page, "#lora_train_status")).to_contain_text("left")
        page.reload()
        page.wait_for_selector("#lora_train", state="attached")
        open_tab(page)
        expect(part(page, "#lora_train_status")).to_contain_text("reloaded")
        page.locator("#lora_train_stop").click()
        expect(part(page, "#lora_train_status")).to_contain_text("Stopped")


@pytest.mark.parametrize("width", [1400, 800])
def test_the_tab_fits_into_the_window(webui: WebUI, width: int) -> None:
    with open_page(webui.url, width) as page:
        open_tab(page)
        box = page.locator("#lora_train").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_the_page_is_chinese_where_the_webui_is(chinese: WebUI) -> None:
    with open_page(chinese.url) as page:
        open_tab(page)
        expect(page.locator("#lora_train_start")).to_contain_text("训练")
        expect(part(page, "#lora_train_step_3")).to_contain_text("图")
        page.locator("#lora_train_start").click()
        expect(part(page, "#lora_train_feedback .lt-error")).to_contain_text("名")


def test_rest_asks_for_the_webuis_password(chinese: WebUI) -> None:
    for path in ("/health", "/runs", "/schema"):
        assert chinese.request("GET", f"/lora-train/v1{path}", auth="")[0] == 401
        assert chinese.request("GET", f"/lora-train/v1{path}", auth="me:wrong")[0] == 401
        assert chinese.request("GET", f"/lora-train/v1{path}", auth="you:secret")[0] == 401
        assert chinese.request("GET", f"/lora-train/v1{path}")[0] == 200
    assert chinese.request("POST", "/lora-train/v1/runs", {"name": "x"}, auth="")[0] == 401
