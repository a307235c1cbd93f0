"""What the panels of file tools and stacks do when they are used, without a browser; test_tools_page.py uses one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from lora_trainer.core.errors import InputError
from lora_trainer.core.i18n import translator
from lora_trainer.core.messages import Message
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.background import BackgroundTask
from lora_trainer.jobs.kinds import DRAWING, FILES
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.blocks.lora_tag import LoraTag
from lora_trainer.network.blocks.stack import Stack, parse_stack
from lora_trainer.network.lora_file import save_lora
from lora_trainer.ui.html import lora_files as tool_views
from lora_trainer.ui.panels.common import add_lines
from lora_trainer.ui.panels.lora_files import ToolsPanel
from lora_trainer.ui.panels.stacks import StacksPanel
from tests.helpers import CHECKPOINT, LIMIT, until
from tests.network.made import EVERY, KEYS, some_lora, tensors
from tests.ui.markup import HOSTILE, Page
from tests.ui.watched import poll

english = translator("en")
METADATA = {
    "ss_output_name": "a",
    "ss_sd_model_name": "anything.safetensors",
    "ss_unet_lr": "0.0001",
    "ss_text_encoder_lr": "None",
    "ss_tag_frequency": json.dumps({"10_x": {"zorp": 9, "red": 3}, "5_y": {"red": 4}}),
}


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Jobs with the LoRAs ``a`` (with a card) and ``sub/b``."""
    host = StandaloneHost(tmp_path, str(CHECKPOINT))
    root = host.folders.loras
    save_lora(root / "a.safetensors", some_lora(4, 2.0), METADATA, "fp32")
    (root / "a.json").write_text(json.dumps({"activation text": "zorp_"}), encoding="utf-8")
    save_lora(root / "sub" / "b.safetensors", some_lora(3, 3.0, seed=50), {}, "fp32")
    return Jobs(host)


@pytest.fixture
def panel(jobs: Jobs) -> ToolsPanel:
    with gr.Blocks():
        return ToolsPanel(jobs, english)


@pytest.fixture
def stacks(jobs: Jobs) -> StacksPanel:
    with gr.Blocks():
        return StacksPanel(jobs, english)


def press(panel: ToolsPanel, kind: str, file: str = "", **values: Any) -> str:
    """What the button of a tool answers, with these values typed and the others left as they are."""
    shown = {widget: widget.value for widget in panel.fields[kind].values()}
    typed = {panel.fields[kind][path]: value for path, value in values.items()}
    return panel._starting(kind)({panel.file: file, **shown, **typed})


def finished(panel: ToolsPanel) -> BackgroundTask:
    """The newest work, when it is over."""
    task = panel._jobs.tools.list()[0]
    assert panel._jobs.tools.wait(task, LIMIT)
    return task


# ------------------------------------------------------------------ info
def test_a_chosen_file_is_shown_with_its_training_and_presets(panel: ToolsPanel) -> None:
    report, metadata, presets = panel._choose("a", "")
    page = Page(report)
    assert [cell.text for cell in page.all("td")][::5] == ["TE1", "IN01", "M00", "OUT03"]
    facts = [each.text for each in page.all("b")]
    assert {"zorp_", "anything.safetensors", "0.0001", "7"} <= set(facts)
    assert "None" not in facts
    assert page.text.index("zorp 9") < page.text.index("red 7")
    assert metadata["ss_sd_model_name"] == "anything.safetensors"
    assert {"ALL", "OUTALL"} <= set(presets["choices"])


@pytest.mark.parametrize(
    ("name", "sentence"), [("nobody", "there is no LoRA file"), ("odd", "is no LoRA or LyCORIS module")]
)
def test_what_cannot_be_shown_is_a_sentence(panel: ToolsPanel, jobs: Jobs, name: str, sentence: str) -> None:
    odd = {f"{KEYS[1]}.{part}": t for part, t in zip(("magic.a", "magic.b"), some_lora().values(), strict=False)}
    save_file({key: t.contiguous().clone() for key, t in odd.items()}, jobs.host.folders.loras / "odd.safetensors")
    report, metadata, presets = panel._choose(name, "")
    assert sentence in Page(report).one("div", "lt-error").text
    assert metadata is None
    assert presets["choices"] == []


