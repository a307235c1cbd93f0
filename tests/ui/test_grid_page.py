"""The viewer of a grid, used in a real browser as a person would."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, expect

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.ui import standalone
from lora_trainer.validation.grid.choice import votes
from tests.grids_made import make_files, make_grid
from tests.helpers import CHECKPOINT, LIMIT, until
from tests.runs_helpers import document
from tests.ui.browser import NO_BROWSER, boxes, choose, chromium, field, open_page, part, wait_for_tab, wait_until_still

if not chromium():
    warnings.warn(NO_BROWSER, stacklevel=1)
    pytest.skip(NO_BROWSER, allow_module_level=True)

expect.set_options(timeout=LIMIT * 1000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jobs, str]]:
    """A page with a run of four files, whose grid is drawn, and one that is being drawn."""
    root = tmp_path_factory.mktemp("page")
    jobs = Jobs(StandaloneHost(root, str(CHECKPOINT)))
    for name, drawn in (("half", 10), ("zorp", None)):
        run = jobs.runs.create(TrainConfig.from_dict(document(root, name, network__rank=6)), checkpoint={})
        run.update(state="done", now=True)
        make_files(run, root / "loras", 4)
        make_grid(run, drawn=drawn)
    with standalone.serving(standalone.application(standalone.page(jobs))) as port:
        yield jobs, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def opened(served: tuple[Jobs, str]) -> Iterator[Page]:
    """One browser for all tests: starting it takes longer than most of them."""
    with open_page(served[1]) as page:
        yield page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The page, loaded anew, with the run whose grid is drawn."""
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.reload(wait_until="domcontentloaded")
    choose_run(opened, "zorp")
    yield opened
    assert problems == []


@pytest.fixture
def run(served: tuple[Jobs, str]) -> Run:
    return served[0].runs.get("zorp")


def choose_run(page: Page, name: str) -> None:
    expect(part(page, "#lora_train_status")).to_contain_text("Done")
    choose(page, "run", name)
    expect(page.locator(".lt-v-detail code")).to_contain_text(f"<lora:{name}-")
    wait_for_tab(page)
    wait_until_still(page)


def cells(page: Page) -> Locator:
    return page.locator("#lora_train_grid td.lt-cell")


def chosen(page: Page) -> Locator:
    return page.locator("#lora_train_grid td[aria-selected='true']")


def title(page: Page) -> Locator:
    return page.locator(".lt-v-detail .lt-head b").first


def button(page: Page, name: str) -> Locator:
    return page.locator(f"#lora_train_grid [data-act='{name}']")


def is_loaded(picture: Locator) -> bool:
    picture.scroll_into_view_if_needed()  # it is not fetched before it is in sight
    return bool(picture.evaluate("image => image.decode().then(() => image.naturalWidth > 0, () => false)"))


def cell(page: Page, column: int, row: int) -> Locator:
    return page.locator("#lora_train_grid tbody tr").nth(row).locator("td.lt-cell").nth(column)


def press_cell(page: Page, column: int, row: int) -> None:
    """Press a cell until it is chosen: beside other load two of hundreds of presses came to nothing, none knows why."""
    wanted = cell(page, column, row)

    def is_chosen() -> bool:
        wanted.click()
        return wanted.get_attribute("aria-selected") == "true"

    until(is_chosen)


