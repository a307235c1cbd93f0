"""The block panel: what it shows of runs and documents, and what its buttons do. The browser's part is at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import file_hash
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.block_work import blocks_folder
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.types.base import scaled_alpha
from lora_trainer.runs.run import Run
from lora_trainer.ui import standalone
from lora_trainer.ui.html.blocks import analysis_report, blocks_status, heat_table, tuning_report
from lora_trainer.ui.panels.blocks import BlocksPanel
from tests.helpers import CHECKPOINT
from tests.network.made import KEYS, some_lora
from tests.runs_helpers import document as run_document
from tests.ui import watched
from tests.ui.blocks_page import blocks_page
from tests.ui.browser import NO_BROWSER, choose, chromium, open_page, part
from tests.ui.markup import HOSTILE, Page

LBW = "1,0.5,1,1,1,1,1,0,1,1,1,1,1,1,1,1,1"
EN = translator("en")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(StandaloneHost(tmp_path, str(CHECKPOINT)))


@pytest.fixture
def panel(jobs: Jobs) -> BlocksPanel:
    """The panel of a host with one run of two files."""
    make_run(jobs, "zorp")
    return blocks_page(jobs)[1]


def make_run(jobs: Jobs, name: str) -> Run:
    run = jobs.runs.create(TrainConfig.from_dict(run_document(jobs.runs.root.parent, name)))
    folder = jobs.host.folders.loras / name
    folder.mkdir(parents=True)
    for epoch, stem in ((1, f"{name}-000001"), (2, name)):
        path = folder / f"{stem}.safetensors"
        save_file(some_lora(seed=epoch), path)
        run.add_file({"path": str(path), "epoch": epoch, "step": 5 * epoch, "sha256": file_hash(path)})
    run.update(state="done", now=True)
    return run


def write(run: Run, kind: str, document: dict[str, Any], stem: str = "zorp") -> None:
    entry = next(e for e in run.manifest["files"] if Path(e["path"]).stem == stem)
    path = blocks_folder(run) / stem / f"{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**document, "sha256": entry["sha256"]}), encoding="utf-8")


def analysis(folder: Path, prompts: tuple[str, ...] = ("zorp", "dog"), leak: bool = True) -> dict[str, Any]:
    picture = folder / "picture.png"
    Image.new("RGB", (200, 100), "red").save(picture)
    numbers = {"rms": 0.2, "rms_sd": 0.01, "share": 0.4, "share_sd": 0.0}
    less = {**numbers, "rms": 0.05}
    shown = [
        {"only": str(picture), "without": str(picture), "difference": str(picture if number else folder / "gone.png")}
        for number, _ in enumerate(prompts)
    ]
    entries = [
        {"block": block, "rank": rank, "effect": 0.1, "only": numbers, "without": less,
         "pictures": shown, "leak": {"only": numbers, "without": less} if leak else None}
        for rank, block in enumerate(("M00", "TE1"), start=1)
    ]  # fmt: skip
    return {
        "requests": [{"prompt": p, "seed": 1, "full": str(picture), "none": str(picture)} for p in prompts],
        "gain": 4,
        "all": numbers,
        "all_leak": less if leak else None,
        "blocks": entries,
        "notes": [{"template": "Most of what the LoRA does comes from {blocks}.", "values": {"blocks": "M00"}}],
    }


def tuning(**changes: Any) -> dict[str, Any]:
    compared = {"before": 0.5, "after": 0.4, "improvement": 0.1, "error": 0.02, "relative": 0.2, "state": "helps"}
    return {
        "weight": 0.8,
        "losses": {"base": 0.6, "before": 0.5, "fitted": 0.3},
        "weights": {"TE1": 1.0, "IN01": 0.5, "M00": 0.0},
        "lbw": LBW,
        "prompt": f"<lora:zorp:0.8:lbw={LBW}>",
        "tuned": compared,
        "single": {**compared, "name": "0.9", "prompt": "<lora:zorp:0.72>"},
        "preset": {**compared, "name": "OUTS", "prompt": "<lora:zorp:0.8:lbw=OUTS>"},
        "recommended": "tuned",
        "sentences": [{"template": "Use the learned block weights: {prompt}", "values": {"prompt": "<lora>"}}],
        **changes,
    }


def poll(
    panel: BlocksPanel, run: str | None = None, file: str | None = None, request: str | None = None, seen: Any = None
) -> dict[str, Any]:
    """What a poll shows of a run's file."""
    return watched.poll(panel.watch, run, file, request, seen=seen)


