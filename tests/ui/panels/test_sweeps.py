from __future__ import annotations

from collections import Counter
from pathlib import Path

import gradio as gr
import pytest

from lora_trainer.config.train import options
from lora_trainer.core.errors import InputError
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.panels.sweeps import SweepBox, paths_by_label
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.form import label_of
from tests.helpers import CHECKPOINT, config
from tests.runs_helpers import document
from tests.ui.markup import HOSTILE, Page

EN, ZH = translator("en"), translator("zh")


def box(language: str = "en") -> SweepBox:
    with gr.Blocks():
        return SweepBox(translator(language))


@pytest.mark.parametrize("t", [EN, ZH], ids=["en", "zh"])
def test_every_field_has_a_label_of_its_own_that_is_understood(t: object) -> None:
    settings = [item for item in options() if item.path != "name"]
    labels = [label_of(item, t) for item in settings]  # type: ignore[arg-type]
    assert [label for label, count in Counter(map(str.lower, labels)).items() if count > 1] == []
    known = paths_by_label(t)  # type: ignore[arg-type]
    assert [known[label.lower()] for label in labels] == [item.path for item in settings]
    assert [known[item.path] for item in settings] == [item.path for item in settings]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("Rank = 8, 16", "network.rank"),
        ("  rank=8,16", "network.rank"),
        ("UNet  learning rate = 8, 16", "training.unet_lr"),
        ("network.rank = 8, 16", "network.rank"),
        ("Save every (steps) = 8, 16", "save.every_steps"),
        ("Resolution = 8, 16", "data.resolution"),
        ("Resolution (px) = 8, 16", "data.resolution"),
        ("Rank ＝ 8, 16", "network.rank"),
    ],
)
def test_a_line_names_the_field_as_the_page_does(line: str, path: str) -> None:
    assert box().parse(line) == {path: [8, 16]}


def test_a_chinese_page_knows_both_languages() -> None:
    label = label_of(next(o for o in options() if o.path == "network.rank"), ZH)
    assert label != "Rank"
    for name in (label, "Rank", "network.rank"):
        assert box("zh").parse(f"{name} = 8") == {"network.rank": [8]}


@pytest.mark.parametrize(
    "line", ["Rang = 8", "Save every = 1", "name = 2", "LoRA name = 2", *(f"{t} = 1" for t in HOSTILE[:3])]
)
def test_a_name_that_nothing_has_is_a_sentence(line: str) -> None:
    with pytest.raises(InputError, match="sweep: "):
        box().parse(line)
    assert "sweep: " in Page(box().counted(line, config)).one("div", "lt-error").text


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    with pytest.raises(InputError, match=r"there is no setting “Rnak”.*\(rank\?\)"):
        box().parse("Rnak = 8")


def test_the_number_of_runs_is_told_with_their_names() -> None:
    shown = Page(box().counted("Rank = 4, 8\nEpochs = 1, 2, 3", config)).text
    assert "Train starts 6 runs: test-rank4-epochs1" in shown
    assert "…" not in shown
    assert Page(box().counted("Seed = 1, 2, 3, 4, 5, 6, 7, 8", config)).text.endswith(" …")
    assert box().counted("  \n", config) == ""
    assert "more than 50" in box().counted("Rank = " + ", ".join(map(str, range(1, 60))), config)
    assert "out of range" in box().counted("Rank = 0", config)


def test_a_line_is_added_from_the_list() -> None:
    assert box()._added("Rank", " 8, 16 ", "") == ["Rank = 8, 16", ""]
    assert box()._added("Rank", "8", "Epochs = 1\n\n") == ["Epochs = 1\nRank = 8", ""]
    for nothing in ((None, "8", ""), ("Rank", "  ", "")):
        assert box()._added(*nothing) == [gr.update(), gr.update()]


def test_train_starts_the_runs_that_were_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = Tab(Jobs(StandaloneHost(tmp_path, str(CHECKPOINT))))
    asked: list[dict[str, list[object]]] = []

    def refuse(made: object, values: dict[str, list[object]]) -> None:
        asked.append(values)
        raise InputError("enough")

    monkeypatch.setattr(tab._jobs, "sweep", refuse)
    shown = {widget: widget.value for widget in tab.form.widgets.values()}
    folder = document(tmp_path)["data"]["folder"]
    values = {**shown, tab.form.widgets["name"]: "a", tab.form.widgets["data.folder"]: folder}
    tab.training._train({**values, tab.training.sweeps.text: "Rank = 4, 8\nalpha = 2"})
    assert asked == [{"network.rank": [4, 8], "network.alpha": [2]}]
