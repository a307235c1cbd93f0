"""The page of the grid without a browser: what it asks of jobs, what it shows, what it does with a cell."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.routes import App
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.api.routes import PREFIX, mount
from lora_trainer.cli.main import build_parser
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.i18n import translator
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import Run
from lora_trainer.ui.panels.validation import ValidatePanel
from lora_trainer.ui.tab import Tab
from lora_trainer.ui.widgets.form import Form
from lora_trainer.validation.grid.options import GridOptions, grid_options
from tests.grids_made import make_files, make_grid
from tests.helpers import CHECKPOINT
from tests.runs_helpers import document
from tests.ui.markup import Page

WISHES = {
    "name": "zorp",
    "epochs": "all",
    "weights": "0.5, 1",
    "prompts": "",
    "seeds": "1",
    "together": 4,
    "numbers": True,
    "clip": "",
}


class Announcing(StandaloneHost):
    """Keeps what was announced."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, str(CHECKPOINT))
        self.announced: list[Path] = []

    def announce(self, path: Path) -> None:
        self.announced.append(path)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Announcing(tmp_path))


@pytest.fixture
def panel(jobs: Jobs) -> ValidatePanel:
    with gr.Blocks():
        return ValidatePanel(jobs, translator("en"))


@pytest.fixture
def run(jobs: Jobs, tmp_path: Path) -> Run:
    """A run of three files whose grid is drawn."""
    run = jobs.runs.create(TrainConfig.from_dict(document(tmp_path, network__rank=6)), checkpoint={})
    run.update(state="done", now=True)
    make_files(run, tmp_path / "loras", 3)
    make_grid(run, weights=[0.5, 1.0], prompts=["zorp"], seeds=[1])
    return run


def wish(run: Run, action: str, column: int = 2, weight: float = 0.5, **more: Any) -> str:
    cells = json.loads((run.grids / "plain" / "grid.json").read_text(encoding="utf-8"))["cells"]
    key = next(c["key"] for c in cells if (c["column"], c["weight"]) == (column, weight))
    return json.dumps({"action": action, "run": run.name, "key": key, "column": column, "weight": weight, **more})