def test_a_path_counts_instead_of_the_choice(panel: ToolsPanel, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(panel._jobs.loras.find("sub/b").read_bytes())
    assert "outside" in panel._choose("a", f" {outside} ")[0]
    panel._starting("bake")({panel.file: "a", panel.path: str(outside)})
    assert finished(panel).title == "outside-baked"
    panel._jobs.host.readable = [panel._jobs.loras.root]
    assert "may not be read" in panel._choose("a", str(outside))[0]


def test_without_a_choice_it_says_so(panel: ToolsPanel) -> None:
    assert "Choose a LoRA file" in panel._choose(None, " ")[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_a_file_becomes_markup(text: str) -> None:
    frequency = {text: {text: 3, "other": text}, "x": [text]}
    metadata = {**dict.fromkeys(tool_views.TRAINING, text), "ss_tag_frequency": frequency, "ss_steps": [text]}
    block = {"block": text, "modules": 1, "ranks": [1], "norm": 1.0, "unknown": 2}
    found = {
        "path": f"/{text}/x.safetensors", "bytes": 9, "precision": [text], "ranks": [], "alphas": [1.0, 2.0],
        "norm": 1.0, "architecture": text, "kinds": {text: 3}, "metadata": metadata, "blocks": [block],
    }  # fmt: skip
    page = Page(tool_views.info_report(found, {"activation text": text}, english))
    assert text in page.text
    bare = Page(tool_views.info_report({**found, "metadata": {}, "blocks": []}, {}, english))
    assert "says nothing about its training" in bare.text


@pytest.mark.parametrize("frequency", [None, "text", [1], {"a": None}, {"a": {"b": "many", "": 3}}])
def test_tag_counts_of_any_form_are_read(frequency: Any) -> None:
    assert tool_views.top_tags({"ss_tag_frequency": frequency}, 5) == []


# ------------------------------------------------------------------ tools
@pytest.mark.parametrize(
    ("kind", "values", "name", "says"),
    [
        ("bake", {"file": "a", "weight": 0.5, "te": " ", "lbw": "OUTALL"}, "a-baked", "modules left out"),
        ("bake", {"file": "a", "te": "0", "output": "mine"}, "mine", "modules left out"),
        ("resize", {"file": "a", "rank": 2}, "a-resized", "relative error"),
        ("resize", {"file": "sub/b", "method": "sv_fro", "keep": 0.5}, "b-resized", "relative error"),
        ("resize", {"file": "a", "rank": 8}, "a-resized", "has rank 4 already: nothing was left out"),
        ("merge", {"files": "a: 0.7\nsub/b: 0.7"}, "a-b-merged", "sum up to 1.4"),
        ("merge", {"files": "a: 0.5\nb: 0.5", "rank": 2}, "a-b-merged", "relative error"),
    ],
)
def test_a_tool_makes_a_file_that_can_be_used(
    panel: ToolsPanel, jobs: Jobs, kind: str, values: dict[str, Any], name: str, says: str
) -> None:
    assert press(panel, kind, values.pop("file", ""), **values) == ""
    task = finished(panel)
    assert (task.state, task.title) == ("done", name)
    shown = poll(panel.watch)
    page = Page(shown["work"])
    assert says in page.text
    assert page.one("button", "lt-use").attributes["data-prompt"] == f"<lora:{name}:1>"
    assert not page.all("div", "lt-bar")
    assert shown["stop"] == gr.update(visible=False)
    assert poll(panel.watch, seen=shown["marks"]).keys() == {"marks"}


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("bake", {}, "choose a LoRA file"),
        ("bake", {"file": "a", "te": "much"}, "Text encoder weight: expected a number, not &#34;much&#34;"),
        ("bake", {"file": "a", "lbw": "1,2,3"}, "has 3 values"),
        ("resize", {"file": "a"}, "Say how far to resize"),
        ("merge", {"files": ""}, "Name at least one LoRA"),
        ("merge", {"files": "<script>: 1"}, "not of the form"),
        ("extract", {"base": "x.safetensors"}, "Tuned checkpoint: choose a checkpoint"),
        ("bake", {"file": "a", "output": "a"}, "a-2 is free"),
    ],
)
def test_bad_input_is_a_sentence_and_nothing_begins(
    panel: ToolsPanel, kind: str, values: dict[str, Any], sentence: str
) -> None:
    answer = press(panel, kind, values.pop("file", ""), **values)
    assert Page(answer).one("div", "lt-error")
    assert sentence in answer
    assert panel._jobs.tools.list() == []