# ------------------------------------------------------------------ polling
def test_the_heat_map_is_there_at_once_and_left_alone_then(panel: BlocksPanel, jobs: Jobs) -> None:
    shown = poll(panel)
    assert (shown["run"]["value"], shown["file"]["value"]) == ("zorp", "zorp")
    page = Page(shown["heat"])
    assert len(page.all("tr")) == 3
    assert [e.text for e in page.all("th") if e.text in ("TE1", "IN01", "M00", "OUT03")] == [
        "TE1",
        "IN01",
        "M00",
        "OUT03",
    ]
    assert poll(panel, "zorp", "zorp", None, shown["marks"]).keys() == {"marks"}
    again = poll(panel, "zorp", "zorp-000001", None, shown["marks"])
    assert "heat" in again
    assert "run" not in again


def test_another_run_has_its_own_files(panel: BlocksPanel, jobs: Jobs) -> None:
    make_run(jobs, "other")
    shown = poll(panel, "other", "zorp")
    assert (shown["file"]["value"], shown["file"]["choices"]) == ("other", ["other-000001", "other"])
    assert "value" not in shown["run"]  # what the person chose is left alone
    for wrong in ("nobody", "../.."):
        assert poll(panel, wrong)["run"]["value"] in ("zorp", "other")


def test_without_runs_nothing_can_be_pressed(jobs: Jobs) -> None:
    panel = blocks_page(jobs)[1]
    shown = poll(panel)
    assert "No run yet" in Page(shown["heat"]).text
    assert not shown["analyze"]["interactive"]
    assert not shown["tune"]["interactive"]
    assert not shown["bake"]["visible"]


def test_documents_are_shown_when_they_are_there(panel: BlocksPanel, jobs: Jobs, tmp_path: Path) -> None:
    run = jobs.runs.get("zorp")
    first = poll(panel, "zorp", "zorp")
    assert (first["analysis"], first["tuning"]) == ("", "")
    write(run, "analysis", analysis(tmp_path))
    write(run, "tuning", tuning())
    shown = poll(panel, "zorp", "zorp", None, first["marks"])
    assert shown["request"]["choices"] == ["zorp · 1", "dog · 1"]
    assert shown["bake"]["visible"]
    assert "M00" in Page(shown["analysis"]).text
    assert LBW in Page(shown["tuning"]).text
    other = poll(panel, "zorp", "zorp-000001", None, shown["marks"])
    assert (other["analysis"], other["tuning"], other["bake"]["visible"]) == ("", "", False)
    chosen = poll(panel, "zorp", "zorp", "dog · 1", shown["marks"])
    assert chosen.keys() == {"marks", "analysis"}


@pytest.mark.parametrize(
    ("weight", "blocks", "offered"), [(1, [1, 1], False), (0.8, [1, 1], True), (1, [1, 0.5], True)]
)
def test_baking_is_offered_where_it_would_change_the_file(
    panel: BlocksPanel, jobs: Jobs, weight: float, blocks: list[float], offered: bool
) -> None:
    document = tuning(weight=weight, weights=dict(zip(("TE1", "IN01"), blocks, strict=True)))
    write(jobs.runs.get("zorp"), "tuning", document)
    assert poll(panel, "zorp", "zorp")["bake"]["visible"] == offered


def test_while_something_goes_on_it_can_only_be_stopped(panel: BlocksPanel, jobs: Jobs, monkeypatch: Any) -> None:
    progress = {"state": "running", "kind": "tuning", "file": "zorp", "done": 3, "of": 9}
    monkeypatch.setattr(jobs.blocks, "progress", lambda run: progress)
    shown = poll(panel)
    assert "3 of 9" in Page(shown["status"]).text
    assert not shown["analyze"]["interactive"]
    assert shown["stop"]["visible"]