# ------------------------------------------------------------------ drawing
def asked(panel: ValidatePanel, monkeypatch: pytest.MonkeyPatch, **wishes: Any) -> dict[str, Any]:
    """What jobs are asked for, by keyword."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(panel._jobs.grids, "draw", lambda *name, **values: calls.append((name, values)))
    assert "is being drawn" in Page(panel._draw(**{**WISHES, **wishes})).text
    ((name, values),) = calls
    assert name == ("zorp",)
    return values


def test_every_wish_reaches_the_jobs(panel: ValidatePanel, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = {"epochs": " every 2 ", "weights": " 0.3，1,, -0.5、2 ", "prompts": "a\n\n b \n", "seeds": "7，8"}
    values = asked(panel, monkeypatch, **wishes, together=2, numbers=False, clip=" /clip ")
    assert values == {
        "weights": [0.3, 1.0, -0.5, 2.0],
        "prompts": ["a", "b"],
        "epochs": "every 2",
        "seeds": [7, 8],
        "together": 2,
        "numbers": False,
        "clip": "/clip",
    }


def test_emptied_fields_are_the_usual(panel: ValidatePanel, monkeypatch: pytest.MonkeyPatch) -> None:
    values = asked(panel, monkeypatch, epochs="", weights="", seeds="", together=None)
    assert (values["epochs"], values["weights"], values["seeds"], values["together"]) == ("all", [], [], 1)


def test_the_wishes_are_what_the_jobs_know(panel: ValidatePanel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GridOptions(**asked(panel, monkeypatch)).numbers


def test_page_rest_and_command_line_have_the_same_options(panel: ValidatePanel, jobs: Jobs, tmp_path: Path) -> None:
    names = set(grid_options())
    app = FastAPI()
    mount(app, jobs)
    body = app.openapi()["paths"][f"{PREFIX}/runs/{{name}}/grid"]["post"]["requestBody"]
    shown = {name: getattr(panel, name) for name in names}
    parsed = vars(build_parser().parse_args(["grid", "zorp", "--seeds", "1 2", "--prompt", "a"]))
    flags = {(item.flag.name or item.path).replace("-", "_") for item in grid_options().values() if item.flag}
    assert set(body["content"]["application/json"]["schema"]["properties"]) == names
    assert {name: widget.label for name, widget in shown.items()} == {n: o.title for n, o in grid_options().items()}
    assert (flags <= parsed.keys(), parsed["seeds"], parsed["prompt"]) == (True, [1, 2], ["a"])


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"weights": "many"}, "“many” is not a number"),
        ({"weights": "0.5; 1"}, "is not a number"),
        ({"weights": "9"}, "use numbers from"),
        ({"seeds": "1.5"}, "“1.5” is not a whole number"),
        ({"seeds": "-1"}, "use numbers from"),
        ({"epochs": "99"}, "99"),
        ({"together": 0.4}, "a whole number"),
        ({"name": None}, "No training run is chosen"),
        ({"together": -2}, "use numbers from"),
        ({"name": "../.."}, "There is no run named"),
    ],
)
def test_wrong_wishes_are_a_sentence(panel: ValidatePanel, run: Run, wishes: dict[str, Any], sentence: str) -> None:
    assert sentence in Page(panel._draw(**{**WISHES, **wishes})).one("div", "lt-error").text


def test_stopping_what_is_not_drawn_is_a_sentence(panel: ValidatePanel, run: Run) -> None:
    assert "No grid of zorp is being drawn" in Page(panel._stop("zorp")).one("div", "lt-error").text


# ------------------------------------------------------------------ what is shown
def shown(panel: ValidatePanel, run: Run | None) -> dict[str, Any]:
    return {key: make() for key, (_, make) in panel.parts(run).items()}


def marks(panel: ValidatePanel, run: Run | None) -> dict[str, Any]:
    return {key: mark for key, (mark, _) in panel.parts(run).items()}


def test_every_part_has_its_widget(panel: ValidatePanel, run: Run) -> None:
    values = shown(panel, run)
    assert panel.widgets.keys() == values.keys()
    for name, widget in panel.widgets.items():
        assert isinstance(widget, gr.HTML) is isinstance(values[name], str)


def test_a_drawn_grid_is_shown(panel: ValidatePanel, run: Run) -> None:
    parts = shown(panel, run)
    assert json.loads(Page(parts["grid"]).one("div").attributes["data-view"])["run"] == "zorp"
    assert Page(parts["grid_chart"]).all("svg")
    assert "Numbers (CSV)" in Page(parts["grid_verdict"]).text
    assert parts["grid_status"] == ""
    assert not parts["stop_draw"]["visible"]


def test_nothing_is_sent_again_until_it_changes(panel: ValidatePanel, run: Run) -> None:
    first = marks(panel, run)
    assert marks(panel, run) == first
    panel._act(wish(run, "vote", value=1))
    voted = marks(panel, run)
    assert {key for key in first if first[key] != voted[key]} == {"grid"}
    make_grid(run, drawn=2)
    assert {key for key in voted if marks(panel, run)[key] != voted[key]} == voted.keys()


def test_progress_has_the_time_that_is_left(panel: ValidatePanel, run: Run) -> None:
    make_grid(run, drawn=2, weights=[0.5, 1.0], prompts=["zorp"], seeds=[1])
    parts = shown(panel, run)
    assert "2 of 7 pictures" in Page(parts["grid_status"]).text
    assert "1:15 time left" in Page(parts["grid_status"]).text
    assert parts["stop_draw"]["visible"]
    for phase, said in (("losses", "Measuring losses: 3 of 9"), ("numbers", "Comparing the pictures: 3 of 9")):
        run.update(grid={"state": "running", "phase": phase, "done": 3, "of": 9, "message": ""})
        assert said in Page(shown(panel, run)["grid_status"]).text
    run.update(grid={"state": "queued", "done": 0, "of": 7, "message": ""})
    assert "waits for its turn" in Page(shown(panel, run)["grid_status"]).text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": 1, "columns": []}'])
def test_without_a_readable_grid_nothing_is_shown(panel: ValidatePanel, run: Run, content: str | None) -> None:
    path = run.grids / "plain" / "grid.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    parts = shown(panel, run)
    assert (parts["grid"], parts["grid_chart"]) == ("", "")
    is_damaged = content in ("{", "[]")
    assert ("grid.json is damaged" in parts["grid_verdict"]) is is_damaged


def test_without_a_run_nothing_is_shown(panel: ValidatePanel) -> None:
    assert [part for part in shown(panel, None).values() if isinstance(part, str) and part] == []


# ------------------------------------------------------------------ serving the pictures
@pytest.fixture
def served(jobs: Jobs, run: Run) -> tuple[TestClient, Tab]:
    """The tab as the WebUI has it: built first, and put into another page later."""
    tab = Tab(jobs)
    with gr.Blocks() as page:
        gr.Textbox()
        with gr.Tabs(), gr.TabItem("LoRA Train"):
            tab.blocks.render()
    app = App.create_app(page)
    app.cwd = "/nowhere"  # gradio serves what is in the current folder, where a test may be
    return TestClient(app), tab


def test_the_page_serves_the_pictures_it_shows_and_nothing_else(served: tuple[TestClient, Tab], run: Run) -> None:
    client, tab = served
    picture = next((run.grids / "plain" / "cells").glob("*.png"))
    url = f"/file={picture}"
    assert client.get(url).status_code == 403  # nobody has looked at the grid
    data = Page(shown(tab.validate, run)["grid"]).one("div").attributes["data-view"]
    assert client.get(url).content == picture.read_bytes()
    shown_url = json.loads(data)["pictures"] + picture.name
    assert client.get("/" + shown_url).content == picture.read_bytes()
    for link in Page(shown(tab.validate, run)["grid_verdict"]).all("a"):
        assert client.get("/" + link.attributes["href"]).status_code == 200
    for other in (run.folder / "config.toml", run.grids / "plain" / "grid.json", run.folder / "manifest.json"):
        assert client.get(f"/file={other}").status_code == 403


def test_under_a_login_the_pictures_are_too(served: tuple[TestClient, Tab], run: Run) -> None:
    client, tab = served
    shown(tab.validate, run)
    picture = next((run.grids / "plain" / "cells").glob("*.png"))
    client.app.auth = {"me": "secret"}  # type: ignore[attr-defined]
    assert client.get(f"/file={picture}").status_code == 401
    client.post("/login", data={"username": "me", "password": "secret"})
    assert client.get(f"/file={picture}").status_code == 200


# ------------------------------------------------------------------ the chosen cell
def test_a_vote_is_kept_and_comes_back_with_the_document(panel: ValidatePanel, run: Run) -> None:
    assert panel._act(wish(run, "vote", value=-1)) == ""
    view = json.loads(Page(shown(panel, run)["grid"]).one("div").attributes["data-view"])
    assert list(view["votes"].values()) == [-1]
    assert panel._act(wish(run, "vote", value=0)) == ""
    assert json.loads((run.grids / "plain" / "votes.json").read_text(encoding="utf-8")) == {}


def test_card_picture_and_new_file_are_said_with_their_paths(panel: ValidatePanel, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    assert f"{folder / 'zorp-000002.json'}" in Page(panel._act(wish(run, "card"))).one("div", "lt-good").text
    assert json.loads((folder / "zorp-000002.json").read_text(encoding="utf-8"))["preferred weight"] == 0.5
    assert f"{folder / 'zorp-000002.png'}" in Page(panel._act(wish(run, "preview"))).one("div", "lt-good").text
    baked = folder / "zorp-000002-weight0.5.safetensors"
    assert f"{baked}" in Page(panel._act(wish(run, "bake"))).one("div", "lt-good").text
    assert panel._jobs.host.announced == [baked]  # type: ignore[attr-defined]


def test_a_kept_picture_is_named(panel: ValidatePanel, run: Run, tmp_path: Path) -> None:
    (tmp_path / "loras" / "zorp-000002.jpg").write_bytes(b"theirs")
    assert "zorp-000002-preview-kept.jpg" in Page(panel._act(wish(run, "preview"))).text


def test_going_on_from_a_cell_fills_the_form(panel: ValidatePanel, run: Run, tmp_path: Path) -> None:
    values, said = panel._continue(wish(run, "continue"))
    with gr.Blocks():
        form = Form(translator("en"), ["Euler a"])
        form.add(*(path for path in form._options))
    config = TrainConfig.from_dict(run.config().to_dict()).with_values({**values, "name": "next"})
    assert config.network.continue_from == str(tmp_path / "loras" / "zorp-000002.safetensors")
    assert (config.network.rank, config.network.alpha) == (6, run.config().network.alpha)
    assert config.data == run.config().data
    updates = dict(zip(form.widgets, form.updates(values), strict=True))
    assert updates["name"]["value"] == ""
    assert "give a new name" in Page(said).one("div", "lt-info").text


@pytest.mark.parametrize("action", ["card", "preview", "bake"])
def test_the_checkpoint_alone_can_only_be_used_and_voted_for(panel: ValidatePanel, run: Run, action: str) -> None:
    said = panel._act(wish(run, action, 0, 0.0))
    assert "without a LoRA" in Page(said).one("div", "lt-error").text
    assert "without a LoRA" in panel._continue(wish(run, "continue", 0, 0.0))[1]
    assert panel._act(wish(run, "vote", 0, 0.0, value=1)) == ""


MALFORMED = [
    *("", "{", "[]", "null", "1", "{}", '{"action": "card"}', '{"action": "rm", "run": "zorp"}'),
    '{"action": ["card"], "run": "zorp", "key": "", "column": 0, "weight": 0}',
    '{"action": "card", "run": {"a": 1}, "key": "x", "column": 1, "weight": 1}',
    '{"action": "card", "run": "../..", "key": "x", "column": 1, "weight": 1}',
    '{"action": "card", "run": "zorp", "key": "../x", "column": 1, "weight": 1}',
    '{"action": "card", "run": "zorp", "key": "x", "column": [1], "weight": 1}',
    '{"action": "vote", "run": "zorp", "key": "x", "column": 1, "weight": NaN}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_the_page_never_asks_is_a_sentence(panel: ValidatePanel, run: Run, text: str) -> None:
    Page(panel._act(text)).one("div", "lt-error")
    values, said = panel._continue(text)
    assert values == {}
    Page(said).one("div", "lt-error")


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), st.lists, max_leaves=3)


@settings(max_examples=40)
@given(st.fixed_dictionaries({"action": st.sampled_from(["vote", "card"]), "run": st.just("zorp")}),
       st.dictionaries(st.sampled_from(["key", "column", "weight", "value", "action"]), _JSON))  # fmt: skip
def test_any_wish_is_answered(panel: ValidatePanel, run: Run, wish: dict[str, Any], more: dict[str, Any]) -> None:
    Page(panel._act(json.dumps({**wish, **more}))).one("div", "lt-error")


def test_a_wish_that_is_sent_twice_is_granted_once(panel: ValidatePanel, run: Run, tmp_path: Path) -> None:
    with gr.Blocks() as page:
        wired = ValidatePanel(panel._jobs, translator("en"))
        form = SimpleNamespace(widgets={}, updates=lambda values: [])
        wired.connect(SimpleNamespace(run=gr.Textbox(), form=form))
    act, go_on = (
        next(fn.fn for fn, wires in zip(page.fns, page.dependencies, strict=True) if widget._id in wires["targets"])
        for widget in (wired.act, wired.go_on)
    )
    first, again, other = (act(wish(run, "bake", number=number)) for number in ("1", "1", "2"))
    assert first == again
    assert [Page(said).one("div", "lt-answer").attributes["data-number"] for said in (first, other)] == ["1", "2"]
    names = sorted(path.name for path in (tmp_path / "loras").glob("*weight0.5*.safetensors"))
    assert len(names) == 2  # one a number, and none overwritten
    assert [Page(go_on(wish(run, "continue", number=n))[0]).one("div", "lt-answer").attributes["data-then"]
            for n in "33"] == ["form", "form"]  # fmt: skip
    assert 'data-number="&lt;b&gt;"' in act(wish(run, "vote", number="<b>"))
    assert 'data-number=""' in act("no wish")


def test_only_the_last_answers_are_kept(panel: ValidatePanel) -> None:
    granted = []
    for number in [*range(150), 149, 0]:
        panel._once(str(number), granted.append)
    assert granted == [str(number) for number in [*range(150), 0]]