def test_what_fails_is_shown_with_its_sentence(panel: ToolsPanel, jobs: Jobs) -> None:
    save_file(tensors({KEYS[1]: EVERY["loha"]}), jobs.host.folders.loras / "loha.safetensors")
    assert press(panel, "resize", "loha", rank=2) == ""
    finished(panel)
    page = Page(poll(panel.watch)["work"])
    assert "LoHa" in page.one("div", "lt-error").text
    assert page.one("span", "lt-failed").text == "Failed"


def test_work_goes_on_for_all_pages_and_can_be_stopped(panel: ToolsPanel, jobs: Jobs) -> None:
    with gr.Blocks():
        other = ToolsPanel(jobs, english)
    go = threading.Event()
    first = jobs.tools._tasks[FILES].start(
        "extract", "long", lambda progress: [progress(1, 4), go.wait(LIMIT), progress(2, 4)]
    )
    assert press(panel, "bake", "a") == press(other, "bake", "a") == ""
    until(lambda: first.of > 0)
    shown = poll(other.watch)
    page = Page(shown["work"])
    assert len(page.all("div", "lt-bar")) == 3
    assert "25%" in page.text
    assert shown["stop"] == gr.update(visible=True)
    assert other._stop() == ""
    go.set()
    assert jobs.tools.wait(finished(panel), LIMIT)
    assert [task.state for task in jobs.tools.list()] == ["done", "done", "stopped"]
    assert sorted(c.title for c in jobs.tools.list()) == ["a-baked", "a-baked-2", "long"]
    assert panel._stop() == ""


def test_checkpoints_of_the_host_are_offered(panel: ToolsPanel) -> None:
    for path in ("base", "tuned", "checkpoint"):
        assert CHECKPOINT.name in panel.known[path].choices


PICTURE = {"steps": 9, "sampler": "Euler", "cfg": 7.0, "width": 64, "height": 32, "seed": 5}


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_the_work_becomes_markup(text: str) -> None:
    made = SimpleNamespace(
        path=Path("x.safetensors").with_name(f"{text.replace('/', '')}.safetensors"),
        facts={"lbw": text, "ranks": [1, 2], "error": 0.5},
        notices=(Message("The weights sum up to {total:g}; above {most:g} pictures tend to break, so lower them.",
                        {"total": 2, "most": 1.2}),),
    )  # fmt: skip
    tasks = [
        BackgroundTask("1", "bake", text, "done", result=made),
        BackgroundTask("2", "bake", text, "failed", error=InputError("{name} is named twice.", name=text)),
        BackgroundTask("3", "bake", text, "running", 1, 3),
    ]
    assert Page(tool_views.task_cards(tasks, english)).text.count(text) >= 4
    stack = Stack((LoraTag("a", 1.0, lbw=text.translate({ord(c): None for c in ":=>"}) or "x"),))
    Page(tool_views.stack_report(stack, english))
    mix = {"number": 1, "weights": {text: 0.5}, "total": 0.5, "tags": text, "prompt": text}
    document = {"loras": [{"name": text}], "request": {**PICTURE, "prompt": text, "negative": text}, "mixes": [mix]}
    button = Page(tool_views.mixes_table(document, english)).one("button", "lt-use")
    assert (button.attributes["data-prompt"], button.attributes["data-negative"]) == (text, text)
    assert button.attributes["data-settings"] == "Steps: 9, Sampler: Euler, CFG scale: 7, Size: 64x32, Seed: 5"


# ------------------------------------------------------------------ adding lines
def test_added_lines_share_what_is_left_of_the_sum() -> None:
    assert add_lines(["a", "b"], "")[0] == "a: 0.6\nb: 0.6"
    assert add_lines(["b"], "a: 0.8")[0] == "a: 0.8\nb: 0.4"
    assert add_lines(["a"], "a: 0.8\n")[0] == "a: 0.8"
    assert add_lines(["c"], "a: 0.8\nb: 0.8")[0].endswith("c: 0.1")
    assert add_lines([], "a: 0.8") == [gr.update(), gr.update()]
    assert add_lines(["b"], "cannot: be: read=: x")[0].endswith("b: 0.8")


@given(
    st.lists(st.sampled_from(["a", "sub/b", "c.d", "汉服"]), unique=True, min_size=1), st.sampled_from(["", "x: 0.5"])
)
def test_what_is_added_can_be_read(names: list[str], text: str) -> None:
    stack = parse_stack(add_lines(names, text)[0])
    assert [tag.name for tag in stack.tags if tag.name != "x"] == names
    assert stack.total <= 1.2 + 1e-9