# ------------------------------------------------------------------ buttons
def test_prompts_and_seeds_are_read_from_their_fields(panel: BlocksPanel, jobs: Jobs, monkeypatch: Any) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(jobs.blocks, "analyze", lambda *values: asked.append(values))
    Page(panel._analyze("zorp", "zorp", 0.8, " a\n\nb ", "1， 2,,3"))
    assert asked == [("zorp", {"file": "zorp", "weight": 0.8, "prompts": ["a", "b"], "seeds": [1, 2, 3]})]
    monkeypatch.setattr(jobs.blocks, "tune", lambda *values: asked.append(values))
    panel._tune("zorp", "zorp", None, " /x ")
    assert asked[1] == ("zorp", {"file": "zorp", "weight": None, "pictures": "/x"})


@pytest.mark.parametrize("seeds", ["one", "1; 2", "1.5"])
def test_seeds_that_are_no_numbers_are_a_sentence(panel: BlocksPanel, seeds: str) -> None:
    assert "is not a whole number" in Page(panel._analyze("zorp", "zorp", 1.0, "", seeds)).one("div", "lt-error").text


@pytest.mark.parametrize("name", [None, "", "nobody", "../.."])
def test_buttons_without_a_run_answer_with_a_sentence(panel: BlocksPanel, name: Any) -> None:
    answers = [panel._analyze(name, None, 1.0, "", ""), panel._tune(name, None, 1.0, ""), panel._stop(name)]
    for answer in [*answers, panel._bake(name, None)]:
        said = Page(answer).one("div", "lt-error").text
        assert ("There is no run named" if name else "No training run is chosen") in said


def test_what_was_learned_is_baked_beside_the_file_and_nothing_is_overwritten(panel: BlocksPanel, jobs: Jobs) -> None:
    run = jobs.runs.get("zorp")
    assert "no learned weights" in Page(panel._bake("zorp", "zorp")).one("div", "lt-error").text
    write(run, "tuning", tuning())
    source = Path(run.manifest["files"][-1]["path"])
    names = []
    for _ in range(2):
        answer = Page(panel._bake("zorp", "zorp")).one("div", "lt-good").text
        names.append(Path(answer.removeprefix("Written: ")))
    assert [path.name for path in names] == ["zorp-baked.safetensors", "zorp-baked-2.safetensors"]
    assert {path.parent for path in names} == {source.parent}
    before, after = load_file(source), load_file(names[0])
    assert not [name for name in after if name.startswith(KEYS[2])]  # M00 is 0
    for key, ratio in ((KEYS[0], 1.0), (KEYS[1], 0.5), (KEYS[3], 1.0)):
        assert float(after[f"{key}.alpha"]) == scaled_alpha(float(before[f"{key}.alpha"]), 4, 0.8 * ratio)
    source.unlink()
    assert "does not exist" in Page(panel._bake("zorp", "zorp")).one("div", "lt-error").text


def test_what_both_buttons_cost_is_told_before(panel: BlocksPanel, jobs: Jobs) -> None:
    one = Page(panel._cost("zorp", "zorp", 1.0, "zorp", "1")).text
    two = Page(panel._cost("zorp", "zorp", 1.0, "zorp\ndog", "1, 2")).text
    counts = [int(re.findall(r"does: ([\d,]+)", text)[0].replace(",", "")) for text in (one, two)]
    assert counts[1] == 4 * counts[0] > 0
    assert "about" not in one
    jobs.runs.get("zorp").update(steps_per_second=2.0, now=True)
    assert "learned from 864 noisy pictures (about 3:36)" in Page(panel._cost("zorp", "zorp", 1.0, "zorp", "1")).text
    for wrong in (("nobody", "zorp", 1.0, "", "1"), ("zorp", "zorp", 1.0, "", "x"), ("zorp", None, 99.0, "", "1")):
        assert panel._cost(*wrong) == ""


def test_the_cost_is_that_of_what_is_drawn_then(panel: BlocksPanel, jobs: Jobs, monkeypatch: Any) -> None:
    told: list[int] = []
    monkeypatch.setattr(jobs.blocks, "_start", lambda run, kind, file, of, work: told.append(of))
    body = {"file": "zorp", "weight": 1.0, "prompts": ["zorp", "a dog"], "seeds": [1, 5]}
    jobs.blocks.analyze("zorp", body)
    assert told == [jobs.blocks.cost("zorp", body)["analysis"].count]