# ------------------------------------------------------------------ the table
def test_the_table_has_a_picture_for_each_epoch_and_weight(page: Page) -> None:
    expect(cells(page)).to_have_count(5 * 4)
    heads = page.locator("#lora_train_grid .lt-v-table thead th").all_inner_texts()
    assert heads == ["no LoRA", "epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    rows = page.locator("#lora_train_grid .lt-v-table tbody th").all_inner_texts()
    assert rows == ["weight 0.3", "weight 0.6", "weight 0.8", "weight 1"]
    assert all(is_loaded(picture) for picture in cells(page).locator("img").all()[:10])
    assert cells(page).locator("img[loading=lazy]").count() == 20


def test_the_recommended_cell_is_chosen_and_framed(page: Page) -> None:
    expect(title(page)).to_have_text("epoch 3 · weight 0.8 · seed 1")
    expect(page.locator("#lora_train_grid td.lt-best")).to_have_count(1)
    expect(page.locator("td.lt-best .lt-badge")).to_have_attribute("title", "recommended")
    expect(part(page, "#lora_train_grid_verdict")).to_contain_text("Over-fitted")
    expect(part(page, "#lora_train_grid_chart").locator("polyline")).to_have_count(5)


def test_a_cell_shows_its_numbers_and_a_bar_for_the_loss(page: Page, run: Run) -> None:
    text = cell(page, 2, 1).inner_text()
    document = json.loads((run.grids / "plain" / "grid.json").read_text(encoding="utf-8"))
    group = next(g for g in document["groups"] if (g["column"], g["weight"]) == (2, 0.6))
    for name, digits in (("loss", 4), ("copy", 3), ("leak", 3)):
        assert f"{group['numbers'][name]:.{digits}f}" in text
    best, worst = boxes(*(cell(page, *place).locator(".lt-lossbar i") for place in ((3, 2), (1, 0))))
    assert best["width"] < worst["width"]


def test_click_and_arrow_keys_choose_a_cell(page: Page) -> None:
    press_cell(page, 1, 1)
    expect(title(page)).to_have_text("epoch 1 · weight 0.6 · seed 1")
    for key, name in (
        ("ArrowRight", "epoch 2 · weight 0.6 · seed 1"),
        ("ArrowDown", "epoch 2 · weight 0.8 · seed 1"),
        ("ArrowLeft", "epoch 1 · weight 0.8 · seed 1"),
        ("ArrowUp", "epoch 1 · weight 0.6 · seed 1"),
    ):
        page.keyboard.press(key)
        expect(title(page)).to_have_text(name)
        expect(chosen(page)).to_have_count(1)
        expect(chosen(page)).to_be_focused()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    expect(title(page)).to_have_text("no LoRA · seed 1")
    expect(page.locator(".lt-v-detail code")).to_have_count(0)
    expect(button(page, "bake")).to_be_disabled()
    expect(button(page, "use")).to_be_enabled()


def test_a_cell_whose_content_is_exchanged_while_it_is_pressed_is_chosen(page: Page) -> None:
    """The browser sends no click then."""
    wanted = cell(page, 1, 1)
    wanted.locator("img").hover()
    page.mouse.down()
    wanted.evaluate("cell => cell.replaceChildren(...[...cell.children].map((child) => child.cloneNode(true)))")
    page.mouse.up()
    expect(title(page)).to_have_text("epoch 1 · weight 0.6 · seed 1")
    expect(wanted).to_have_attribute("aria-selected", "true")
    expect(wanted).to_be_focused()


def test_a_finger_that_scrolls_chooses_no_cell(page: Page) -> None:
    cell(page, 1, 1).dispatch_event("pointerdown", {"pointerType": "touch", "bubbles": True})
    cell(page, 1, 1).dispatch_event("pointerup", {"pointerType": "touch", "bubbles": True})
    expect(title(page)).to_have_text("epoch 3 · weight 0.8 · seed 1")
    cell(page, 1, 1).dispatch_event("click")
    expect(title(page)).to_have_text("epoch 1 · weight 0.6 · seed 1")


def test_seed_and_prompt_are_chosen_above_the_table(page: Page) -> None:
    first = cell(page, 2, 2).locator("img").get_attribute("src")
    page.locator("[data-picker=seed] button", has_text="seed 2").click()
    expect(title(page)).to_have_text("epoch 3 · weight 0.8 · seed 2")
    second = cell(page, 2, 2).locator("img").get_attribute("src")
    page.locator("[data-picker=prompt] select").select_option("1")
    expect(page.locator(".lt-v-prompt")).to_have_text("blue background (without the trigger word)")
    third = cell(page, 2, 2).locator("img").get_attribute("src")
    page.locator("[data-picker=prompt] button").last.click()  # goes round
    expect(page.locator(".lt-v-prompt")).to_have_text("zorp, blue background")
    assert len({first, second, third}) == 3


def test_any_two_axes_can_be_rows_and_columns(page: Page) -> None:
    page.locator("select[data-axis=rows]").select_option("prompt")
    expect(cells(page)).to_have_count(5 * 2)
    page.locator("select[data-axis=columns]").select_option("seed")
    expect(cells(page)).to_have_count(2 * 2)
    expect(page.locator("[data-picker=column]")).to_be_visible()
    page.locator("select[data-axis=columns]").select_option("prompt")  # the two change places
    expect(page.locator("select[data-axis=rows]")).to_have_value("seed")
    expect(page.locator("#lora_train_grid .lt-v-table thead th").last).to_contain_text("without the trigger word")
    press_cell(page, 1, 1)
    expect(title(page)).to_have_text("epoch 3 · weight 0.8 · seed 2")


def test_what_is_drawn_meanwhile_appears_where_it_was_awaited(page: Page, served: tuple[Jobs, str]) -> None:
    choose_run(page, "half")
    expect(cells(page).locator("img")).to_have_count(4 + 2)
    expect(cells(page).locator(".lt-missing")).to_have_count(14)
    expect(part(page, "#lora_train_grid_status")).to_contain_text("10 of 68 pictures")
    expect(page.locator("#lora_train_stop_draw")).to_be_visible()
    press_cell(page, 1, 0)
    page.evaluate("document.querySelector('td.lt-cell').marked = 'the same'")
    make_grid(served[0].runs.get("half"), drawn=40)
    expect(cells(page).locator("img")).to_have_count(4 + 9)
    assert page.evaluate("document.querySelector('td.lt-cell').marked") == "the same"
    expect(chosen(page)).to_be_focused()
    make_grid(served[0].runs.get("half"), drawn=10)


# ------------------------------------------------------------------ the chosen cell
def test_the_detail_has_picture_tag_and_numbers_with_spread(page: Page) -> None:
    assert is_loaded(page.locator(".lt-v-detail .lt-big img"))
    expect(page.locator(".lt-v-detail code")).to_have_text("<lora:zorp-000003:0.8>")
    numbers = page.locator(".lt-v-numbers")
    expect(numbers).to_contain_text("0.1000 ± 0.0020")
    expect(numbers).to_contain_text("0.144 ± 0.010")


def test_votes_are_kept_by_the_server(page: Page, run: Run) -> None:
    button(page, "voteUp").click()
    expect(chosen(page).locator(".lt-vote")).to_be_visible()
    expect(button(page, "voteUp")).to_have_attribute("aria-pressed", "true")
    until(lambda: list(votes(run).values()) == [1])
    page.reload()
    choose_run(page, "zorp")
    expect(page.locator("#lora_train_grid .lt-vote")).to_have_count(1)
    for _ in range(3):  # quickly, while the first is on its way
        button(page, "voteUp").click()
    expect(page.locator("#lora_train_grid .lt-vote")).to_have_count(0)
    expect(page.locator("#lora_train_grid_feedback .lt-answer[data-number*='-3-']")).to_be_attached()  # the third one's
    assert votes(run) == {}


def test_an_answer_that_does_not_come_is_asked_for_again(page: Page, run: Run) -> None:
    page.evaluate(
        """() => { // a click that gradio drops, and one that it takes before the text
            const [button, text] = ["act", "wish"].map((name) => document.querySelector(`#lora_train_grid_${name}`));
            const field = text.querySelector("textarea, input");
            let dropped = 0;
            button.addEventListener("click", (event) => {
                if (dropped++ === 0) event.stopImmediatePropagation();
                if (dropped === 2) {
                    field.value = "{}";
                    field.dispatchEvent(new Event("input", { bubbles: true }));
                }
            }, true);
        }"""
    )
    button(page, "bake").click()
    expect(page.locator(".lt-v-said .lt-good")).to_contain_text("Baked")
    folder = Path(run.manifest["files"][0]["path"]).parent
    button(page, "voteUp").click()
    until(lambda: list(votes(run).values()) == [1])
    button(page, "voteUp").click()
    until(lambda: votes(run) == {})
    (baked,) = folder.glob("zorp-000003-weight0.8*.safetensors")
    baked.unlink()


def test_card_preview_and_baked_file_are_written_and_said(page: Page, run: Run) -> None:
    folder = Path(run.manifest["files"][0]["path"]).parent
    said = page.locator(".lt-v-said")
    for action, name in (
        ("card", "zorp-000003.json"),
        ("preview", "zorp-000003.png"),
        ("bake", "weight0.8.safetensors"),
    ):
        button(page, action).click()
        expect(said).to_contain_text(name)
    assert json.loads((folder / "zorp-000003.json").read_text(encoding="utf-8"))["preferred weight"] == 0.8
    assert (folder / "zorp-000003-weight0.8.safetensors").is_file()
    press_cell(page, 1, 1)
    expect(said).to_be_empty()


def test_a_refusal_is_said_beside_the_buttons(page: Page, run: Run) -> None:
    path = Path(run.manifest["files"][1]["path"])
    moved = path.rename(path.with_suffix(".gone"))
    try:
        press_cell(page, 2, 0)
        button(page, "card").click()
        expect(page.locator(".lt-v-said .lt-error")).to_contain_text("zorp-000002.safetensors is gone")
    finally:
        moved.rename(path)


def test_going_on_from_a_cell_fills_the_form_and_asks_for_a_name(page: Page) -> None:
    field(page, "name").fill("before")
    button(page, "continue").click()
    expect(field(page, "network.continue_from")).to_have_value(re.compile(r"zorp-000003\.safetensors$"))
    expect(field(page, "network.rank")).to_have_value("6")
    expect(field(page, "name")).to_have_value("")
    expect(field(page, "name")).to_be_focused()


def test_without_txt2img_the_prompt_is_copied(served: tuple[Jobs, str], page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served[1])
    button(page, "use").click()
    expect(page.locator(".lt-v-said")).to_contain_text("The prompt and its settings are copied.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[0] == "zorp, blue background <lora:zorp-000003:0.8>"
    assert copied.splitlines()[-1] == "Steps: 20, Sampler: Euler a, CFG scale: 7, Size: 64x64, Seed: 1"


def test_settings_go_to_txt2img_through_the_webuis_own_button(page: Page) -> None:
    """Here a stand-in for the WebUI's fields; tests/webui/real presses the real button."""
    page.evaluate(
        """() => {
            const fields = document.createElement("div");
            fields.innerHTML = `<div id="txt2img_prompt"><textarea>my old prompt</textarea></div>
                <div id="txt2img_neg_prompt"><textarea></textarea></div>
                <div id="txt2img_tools"><button id="paste"></button></div>`;
            fields.querySelector("#paste").onclick = () => {
                window.pasted = fields.querySelector("textarea").value;
            };
            document.body.append(fields);
        }"""
    )
    button(page, "use").click()
    page.wait_for_function("window.pasted")
    pasted = page.evaluate("window.pasted").splitlines()
    assert pasted[0] == "zorp, blue background <lora:zorp-000003:0.8>"
    assert pasted[-1].startswith("Steps: 20, Sampler: Euler a, CFG scale: 7, Size: 64x64")
    assert "my old prompt" not in pasted


# ------------------------------------------------------------------ comparing
def pin_two(page: Page) -> Locator:
    press_cell(page, 1, 0)
    button(page, "pinA").click()
    expect(button(page, "flicker")).to_be_disabled()
    press_cell(page, 4, 3)
    button(page, "pinB").click()
    comparison = page.locator(".lt-v-compare")
    expect(comparison.locator("img")).to_have_count(2)
    return comparison


def test_two_cells_are_seen_side_by_side(page: Page) -> None:
    comparison = pin_two(page)
    left, right = boxes(*comparison.locator("img").all())
    assert left["x"] + left["width"] <= right["x"]
    assert all(is_loaded(picture) for picture in comparison.locator("img").all())
    expect(comparison).to_contain_text("A: epoch 1 · weight 0.3 · seed 1")
    expect(comparison).to_contain_text("B: epoch 4 · weight 1 · seed 1")
    button(page, "close").click()
    expect(comparison).to_be_empty()


def test_flicker_shows_one_after_the_other_until_it_is_stopped(page: Page) -> None:
    comparison = pin_two(page)
    button(page, "flicker").click()
    caption = comparison.locator("figcaption")
    expect(caption).to_have_text("A: epoch 1 · weight 0.3 · seed 1 · zorp, blue background")
    expect(comparison.locator("img").last).to_be_hidden()
    expect(caption).to_contain_text("B: ")
    expect(comparison.locator("img").first).to_be_hidden()
    expect(comparison.locator("img").last).to_be_visible()
    button(page, "stop").click()
    still = caption.inner_text()
    page.wait_for_timeout(1200)
    assert caption.inner_text() == still
    button(page, "stop").click()
    expect(caption).not_to_have_text(still)


def test_the_wipe_divides_the_pictures_where_its_slider_is(page: Page) -> None:
    comparison = pin_two(page)
    button(page, "wipe").click()
    comparison.locator("input[type=range]").fill("25")
    clip = comparison.locator("img").last.evaluate("image => getComputedStyle(image).clipPath")
    assert clip == "inset(0px 0px 0px 25%)"
    lower, upper = boxes(*comparison.locator("img").all())
    assert lower == upper


# ------------------------------------------------------------------ ranking
def test_the_ranking_is_sorted_by_any_number(page: Page, run: Run) -> None:
    rows = page.locator(".lt-v-ranking tbody tr")
    expect(rows).to_have_count(1 + 4 * 4)
    expect(page.locator(".lt-v-legend")).to_contain_text("leak Change of pictures without the trigger word")
    expect(rows.first).to_contain_text("epoch 3 · weight 0.8 ★")
    page.locator("[data-sort=effect]").click()
    expect(rows.first).to_contain_text("epoch 4 · weight 1")
    expect(rows.last).to_contain_text("no LoRA")
    page.locator("[data-sort=leak]").click()
    expect(rows.first).to_contain_text("epoch 1 · weight 0.3")
    page.locator("[data-sort=copy]").click()
    expect(rows.first).to_contain_text("no LoRA")
    press_cell(page, 2, 1)
    button(page, "voteUp").click()
    page.locator("[data-sort=votes]").click()
    expect(rows.first).to_contain_text("epoch 2 · weight 0.6")
    expect(rows.first.locator("td").last).to_have_text("+1")
    until(lambda: list(votes(run).values()) == [1])
    button(page, "voteUp").click()
    expect(rows.first.locator("td").last).to_have_text("0")
    until(lambda: votes(run) == {})
    rows.nth(3).locator("button").click()
    expect(chosen(page)).to_be_focused()


# ------------------------------------------------------------------ safety, size
def test_a_prompt_cannot_bring_markup_into_the_page(page: Page, run: Run) -> None:
    hostile = "<img src=x onerror=window.hacked=1> zorp </script><script>window.hacked=1</script>"
    try:
        make_grid(run, prompts=[hostile, "blue"])
        expect(page.locator(".lt-v-prompt")).to_have_text(hostile)
        page.locator("select[data-axis=rows]").select_option("prompt")
        assert page.evaluate("window.hacked") is None
        assert page.locator("#lora_train_grid img:not([src^='file='])").count() == 0
    finally:
        make_grid(run)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_viewer_fits_into_the_window(served: tuple[Jobs, str], page: Page, theme: str) -> None:
    page.goto(f"{served[1]}/?__theme={theme}", wait_until="domcontentloaded")
    choose_run(page, "zorp")
    try:
        for width in (1400, 800, 420):
            page.set_viewport_size({"width": width, "height": 1000})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            box = page.locator("#lora_train_grid .lt-v-detail").bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width
    finally:
        page.set_viewport_size({"width": 1400, "height": 1000})


def test_pictures_are_found_where_the_page_is_under_a_path_of_its_own(served: tuple[Jobs, str], page: Page) -> None:
    with standalone.serving(gr.mount_gradio_app(FastAPI(), standalone.page(served[0]), path="/sd")) as port:
        page.goto(f"http://127.0.0.1:{port}/sd/", wait_until="domcontentloaded")
        choose_run(page, "zorp")
        picture = page.locator(".lt-v-detail img")
        assert picture.evaluate("image => image.src").startswith(f"http://127.0.0.1:{port}/sd/file=/")
        assert is_loaded(picture)
        page.goto(served[1], wait_until="domcontentloaded")


def test_a_press_among_two_thousand_cells_touches_a_few_elements(
    page: Page, served: tuple[Jobs, str], tmp_path: Path
) -> None:
    jobs = served[0]
    run = jobs.runs.create(TrainConfig.from_dict(document(tmp_path, "big")), checkpoint={})
    run.update(state="done", now=True)
    make_files(run, tmp_path / "loras", 49)
    make_grid(run, weights=[round(0.1 + 0.02 * i, 2) for i in range(40)], prompts=["zorp"], seeds=[1], drawn=2000)
    page.reload()
    choose_run(page, "big")
    expect(cells(page)).to_have_count(50 * 40)
    touched = page.evaluate(
        """() => {
            const cells = document.querySelectorAll("td.lt-cell");
            const changes = new MutationObserver(() => {});
            const all = { attributes: true, childList: true, characterData: true, subtree: true };
            changes.observe(document.querySelector("#lora_train_grid"), all);
            const touched = (place) => {
                cells[place].click();
                const count = (change) => 1 + change.addedNodes.length + change.removedNodes.length;
                return changes.takeRecords().reduce((sum, change) => sum + count(change), 0);
            };
            return [7, 60, 900, 901, 951].map(touched);
        }"""
    )
    assert min(touched) > 0
    assert max(touched) < 200  # and not each of the cells
    pictures = page.locator("td.lt-cell img")
    assert set(pictures.evaluate_all("images => images.map((image) => image.loading)")) == {"lazy"}
    assert not pictures.last.evaluate("image => image.naturalWidth")  # far out of sight
