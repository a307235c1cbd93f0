"""The page, used in a real browser as a person would."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from lora_trainer.jobs.service import Jobs
from lora_trainer.ui import standalone
from tests.helpers import LIMIT, draw_pictures
from tests.runs_helpers import document, make_jobs, run_to_end
from tests.ui.browser import NO_BROWSER, boxes, choose, chromium, field, fill, open_page, part

if not chromium():
    warnings.warn(NO_BROWSER, stacklevel=1)
    pytest.skip(NO_BROWSER, allow_module_level=True)

expect.set_options(timeout=LIMIT * 1000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[tuple[Jobs, str]]:
    jobs = make_jobs(root)
    with standalone.serving(standalone.application(standalone.page(jobs))) as port:
        yield jobs, f"http://127.0.0.1:{port}"


@pytest.fixture
def page(served: tuple[Jobs, str], browser: Browser) -> Iterator[Page]:
    with open_page(served[1], browser=browser) as opened:
        yield opened


def short_run(page: Page, root: Path, name: str, **values: object) -> None:
    folder = document(root)["data"]["folder"]
    settings = {"data__folder": folder, "data__resolution": 64, "data__trigger": "zorp", "training__epochs": 2}
    fill(page, **{"name": name, **settings, "training__text_lr": 0, **values})


def test_the_seven_steps_are_there_in_order(page: Page) -> None:
    titles = page.locator("#lora_train .label-wrap > span:first-child").all_inner_texts()
    steps = [title for title in titles if re.match(r"\d ·", title)]
    assert [step[0] for step in steps] == list("1234567")


def test_a_run_from_the_page_to_its_file(page: Page, root: Path, served: tuple[Jobs, str]) -> None:
    short_run(page, root, "fromthepage", samples__prompts="zorp", validation__share=0.2)
    page.locator("#lora_train_start").click()
    expect(part(page, "#lora_train_status")).to_contain_text("fromthepage")
    expect(part(page, "#lora_train_status")).to_contain_text("Done")
    expect(part(page, "#lora_train_feedback")).to_have_text("")
    assert served[0].runs.get("fromthepage").state == "done"
    expect(part(page, "#lora_train_curves").locator("svg")).to_have_count(3)
    expect(part(page, "#lora_train_files")).to_contain_text("<lora:fromthepage:0.8> zorp")
    expect(page.locator("#lora_train_samples img").first).to_be_visible()
    page.reload()
    expect(part(page, "#lora_train_status")).to_contain_text("fromthepage")


def test_stop_and_keep(page: Page, root: Path, served: tuple[Jobs, str]) -> None:
    short_run(page, root, "stopped", training__epochs=5000)
    page.locator("#lora_train_start").click()
    expect(part(page, "#lora_train_status")).to_contain_text("time left")
    page.locator("#lora_train_stop").click()
    expect(part(page, "#lora_train_status")).to_contain_text("Stopped")
    assert served[0].runs.get("stopped").manifest["files"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": ""}, "give the LoRA a name"),
        ({"name": "a/b"}, "cannot be a file name"),
        ({"data__folder": "/no/such/folder"}, "does not exist"),
        ({"training__optimizer_args": "weight_decay"}, "write it as name = value"),
    ],
)
def test_bad_input_is_said_beside_the_button(page: Page, root: Path, values: dict[str, str], sentence: str) -> None:
    page.get_by_text("More parameters").click()
    short_run(page, root, **{"name": "wrong", **values})  # type: ignore[arg-type]
    page.locator("#lora_train_start").click()
    expect(part(page, "#lora_train_feedback .lt-error")).to_contain_text(sentence)


def test_checking_the_pictures_shows_each_with_its_bucket(page: Page, root: Path) -> None:
    short_run(page, root, "check")
    page.locator("#lora_train_check").click()
    expect(part(page, "#lora_train_report").locator("figure")).to_have_count(5)
    expect(part(page, "#lora_train_report")).to_contain_text("64×64")
    expect(part(page, "#lora_train_advice")).to_contain_text("steps in all")


def test_a_caption_cannot_bring_markup_into_the_page(page: Page, root: Path) -> None:
    folder = Path(document(root)["data"]["folder"])
    caption = folder / "00.txt"
    before = caption.read_text(encoding="utf-8")
    caption.write_text("<img src=x onerror=window.hacked=1>, <script>window.hacked=1</script>", encoding="utf-8")
    try:
        short_run(page, root, "markup")
        page.locator("#lora_train_check").click()
        expect(part(page, "#lora_train_report").locator("figure")).to_have_count(5)
        assert page.evaluate("window.hacked") is None
        assert page.locator("#lora_train_report img:not([src^='data:'])").count() == 0
    finally:
        caption.write_text(before, encoding="utf-8")


def test_warnings_follow_the_form(page: Page, root: Path) -> None:
    short_run(page, root, "warned", network__rank=256)
    expect(part(page, "#lora_train_advice")).to_contain_text("Rank 256 is high")
    fill(page, network__rank=8)
    expect(part(page, "#lora_train_advice")).not_to_contain_text("is high for")


def test_a_preset_fills_the_form_and_can_be_saved(page: Page, served: tuple[Jobs, str]) -> None:
    choose(page, "preset", "style")
    expect(field(page, "network.rank")).to_have_value("32")
    expect(field(page, "training.text_lr")).to_have_value("0")
    fill(page, network__rank=48)
    page.get_by_text("Save, download or upload presets").click()
    page.locator("#lora_train_preset_name").locator("input, textarea").fill("mine")
    page.get_by_role("button", name="Save preset").click()
    expect(part(page, "#lora_train_feedback")).to_contain_text("mine.toml")
    assert "rank = 48" in (served[0].host.folders.presets / "mine.toml").read_text(encoding="utf-8")


def test_a_grid_is_drawn_and_shown(page: Page, root: Path, served: tuple[Jobs, str]) -> None:
    if "gridded" not in served[0].runs.names():
        run_to_end(root, "gridded")
    page.reload()
    expect(part(page, "#lora_train_status")).to_contain_text("Done")
    choose(page, "run", "gridded")
    page.locator("#lora_train_weights").locator("input, textarea").fill("0.5, 1")
    page.locator("#lora_train_draw").click()
    expect(page.locator("#lora_train_grid td.lt-cell img")).to_have_count(4)
    expect(part(page, "#lora_train_grid_verdict")).to_contain_text("Sheet (PNG)")


def test_a_reload_keeps_the_form(page: Page, root: Path) -> None:
    page.get_by_text("More parameters").click()
    values = {"name": "kept_汉服", "network__rank": 24, "training__optimizer_args": "weight_decay = 0.1"}
    fill(page, samples__prompts="one\ntwo", **values)
    choose(page, "training_scheduler", "linear")
    page.locator("#lora_train_data_flip input").check()
    page.locator("#lora_train_grid_epochs").locator("input, textarea").fill("1-3")
    page.wait_for_function("(localStorage.getItem('lora_train_form') || '').includes('1-3')")
    page.reload()
    for key, value in {**values, "training__scheduler": "linear", "samples__prompts": "one\ntwo"}.items():
        expect(field(page, key.replace("__", "."))).to_have_value(str(value))
    expect(page.locator("#lora_train_data_flip input")).to_be_checked()
    expect(page.locator("#lora_train_grid_epochs").locator("input, textarea")).to_have_value("1-3")
    other = page.context.browser.new_context().new_page()  # another person's browser
    other.goto(page.url, wait_until="domcontentloaded")
    expect(field(other, "network.rank")).to_have_value("16")


def test_the_table_of_runs_chooses_and_a_run_is_deleted_after_asking(
    page: Page, root: Path, served: tuple[Jobs, str]
) -> None:
    for name in ("mine", "kept"):
        if name not in served[0].runs.names():
            run_to_end(root, name)
    page.reload()
    page.locator("#lora_train_all_runs .label-wrap").click()
    page.locator(".lt-choose[data-run=mine]").click()
    expect(part(page, "#lora_train_status")).to_contain_text("mine")
    page.locator("#lora_train_delete").click()
    expect(part(page, "#lora_train_question")).to_contain_text("Delete mine?")
    page.locator("#lora_train_no").click()
    expect(page.locator("#lora_train_yes")).to_be_hidden()
    assert "mine" in served[0].runs.names()
    page.locator("#lora_train_delete").click()
    page.locator("#lora_train_yes").click()
    expect(part(page, "#lora_train_feedback")).to_contain_text(".trash")
    expect(page.locator(".lt-choose[data-run=mine]")).to_have_count(0)
    assert "mine" not in served[0].runs.names()
    assert "kept" in served[0].runs.names()


def test_a_sweep_by_labels_tells_its_runs_before(page: Page) -> None:
    page.get_by_text("Several runs, to compare settings").click()
    fill(page, name="many")
    choose(page, "sweep_setting", "Rank")
    page.locator("#lora_train_sweep_values").locator("input, textarea").fill("4, 8, 12")
    page.locator("#lora_train_sweep_add").click()
    expect(page.locator("#lora_train_sweep").locator("textarea")).to_have_value("Rank = 4, 8, 12")
    expect(part(page, "#lora_train_sweep_count")).to_contain_text("Train starts 3 runs: many-rank4")


def test_a_preset_is_downloaded_and_uploaded(page: Page, served: tuple[Jobs, str], tmp_path: Path) -> None:
    page.get_by_text("Save, download or upload presets").click()
    fill(page, network__rank=37)
    page.locator("#lora_train_preset_name").locator("input, textarea").fill("carried")
    with page.expect_download() as download:
        page.locator("#lora_train_preset_download").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert "rank = 37" in path.read_text(encoding="utf-8")
    page.locator("#lora_train_defaults").click()
    expect(field(page, "network.rank")).to_have_value("16")
    page.locator("#lora_train_presets input[type=file]").set_input_files(path)
    expect(field(page, "network.rank")).to_have_value("37")
    assert (served[0].host.folders.presets / "carried.toml").is_file()


def test_proposed_values_are_taken_by_one_press(page: Page, tmp_path: Path) -> None:
    draw_pictures(tmp_path, count=16, size=(64, 64))
    choose(page, "preset", "character")
    fill(page, data__folder=tmp_path, data__trigger="zorp_")
    page.locator("#lora_train_check").click()
    expect(part(page, "#lora_train_proposals")).to_contain_text("a character")
    page.locator("#lora_train_take").click()
    expect(field(page, "data.repeats")).to_have_value("25")
    expect(page.locator("#lora_train_take")).to_be_hidden()
    expect(part(page, "#lora_train_advice")).to_contain_text("880 steps in all")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 800, 420])
def test_nothing_is_wider_than_the_window(served: tuple[Jobs, str], browser: Browser, width: int, dark: bool) -> None:
    with open_page(served[1], width, dark=dark, browser=browser) as page:
        expect(part(page, "#lora_train_base")).to_contain_text("small-sd1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


TOPS = """() => [...document.querySelectorAll("#lora_train .form")].flatMap((form) => {
    const inputs = [...form.children].filter((block) => block.offsetParent).flatMap((block) => {
        const input = block.querySelector("label.container > :is(input, textarea, .wrap)");
        return input ? [[block.getBoundingClientRect().top, input.getBoundingClientRect().bottom]] : [];
    });
    const rows = new Map();
    for (const [top, bottom] of inputs) rows.set(Math.round(top), [...(rows.get(Math.round(top)) || []), bottom]);
    return [...rows.values()].map((bottoms) => Math.max(...bottoms) - Math.min(...bottoms));
})"""


@pytest.mark.parametrize("width", [1400, 800])
def test_inputs_of_a_row_stand_on_one_line(served: tuple[Jobs, str], browser: Browser, width: int) -> None:
    with open_page(served[1], width, browser=browser) as page:
        expect(part(page, "#lora_train_base")).to_contain_text("small-sd1")
        apart = page.evaluate(TOPS)
        assert len(apart) > 8
        assert max(apart) <= 4  # a list and a number differ by their frames


def test_polls_do_not_make_the_page_blink(page: Page) -> None:
    """Gradio gives what waits for an answer this class and a fifth of its opacity."""
    status = page.locator("#lora_train_status > .prose, #lora_train_status .pending, #lora_train_status > div").last
    status.evaluate("element => element.classList.add('pending')")
    page.wait_for_timeout(300)  # gradio fades for 150 ms
    assert status.evaluate("element => getComputedStyle(element).opacity") == "1"


def test_the_sticky_heads_are_opaque_in_the_webuis_colours_too(page: Page) -> None:
    """Whose block fill is transparent (its style.css)."""
    page.add_style_tag(content=":root, .dark { --block-background-fill: transparent !important; }")
    solid = page.locator("#lora_train").evaluate(
        "element => { const head = document.createElement('div'); head.style.background = 'var(--lt-solid)';"
        " element.append(head); const color = getComputedStyle(head).backgroundColor; head.remove(); return color; }"
    )
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", solid)


def test_at_800_px_loss_and_step_of_the_files_are_in_sight(
    root: Path, served: tuple[Jobs, str], browser: Browser
) -> None:
    if "a-run-with-a-long-name-as-people-give" not in served[0].runs.names():
        run_to_end(root, "a-run-with-a-long-name-as-people-give", validation__share=0.4)
    with open_page(served[1], 800, browser=browser) as page:
        choose(page, "run", "a-run-with-a-long-name-as-people-give")
        cell = page.locator("#lora_train_files td").last
        expect(cell).to_be_visible()
        box, table = boxes(cell, page.locator("#lora_train_files .lt-scroll").first)
        assert box["x"] + box["width"] <= table["x"] + table["width"] + 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 800


def test_what_is_wrong_stands_at_the_field_and_goes_when_it_is_changed(page: Page, root: Path) -> None:
    fold = page.get_by_text("More parameters")
    fold.click()
    short_run(page, root, "wrong", network__rank=0, training__clip_skip=99)
    fold.click()
    page.locator("#lora_train_start").click()
    rank, skip = page.locator("#lora_train_network_rank"), page.locator("#lora_train_training_clip_skip")
    expect(rank.locator(".lt-wrong-text")).to_have_text("Rank: 0 is out of range; use 1 to 512.")
    expect(skip.locator(".lt-wrong-text")).to_be_visible()  # in a fold, which opens
    expect(part(page, "#lora_train_feedback .lt-error")).to_contain_text("Clip skip")
    assert page.locator(".toast-wrap .error").count() == 0
    fill(page, network__rank=8, training__clip_skip=1)
    expect(page.locator("#lora_train .lt-wrong-text")).to_have_count(0)


def test_gradio_puts_in_all_parts_of_the_page_at_one_time(page: Page) -> None:
    """The scripts look for the other parts as soon as the tab is there (lora_train.js, whenMade)."""
    page.add_init_script(
        """new MutationObserver(() => {
            if (window.whole !== undefined || !document.querySelector("#lora_train")) return;
            window.whole = Boolean(document.querySelector("#lora_train_keep"));
        }).observe(document, { childList: true, subtree: true });"""
    )
    page.reload()
    page.wait_for_function("window.whole !== undefined")
    assert page.evaluate("whole")
