"""Pieces of the page: well-formed, right, and nothing from outside becomes markup."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.core.errors import ConfigErrors, InputError
from lora_trainer.core.i18n import translator
from lora_trainer.core.messages import Message
from lora_trainer.dataset.scan import Dataset, scan
from lora_trainer.runs.run import STATES
from lora_trainer.training.advice import Calculation
from lora_trainer.training.preflight import Estimate
from lora_trainer.ui.html import common
from lora_trainer.ui.html import run as views
from tests.helpers import data, draw_pictures, item
from tests.ui.markup import HOSTILE, Page

T = translator("en")
_FILE_NAMES = ["<img src=x onerror=alert(1)>", "'\" onload='alert(1)", "{} {0} {name}", "&lt;b&gt;", "汉服"]

hostile = pytest.mark.parametrize("text", HOSTILE)


def manifest(**values: Any) -> dict[str, Any]:
    usual = {"name": "zorp", "state": "running", "step": 5, "steps": 20, "epoch": 1, "epochs": 4, "loss": 0.1}
    return {**usual, "files": [], "validation": {}, "message": "", "phase": "training", **values}


def facts(card: str) -> list[str]:
    """The texts of the numbers in a card or report."""
    return [e.text for e in Page(card).all("span") if e.text and not e.attributes]


# ------------------------------------------------------------------ sentences
@hostile
def test_a_notice_is_its_text(text: str) -> None:
    notice = Page(common.notice(text, "error")).one("div", "lt-error")
    assert notice.text == text
    assert notice.attributes["role"] == "status"


def test_nothing_to_say_is_nothing_to_see() -> None:
    assert common.notice("") == views.advice_list([], None, T) == views.grid_status({}, T) == ""
    assert views.grid_status({"state": "done", "done": 4, "of": 4}, T) == ""
    assert views.files_table(manifest(), "zorp", T) == ""
    assert views.curves([], manifest(), T) == ""


@hostile
def test_an_errors_values_are_text(text: str) -> None:
    one = InputError("data.folder: {folder} does not exist.", field="data.folder", folder=text)
    assert Page(common.error_notice(one, T)).text == f"Picture folder: {text} does not exist."
    assert Page(common.error_notice(ConfigErrors([one, one]), T)).text.count(text) == 2


@hostile
def test_the_base_model_shows_name_and_hash_or_the_problem(text: str) -> None:
    health = {"checkpoint": {"name": text, "family": text, "sha256": text + "0123456789" * 2}, "problem": ""}
    page = Page(views.base_model(health, T))
    assert page.one("b").text == text
    assert page.one("span").text == text
    assert page.one("code").text == (text + "0123456789")[:10]
    assert Page(views.base_model({"checkpoint": None, "problem": text}, T)).text == text


# ------------------------------------------------------------------ advice
@hostile
def test_advice_has_a_line_for_each_remark(text: str) -> None:
    found = [
        Message("The trigger {trigger} is common.", {"trigger": text}, field="data.trigger"),
        Message("Second.", field="x"),
    ]
    page = Page(views.advice_list(found, None, T))
    assert [e.text for e in page.all("li")] == [f"The trigger {text} is common.", "Second."]


def test_the_step_calculator_shows_its_numbers_and_praises_what_is_sound() -> None:
    page = Page(views.advice_list([], Calculation(24, 12, 6, 10, 12_345, 11), T))
    assert [e.text for e in page.all("b")] == ["24", "6", "10", "12,345", "11"]
    assert page.all("div", "lt-good")
    warned = Page(views.advice_list([Message("But.", field="x")], Calculation(24, 12, 6, 10, 60, 11), T))
    assert not warned.all("div", "lt-good")


# ------------------------------------------------------------------ the data set
@pytest.mark.parametrize("name", _FILE_NAMES)
@hostile
def test_captions_and_file_names_are_text(tmp_path: Path, name: str, text: str) -> None:
    picture = tmp_path / f"{name}.png"
    Image.new("RGB", (64, 64)).save(picture)
    shown = item(str(picture), size=(64, 64), caption=text)
    broken = item(str(tmp_path / f"gone {name}.png"), caption=text)
    page = Page(views.dataset_report(Dataset(tmp_path, [shown, broken], uncaptioned=[picture]), T))
    good, bad = page.all("figure")
    assert good.attributes["title"] == f"{name}.png: {text}"
    assert good.text.endswith(f"512×512 {text}")
    assert f"gone {name}.png" in bad.attributes["title"]


@pytest.mark.parametrize("name", _FILE_NAMES)
def test_what_is_left_out_is_said_with_its_name(tmp_path: Path, name: str) -> None:
    draw_pictures(tmp_path, count=1, size=(64, 64))
    (tmp_path / f"{name}.png").write_bytes(b"not a picture")
    page = Page(views.dataset_report(scan(data(folder=str(tmp_path), resolution=64, bucket_step=32)), T))
    (problem,) = page.all("li")
    assert f"{name}.png is not a readable picture" in problem.text


def test_the_report_counts_pictures_repeats_buckets_and_what_is_skipped(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "3_zorp", count=2, size=(64, 64))
    draw_pictures(tmp_path / "1_wide", count=1, size=(128, 64), captions=False)
    draw_pictures(tmp_path, count=1, size=(64, 64))
    (tmp_path / "1_wide" / "bad.png").write_bytes(b"")
    page = Page(views.dataset_report(scan(data(folder=str(tmp_path), resolution=64, bucket_step=32)), T))
    counts = Page(views.dataset_report(scan(data(folder=str(tmp_path), resolution=64, bucket_step=32)), T)).all("span")
    assert [e.text.split()[0] for e in counts[:4]] == ["3", "7", "2", "1"]
    assert [e.text for e in page.all("span") if "×" in e.text and "x" in e.text] == ["64x64 × 6", "96x32 × 1"]
    lines = [e.text for e in page.all("li")]
    assert len(lines) == 3  # damaged, outside, without a caption
    assert len(page.all("figure")) == 3


def test_pictures_that_are_enlarged_are_counted(tmp_path: Path) -> None:
    draw_pictures(tmp_path, count=2, size=(64, 64))
    (line,) = Page(views.dataset_report(scan(data(folder=str(tmp_path), resolution=96, bucket_step=32)), T)).all("li")
    assert line.text.startswith("2 pictures are smaller than their bucket and are enlarged, 00.png most (1.50×);")
    assert line.text.endswith("or switch “Enlarge small pictures” off.")


def test_report_names_guesses_first_and_says_how_many_broken_pictures_more(tmp_path: Path) -> None:
    draw_pictures(tmp_path, 1, (64, 64))
    (tmp_path / "00.txt").write_bytes("café <b>".encode("cp1252"))
    for number in range(30):
        (tmp_path / f"broken{number:02d}.png").write_bytes(b"x")
    settings = data(folder=str(tmp_path), resolution=64, bucket_step=32)
    lines = [line.text for line in Page(views.dataset_report(scan(settings), T)).all("li")]
    assert "read as cp1252 by guessing (1): 00.txt" in lines[0]
    assert sum("is not a readable picture" in line for line in lines) == 20
    assert lines[-1] == "… and 10 more."


def test_a_thumbnail_is_small_and_shows_the_part_that_is_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (800, 400), "red").save(path)
    settings = data(resolution=64, buckets=False)
    page = Page(views.dataset_report(Dataset(tmp_path, [item(str(path), (800, 400), settings=settings)]), T))
    source = page.one("img").attributes["src"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source))) as thumbnail:
        assert thumbnail.size == (96, 48)
    assert page.one("i").attributes["style"] == "left:25.0%;top:0.0%;width:50.0%;height:100.0%"


def test_of_many_pictures_some_are_shown_and_the_rest_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_THUMBNAILS", 2)
    draw_pictures(tmp_path, count=5, size=(64, 64))
    page = Page(views.dataset_report(scan(data(folder=str(tmp_path))), T))
    assert len(page.all("figure")) == 2
    assert "3 more" in page.all("div", "lt-notice")[-1].text
    draw_pictures(tmp_path / "few", count=2, size=(64, 64))
    assert "more" not in Page(views.dataset_report(scan(data(folder=str(tmp_path / "few"))), T)).text


# ------------------------------------------------------------------ a run
@hostile
def test_a_runs_name_and_message_are_text(text: str) -> None:
    page = Page(views.status_card(manifest(name=text, state="failed", message=text), 0, T))
    assert page.all("b")[0].text == text
    assert page.one("div", "lt-error").text == text


@hostile
def test_a_translated_error_of_a_run_keeps_its_values_as_text(text: str) -> None:
    error = {"template": "The VAE gives NaN for {path}.", "field": "", "values": {"path": text}}
    page = Page(views.status_card(manifest(state="failed", message="English", error=error), 0, T))
    assert page.one("div", "lt-error").text == f"The VAE gives NaN for {text}."


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("phase", ["", None, "pictures", "latents", "training", "unheard of"])
def test_every_state_and_phase_has_a_card(state: str, phase: str | None) -> None:
    fresh = manifest(state=state, phase=phase, step=0, steps=0, epoch=0)
    page = Page(views.status_card(fresh, 0, T))
    assert page.one("span", f"lt-{state}").text
    assert page.one("i").attributes["style"] in ("width:0.0%", "width:100.0%" if state == "done" else "width:0.0%")


def test_the_bar_shows_steps_and_before_them_the_preparation() -> None:
    for values, width in (
        ({"step": 5, "steps": 20}, "25.0%"),
        ({"phase": "latents", "phase_done": 3, "phase_total": 4}, "75.0%"),
        ({"phase": "latents"}, "0.0%"),
        ({"state": "stopped", "phase": "latents", "phase_done": 3, "phase_total": 4}, "25.0%"),
    ):
        assert Page(views.status_card(manifest(**values), 0, T)).one("i").attributes["style"] == f"width:{width}"


def test_a_waiting_run_says_how_many_are_before_it() -> None:
    assert "3 before it" in Page(views.status_card(manifest(state="queued"), 3, T)).text
    assert "before it" not in Page(views.status_card(manifest(state="queued"), 0, T)).text
    assert "before it" not in Page(views.status_card(manifest(state="running"), 3, T)).text


def test_the_card_has_speed_times_losses_and_rates() -> None:
    values = {"steps_per_second": 2.0, "seconds": 61, "seconds_left": 3599.6, "loss_average": 0.12345}
    card = views.status_card(
        manifest(**values, validation={"last": 0.2, "base": 0.25}, lr={"unet": 1e-4, "text": 5e-6}), 0, T
    )
    shown = [text.split()[0] for text in facts(card)]
    assert {"5/20", "1/4", "2.00/s", "1:01", "1:00:00", "0.1235", "0.2000", "0.2500", "0.0001"} <= {*shown}
    assert "5 × 10⁻⁶ Text encoder learning rate" in facts(card)
    assert "1:00:00" not in Page(views.status_card(manifest(**values, state="paused"), 0, T)).text


def test_a_slow_run_counts_seconds_a_step_instead_of_steps_a_second() -> None:
    assert any(text.startswith("4.0 s") for text in facts(views.status_card(manifest(steps_per_second=0.25), 0, T)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (90_000, "25:00:00"),
    ],
)
def test_durations_are_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert common.duration(seconds) == text


@given(st.floats(0, 1e9))
def test_a_duration_is_right_to_the_second(seconds: float) -> None:
    text = common.duration(seconds)
    assert re.fullmatch(r"(\d+:[0-5]\d|[1-5]?\d):[0-5]\d", text)
    parts = [int(part) for part in text.split(":")]
    assert abs(sum(part * 60**power for power, part in enumerate(reversed(parts))) - seconds) <= 0.5


# ------------------------------------------------------------------ curves
def entries(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"step": n, "loss": 1 / n, "lr": {"unet": 1e-4, "text": 0.0}, **values} for n in range(1, count + 1)]


def test_losses_rates_and_validation_have_a_chart_each() -> None:
    log = [*entries(10), {"step": 0, "validation": 0.3, "base": True}, {"step": 10, "validation": 0.2}]
    page = Page(views.curves(log, manifest(validation={"base": 0.3, "last": 0.2}), T))
    assert len(page.all("svg")) == 3
    lines = [len(e.attributes["points"].split()) for e in page.all("polyline")]
    assert lines == [10, 10, 2, 1, 10, 10]  # loss, its average; without LoRA, held out; two rates


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "high"])
def test_a_loss_that_is_no_number_leaves_the_others_to_be_seen(loss: object) -> None:
    log = entries(6)
    log[2]["loss"] = loss
    page = Page(views.curves(log, manifest(), T))
    each, average, *_ = page.all("polyline")
    assert len(each.attributes["points"].split()) == 5
    assert len(average.attributes["points"].split()) >= 4


def test_a_log_of_100000_steps_is_drawn_with_a_few_hundred_points() -> None:
    page = Page(views.curves(entries(100_000), manifest(steps=100_000), T))
    assert all(len(e.attributes["points"].split()) <= 400 for e in page.all("polyline"))


@hostile
def test_names_of_rates_are_text(text: str) -> None:
    log = [{"step": 1, "loss": 0.5, "lr": {text: 1e-4}}, {"step": 2, "loss": 0.4, "lr": {"unet": 1e-4}}]
    page = Page(views.curves(log, manifest(), T))
    assert any(text in e.text for e in page.all("span", "lt-key"))
    assert text in Page(views.status_card(manifest(lr={text: 1e-4}), 0, T)).text


# ------------------------------------------------------------------ files and grid
def lora(stem: str, epoch: int = 1, validation: float | None = None, loss: float | None = 0.5) -> dict[str, Any]:
    metrics = {"loss": loss, "validation": validation}
    return {"path": f"/models/Lora/x/{stem}.safetensors", "epoch": epoch, "step": 10 * epoch, "metrics": metrics}


@pytest.mark.parametrize("stem", _FILE_NAMES)
@hostile
def test_the_prompt_of_a_file_is_shown_and_sent_as_it_is(stem: str, text: str) -> None:
    page = Page(views.files_table(manifest(files=[lora(stem)]), text, T))
    assert page.one("code").text == page.one("button").attributes["data-prompt"] == f"<lora:{stem}:0.8> {text}"


def test_the_newest_file_comes_first_and_the_lowest_validation_loss_is_marked() -> None:
    files = [lora("a", 1, 0.3), lora("b", 2, 0.1), lora("c", 3, 0.2), lora("d", 4, None, None)]
    page = Page(views.files_table(manifest(files=files), "", T))
    rows = [e.text for e in page.all("tr")[1:]]
    assert [row[0] for row in rows] == ["4", "3", "2", "1"]
    assert "lowest" in rows[2]
    assert len(page.all("span", "lt-badge")) == 1
    assert rows[0].count("–") == 2
    assert page.all("code")[0].text == "<lora:d:0.8>"


def test_without_validation_no_file_is_called_the_lowest() -> None:
    files = [lora("a"), {"path": "/x/old.safetensors", "epoch": 1, "step": 1}]
    assert not Page(views.files_table(manifest(files=files), "", T)).all("span")


@hostile
def test_a_grid_says_how_far_it_is_or_why_it_failed(text: str) -> None:
    assert "3 of 12" in Page(views.grid_status({"state": "running", "done": 3, "of": 12}, T)).text
    failed = {"state": "failed", "message": text, "error": {}, "done": 3, "of": 12}
    assert Page(views.grid_status(failed, T)).one("div", "lt-error").text == text


# ------------------------------------------------------------------ any language
@pytest.mark.parametrize("text", HOSTILE[:3])
def test_a_translation_cannot_bring_markup_either(tmp_path: Path, text: str) -> None:
    def translate(template: str, /, **values: Any) -> str:
        return text

    draw_pictures(tmp_path, count=2, size=(64, 64), captions=False)
    dataset = scan(data(folder=str(tmp_path), trigger="zorp"))
    card = manifest(lr={"unet": 1.0}, seconds=5, seconds_left=5, validation={"base": 1.0, "last": 1.0})
    for markup in (
        views.dataset_report(dataset, translate),
        views.status_card(card, 0, translate),
        views.status_card({**card, "state": "queued"}, 2, translate),
        views.curves(entries(3), card, translate),
        views.files_table(manifest(files=[lora("a", 1, 0.3)]), "", translate),
        views.grid_status({"state": "running", "done": 1, "of": 2}, translate),
        views.advice_list([Message("y", field="x")], Calculation(1, 1, 1, 1, 1, 1), translate),
        views.base_model({"checkpoint": {"name": "a", "family": "b", "sha256": "c"}, "problem": ""}, translate),
    ):
        assert text in Page(markup).text


@pytest.mark.parametrize(
    ("changes", "fits", "part", "kind"),
    [
        ({}, True, "It fits.", "lt-good"),
        (
            {"training.batch_size": 1, "training.checkpointing": True},
            True,
            "Gradient checkpointing = true",
            "lt-warning",
        ),
        ({}, False, "does not fit", "lt-error"),
    ],
)
def test_an_estimate_says_what_to_change(changes: dict[str, object], fits: bool, part: str, kind: str) -> None:
    seconds = (0.25, 300.0) if fits else (None, None)
    measured = Estimate("cuda:0", 1200, *seconds, needed=5_250_000_000, free=7_900_000_000, changes=changes, fits=fits)
    page = views.estimate(measured, T)
    assert part in Page(page).one("div", kind).text
    assert facts(page)[:2] == ["5.2 GB memory needed", "7.9 GB free"]
    assert ("5:00 for all steps" in facts(page)) is fits


@pytest.mark.parametrize(
    ("needed", "expected", "shown"),
    [
        (5_250_000_000, 5_000_000_000, ["5.2 GB memory needed", "5.0 GB expected by computation", "7.9 GB free"]),
        (None, 25_000_000_000, ["25.0 GB expected by computation", "7.9 GB free"]),
    ],
    ids=["both", "not tried"],
)
def test_an_estimate_names_what_was_measured_and_what_computed(
    needed: int | None, expected: int, shown: list[str]
) -> None:
    estimate = Estimate("cuda:0", 1, None, None, needed, 7_900_000_000, fits=needed is not None, expected=expected)
    assert facts(views.estimate(estimate, T)) == shown