# ------------------------------------------------------------------ stacks
def typed(stacks: StacksPanel, **values: Any) -> dict[Any, Any]:
    shown = {widget: widget.value for widget in stacks.fields.values()}
    return {**shown, **{stacks.fields[path]: value for path, value in values.items()}}


def test_a_stack_is_shown_with_its_sum_and_tags(stacks: StacksPanel) -> None:
    page = Page(stacks._report("a: 0.7\nsub/b: 0.6: OUTALL"))
    assert [cell.text for cell in page.all("td")] == ["1", "a", "0.7", "–", "2", "b", "0.6", "OUTALL"]
    assert "sum up to 1.3" in page.one("div", "lt-warning").text
    assert page.one("button", "lt-use").attributes["data-prompt"] == "<lora:a:0.7> <lora:b:0.6:lbw=OUTALL>"
    assert "that is sound" in stacks._report("a: 0.7\nb: 0.5")
    assert stacks._report("  ") == ""
    assert Page(stacks._report("nobody: 1")).one("div", "lt-error")


def test_mixes_are_shown_as_prompts_and_are_the_same_again(stacks: StacksPanel) -> None:
    values = typed(stacks, stack="a: 0.6\nb: 0.4", count=5, prompt="zorp\nred", method="dirichlet")
    feedback, table, prompts, gallery = stacks._show(values)
    assert feedback == ""
    assert prompts["value"].count("\n") == 4
    assert all(line.startswith("zorp red <lora:a:") for line in prompts["value"].splitlines())
    assert len(Page(table).all("tr")) == 6
    assert gallery["visible"] is False
    assert stacks._show(values)[2] == prompts
    wrong = stacks._show(typed(stacks, stack="a: 0.6", spread=0))
    assert "Spread" in Page(wrong[0]).one("div", "lt-error").text


def test_drawing_without_a_usable_checkpoint_is_a_sentence(stacks: StacksPanel) -> None:
    answer = stacks._draw(typed(stacks, stack="a: 1", checkpoint="/nowhere.safetensors"))
    assert "does not exist" in Page(answer).one("div", "lt-error").text
    assert poll(stacks.watch)["marks"]["gallery"] == ""
    assert stacks._stop() == ""


def test_pictures_are_shown_as_they_come_until_they_are_deleted(stacks: StacksPanel, tmp_path: Path) -> None:
    from lora_trainer.validation.mixes import Mixed

    plan, _ = stacks._jobs.tools.mix_plan({"stack": "a: 0.6\nb: 0.4", "count": 2})
    pictures = [tmp_path / "1.png", tmp_path / "2.png"]
    for path in pictures:
        Image.new("RGB", (8, 8)).save(path)
    task = stacks._jobs.tools._tasks[DRAWING].start(
        "mix", "a + b", lambda progress: Mixed(tmp_path, plan.document(pictures))
    )
    assert stacks._jobs.tools.wait(task, LIMIT)
    shown = poll(stacks.watch)
    assert "Done" in shown["work"]
    assert shown["stop"] == gr.update(visible=False)
    assert [path for path, _ in shown["gallery"]["value"]] == list(map(str, pictures))
    assert shown["gallery"]["value"][0][1].startswith("1 · <lora:a:")
    assert len(Page(shown["mixes"]).all("button", "lt-use")) == 2
    assert shown["prompts"]["visible"]
    assert poll(stacks.watch, seen=shown["marks"]).keys() == {"marks"}
    pictures[0].unlink()
    assert [path for path, _ in poll(stacks.watch)["gallery"]["value"]] == [str(pictures[1])]


@pytest.mark.parametrize("kind", [ToolsPanel, StacksPanel])
def test_the_panels_speak_chinese(jobs: Jobs, kind: Any) -> None:
    from tests.core.test_i18n import is_english

    with gr.Blocks() as blocks:
        kind(jobs, translator("zh"))
    shown = [c["props"].get(key) for c in blocks.config["components"] for key in ("label", "info")]
    shown += [
        c.value for c in blocks.blocks.values() if c.get_block_name() == "button" and c.value not in ("poll", "↻")
    ]
    assert len(shown) > 20
    assert [text for text in shown if text and is_english(text)] == []