def test_time_left_is_told_with_a_bar() -> None:
    status = {"state": "running", "kind": "tuning", "file": "a", "done": 3, "of": 4, "seconds_left": 61.0}
    page = Page(blocks_status(status, EN))
    assert "1:01 time left" in page.text
    assert page.one("div", "lt-bar").attributes["aria-valuenow"] == "75"


def test_an_error_of_the_line_is_told(panel: BlocksPanel, jobs: Jobs, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("The blocks of {name} are being looked at already.", name="zorp")

    monkeypatch.setattr(jobs.blocks, "tune", refuse)
    assert "already" in Page(panel._tune("zorp", "zorp", 1.0, "")).one("div", "lt-error").text


# ------------------------------------------------------------------ views
def heat(**changes: Any) -> dict[str, Any]:
    row = {"label": "epoch 1", "name": "a", "epoch": 1, "step": 4, "norms": [0.0, 12.34, None], "problem": None}
    return {"blocks": ["TE1", "IN01", "M00"], "rows": [{**row, **changes}]}


def test_the_heat_map_has_a_colour_that_grows_and_can_be_read() -> None:
    cells = Page(heat_table(heat(), "a", EN)).all("td")
    assert [cell.text for cell in cells] == ["0.00", "12.3", "–"]
    assert "#440154;color:#fff" in cells[0].attributes["style"]
    assert "#fde725;color:#000" in cells[1].attributes["style"]
    assert cells[1].attributes["title"] == "epoch 1 · IN01: 12.34"
    norms = [[n / 40 for n in range(40)]]
    wide = {"blocks": [f"B{n}" for n in range(40)], "rows": [{**heat()["rows"][0], "norms": norms[0]}]}
    styles = [cell.attributes["style"] for cell in Page(heat_table(wide, "", EN)).all("td")]
    light = [
        sum(int(style[i : i + 2], 16) * w for i, w in ((12, 0.2126), (14, 0.7152), (16, 0.0722))) for style in styles
    ]
    assert light == sorted(light)
    assert "step 40" in Page(heat_table(heat(label="step 40", step=40), "", EN)).text


def test_the_numbers_of_a_weak_file_are_shown_in_thousandths() -> None:
    page = Page(heat_table(heat(norms=[0.0, 0.0123, None]), "a", EN))
    assert [cell.text for cell in page.all("td")] == ["0.00", "12.3", "–"]
    assert "‖ΔW‖ × 1000" in page.text
    assert page.all("td")[1].attributes["title"] == "epoch 1 · IN01: 0.0123"


def test_a_file_that_cannot_be_read_says_so_in_its_row() -> None:
    problem = {"template": "{path} does not exist; check the path.", "values": {"path": HOSTILE[0]}}
    text = Page(heat_table(heat(problem=problem), "a", EN)).text
    assert f"{HOSTILE[0]} does not exist" in text
    assert "no LoRA files" in Page(heat_table({"blocks": [], "rows": []}, "", EN)).text


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_outside_becomes_markup(text: str, tmp_path: Path) -> None:
    found = analysis(tmp_path, (text,), leak=False)
    found["blocks"][0]["block"] = text
    found["notes"] = [{"template": "{blocks}", "values": {"blocks": text}}]
    assert text in Page(analysis_report(found, 0, EN)).text
    prompt = f"<lora:{text}:1>"
    known = tuning(lbw=text, prompt=prompt, weights={text: 0.5})
    page = Page(tuning_report(known, EN))
    assert page.all("button")[0].attributes["data-prompt"] == prompt
    problem = {"template": "{path}", "values": {"path": text}}
    assert text in Page(heat_table(heat(name=text, problem=problem), text, EN)).text
    status = {"state": "running", "kind": "analysis", "file": text, "done": 1, "of": 2}
    assert text in Page(blocks_status(status, EN)).text
    Page(heat_table({**heat(), "blocks": [text, "a", "b"]}, "", EN))


def test_every_block_has_bars_and_pictures_and_a_missing_one_is_marked(tmp_path: Path) -> None:
    page = Page(analysis_report(analysis(tmp_path), -7, EN))
    assert len(page.all("img")) == 2 * 3
    assert page.text.count("⚠") == 2
    bars = [e.attributes for e in page.all("i") if "width" in e.attributes.get("style", "")]
    assert [b["style"] for b in bars[:3]] == ["width:100.0%", "width:25.0%", "width:62.5%"]
    assert "40% of the picture (RMS 0.200)" in page.text
    assert (
        len(
            [
                e
                for e in Page(analysis_report(analysis(tmp_path, leak=False), 0, EN)).all("i")
                if "width" in e.attributes.get("style", "")
            ]
        )
        == 4
    )


def test_what_was_learned_is_told_with_its_error() -> None:
    page = Page(tuning_report(tuning(), EN))
    assert page.text.count("+20.00% ± 4.00%") == 3
    assert [b.attributes["data-prompt"] for b in page.all("button")][1:3] == [
        "<lora:zorp:0.72>",
        "<lora:zorp:0.8:lbw=OUTS>",
    ]
    assert page.text.count("recommended") == 1
    assert len([e for e in page.all("div") if "lt-changed" in e.attributes.get("class", "")]) == 2
    assert "recommended" not in Page(tuning_report(tuning(recommended="none"), EN)).text


@pytest.mark.parametrize(
    ("progress", "said", "kind"),
    [
        ({}, "", ""),
        ({"state": "done"}, "", ""),
        ({"state": "queued"}, "Waiting", "lt-info"),
        ({"state": "running", "kind": "analysis", "file": "a", "done": 1, "of": 5}, "Drawing a: 1 of 5", "lt-status"),
        ({"state": "running", "kind": "tuning", "file": "a", "done": 1, "of": 5}, "weights of a: 1 of 5", "lt-status"),
        ({"state": "stopped", "message": "It was stopped."}, "stopped", "lt-info"),
        ({"state": "failed", "message": "The disk is full."}, "full", "lt-error"),
    ],
)
def test_the_status_says_how_far_it_is(progress: dict[str, Any], said: str, kind: str) -> None:
    shown = blocks_status(progress, EN)
    assert said in shown
    assert not kind or Page(shown).one("div", kind)


def test_the_views_speak_chinese(tmp_path: Path) -> None:
    t = translator("zh")
    shown = Page(
        analysis_report(analysis(tmp_path), 0, t) + tuning_report(tuning(), t) + heat_table(heat(), "a", t)
    ).text
    words = re.sub(r"<lora[^>]*>|[A-Z]{2,4}\d*|LoRA|RMS|loss|OUTS|txt2img|ΔW|M00|\d", "", shown)
    assert not re.findall("[A-Za-z]{3,}", words)


# ------------------------------------------------------------------ in a browser
@pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_the_panel_fits_and_its_colours_can_be_read(jobs: Jobs, tmp_path: Path, dark: bool) -> None:
    run = make_run(jobs, "zorp")
    write(run, "analysis", analysis(tmp_path))
    write(run, "tuning", tuning())
    with served(blocks_page(jobs)[0]) as url:
        for width in (1400, 800, 420):
            with open_page(url, width, dark=dark) as page:
                part(page, "#lora_train_blocks_analysis").locator("img").first.wait_for()
                part(page, "#lora_train_blocks_heat").locator("td").first.wait_for()
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                colour = "e => getComputedStyle(e.querySelector('span')).color"
                cells = part(page, "#lora_train_blocks_heat").locator("td")
                assert cells.last.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"
                assert cells.first.evaluate(colour) in ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
                assert LBW in part(page, "#lora_train_blocks_tuning").inner_text()
        with open_page(url, dark=dark) as page:
            images = part(page, "#lora_train_blocks_analysis").locator("img")
            images.first.wait_for()
            assert images.count() == 6
            choose(page, "blocks_request", "dog · 1")
            expect(images).to_have_count(8)
            choose(page, "blocks_file", "zorp-000001")
            expect(images).to_have_count(0)


@contextmanager
def served(page: gr.Blocks) -> Iterator[str]:
    """A page on a free port for as long as the block lasts."""
    with standalone.serving(standalone.application(page)) as port:
        yield f"http://127.0.0.1:{port}"
