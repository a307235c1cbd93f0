"""The page of the epoch × weight grid: what to draw, the viewer, and what is done with the cell that was chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.config import parsing as lists
from lora_trainer.config.schema import field_error
from lora_trainer.core.errors import InputError, LoraTrainError, NotFound
from lora_trainer.core.i18n import Translate
from lora_trainer.core.plain_json import parse_json
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import UNFINISHED, Run
from lora_trainer.ui.html import common
from lora_trainer.ui.html import grid as grid_view
from lora_trainer.ui.html import run as views
from lora_trainer.ui.html.markup import EMPTY, Markup, markup
from lora_trainer.ui.panels.common import WholePage
from lora_trainer.ui.widgets.fields import Fields, Shown
from lora_trainer.ui.widgets.form import dotted
from lora_trainer.ui.widgets.refresh import HIDDEN, Part
from lora_trainer.validation.grid import choice as choose
from lora_trainer.validation.grid.options import DEFAULT_WEIGHTS, grid_options

if TYPE_CHECKING:
    from lora_trainer.validation.grid.document import GridDocument

_WEIGHTS = ", ".join(map(str, DEFAULT_WEIGHTS))
_SEEDS = "1, 2"
_KEPT_ANSWERS = 100
_WIDGETS = {
    "epochs": "lora_train_grid_epochs",
    "weights": "lora_train_weights",
    "seeds": "lora_train_grid_seeds",
    "prompts": "lora_train_grid_prompts",
    "numbers": "lora_train_grid_numbers",
    "together": "lora_train_grid_together",
    "clip": "lora_train_grid_clip",
}


class ValidatePanel:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: draws the grids.
        translate: into the page's language.
    """

    def __init__(self, jobs: Jobs, translate: Translate) -> None:
        self._jobs = jobs
        self._t = translate
        self._options = grid_options()
        self._granted: dict[str, Any] = {}
        self._granting = threading.Lock()
        self._build_wishes()
        self._build_viewer()

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        return {
            "grid_status": self.status,
            "stop_draw": self.stop,
            "grid_verdict": self.verdict,
            "grid": self.document,
            "grid_chart": self.chart,
        }

    # -------------------------------------------------------------- layout
    def _build_wishes(self) -> None:
        t = self._t
        with gr.Row():
            self.epochs = self._field("epochs", value=self._options["epochs"].default, max_lines=1)
            self.weights = self._field("weights", value=_WEIGHTS, max_lines=1)
            self.seeds = self._field("seeds", value=_SEEDS, max_lines=1)
        self.prompts = self._field("prompts", lines=2)
        with gr.Row():
            self.numbers = self._field("numbers", gr.Checkbox, value=self._options["numbers"].default)
            self.together = self._field("together", gr.Number, value=self._options["together"].default)
        with gr.Accordion(t("For experts"), open=False):
            self.clip = self._field("clip", max_lines=1)
        with gr.Row():
            self.draw = gr.Button(t("Draw the epoch × weight grid"), variant="primary", elem_id="lora_train_draw")
            self.stop = gr.Button(t("Stop drawing"), visible=False, elem_id="lora_train_stop_draw")

    def _field(self, name: str, kind: Any = gr.Textbox, **more: Any) -> Any:
        """The widget of an option of grids, with its label and help."""
        item = self._options[name]
        return kind(label=self._t(item.title), info=self._t(item.help), elem_id=_WIDGETS[name], **more)

    def _build_viewer(self) -> None:
        self.status = gr.HTML(elem_id="lora_train_grid_status")
        self.verdict = gr.HTML(elem_id="lora_train_grid_verdict")
        self.viewer = gr.HTML(markup('<div class="lt-viewer"></div>'), elem_id="lora_train_grid")
        self.chart = gr.HTML(elem_id="lora_train_grid_chart")
        self.feedback = gr.HTML(elem_id="lora_train_grid_feedback", elem_classes="lt-hidden")
        self.document = gr.HTML(elem_id="lora_train_grid_data", elem_classes="lt-hidden")
        self.wish = gr.Textbox(elem_id="lora_train_grid_wish", elem_classes="lt-hidden", show_label=False)
        self.act = gr.Button("", elem_id="lora_train_grid_act", elem_classes="lt-hidden")
        self.go_on = gr.Button("", elem_id="lora_train_grid_continue", elem_classes="lt-hidden")

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; returns the event that fills in the form."""
        wishes = [page.run, self.epochs, self.weights, self.prompts, self.seeds, self.together, self.numbers, self.clip]
        self.draw.click(self._draw, wishes, [self.status], **HIDDEN)
        self.stop.click(self._stop, [page.run], [self.status], **HIDDEN)

        def act(wish: str) -> Markup:
            return _answer_to(wish, self._once(wish, self._act))

        def go_on(wish: str) -> list[Any]:
            values, said = self._once(wish, self._continue)
            return [*page.form.updates(values), _answer_to(wish, said, "form" if values else "")]

        self.act.click(act, [self.wish], [self.feedback], **HIDDEN)
        return [self.go_on.click(go_on, [self.wish], [*page.form.widgets.values(), self.feedback], **HIDDEN)]

    # -------------------------------------------------------------- drawing
    def _draw(
        self,
        name: str | None,
        epochs: str,
        weights: str,
        prompts: str,
        seeds: str,
        together: float | None,
        numbers: bool,
        clip: str,
    ) -> Markup:
        def start() -> Run:
            return self._jobs.grids.draw(
                name or "",
                weights=lists.weights(weights),
                prompts=[line.strip() for line in prompts.splitlines() if line.strip()],
                epochs=epochs.strip() or "all",
                seeds=lists.seeds(seeds),
                together=_whole(1 if together is None else together),
                numbers=numbers,
                clip=clip.strip(),
            )

        return common.answered(start, "The grid is being drawn.", self._t, self._shown_fields())

    def _shown_fields(self) -> Fields:
        """What an error about a grid's options is about."""
        return {name: Shown(item.title, _WIDGETS[name]) for name, item in self._options.items()}

    def _stop(self, name: str | None) -> Markup:
        return common.answered(lambda: self._jobs.grids.stop(name or ""), "The drawing stops.", self._t)

    # -------------------------------------------------------------- what is shown
    def parts(self, run: Run | None) -> dict[str, Part]:
        """Key → what tells its state, and what shows it; by the names of :attr:`widgets`."""
        entry = run.manifest.get("grid", {}) if run else {}
        drawn = _mark(run, "grid.json")
        drawing = entry.get("state") in UNFINISHED
        return {
            "grid_status": (dict(entry), lambda: views.grid_status(entry, self._t)),
            "stop_draw": (drawing, lambda: gr.update(visible=drawing)),
            "grid_verdict": (drawn, lambda: self._show(run, self._verdict, tells=True)),
            "grid": (_mark(run, "grid.json", "votes.json"), lambda: self._show(run, self._data)),
            "grid_chart": (drawn, lambda: self._show(run, self._chart)),
        }

    def _show(self, run: Run | None, show: Callable[[Run, GridDocument], Markup], *, tells: bool = False) -> Markup:
        """A part of the grid's page; one of them ``tells`` when the document is damaged."""
        from lora_trainer.validation.grid.document import known_grid

        if run is None:
            return EMPTY
        try:
            return show(run, known_grid(run))
        except NotFound:  # there is no grid yet, or only an old one
            return EMPTY
        except InputError as error:
            return common.error_notice(error, self._t) if tells else EMPTY

    def _verdict(self, run: Run, document: GridDocument) -> Markup:
        return grid_view.verdict(document, _folder(run), self._t)

    def _data(self, run: Run, document: GridDocument) -> Markup:
        folder = _folder(run)
        for path in grid_view.shown_files(document, folder):
            self.document.temp_files.add(str(path.absolute()))  # gradio serves what one of its widgets has made
        view = grid_view.grid_view(document, choose.votes(run), folder, self._t)
        return grid_view.grid_data(view, repr(_mark(run, "grid.json", "votes.json")))

    def _chart(self, run: Run, document: GridDocument) -> Markup:
        return grid_view.grid_losses(document, self._t)

    # -------------------------------------------------------------- the chosen cell
    def _once(self, wish: str, grant: Callable[[str], Any]) -> Any:
        """Grant a wish; of one that the page sends again, since no answer came, only the answer of the first time.

        Each wish has a number, so that two with the same text are the same.
        """
        with self._granting:
            if wish not in self._granted:
                self._granted[wish] = grant(wish)
                for old in list(self._granted)[:-_KEPT_ANSWERS]:
                    del self._granted[old]
            return self._granted[wish]

    def _act(self, wish: str) -> Markup:
        """Do what the viewer asks for: an object with ``action``, ``run``, ``key``, ``column`` and ``weight``."""
        actions = {"vote": self._vote, "card": self._card, "preview": self._preview, "bake": self._bake}
        try:
            asked = _asked(wish)
            action = actions.get(str(asked.get("action")))
            if action is None:
                raise _unreadable()
            return action(self._choice(asked), asked)
        except LoraTrainError as error:
            return common.error_notice(error, self._t)

    def _choice(self, asked: Mapping[str, Any]) -> choose.Choice:
        run = self._jobs.settled(str(asked.get("run", "")))
        column, weight = asked.get("column"), asked.get("weight")
        if not isinstance(column, int) or not isinstance(weight, (int, float)):
            raise _unreadable()
        return choose.find_cell(run, str(asked.get("key", "")), column, weight)

    @staticmethod
    def _vote(choice: choose.Choice, asked: Mapping[str, Any]) -> Markup:
        choose.vote(choice, asked.get("value", 0))
        return EMPTY

    def _card(self, choice: choose.Choice, asked: Mapping[str, Any]) -> Markup:
        path = choose.write_card(choice)
        return self._said(self._t("Weight and activation text are in the card: {path}.", path=path))

    def _preview(self, choice: choose.Choice, asked: Mapping[str, Any]) -> Markup:
        path, kept = choose.set_preview(choice)
        said = self._said(self._t("The picture is on the card: {path}.", path=path))
        names = ", ".join(path.name for path in kept)
        return said + common.notice(self._t("The one before is kept as {names}.", names=names)) if kept else said

    def _bake(self, choice: choose.Choice, asked: Mapping[str, Any]) -> Markup:
        path = choose.bake_cell(choice)
        self._jobs.host.announce(path)
        return self._said(self._t("Baked: {path}. Use it at the weight 1.", path=path))

    def _continue(self, wish: str) -> tuple[dict[str, Any], str]:
        """Settings of a run that goes on from the chosen file, by dotted key, and a sentence."""
        try:
            choice = self._choice(_asked(wish))
            file = choice.used().path
            document = choice.run.config().to_dict()
        except LoraTrainError as error:
            return {}, common.error_notice(error, self._t)
        said = self._t(
            "The settings of {name} are filled in, to go on from {file}; give a new name.",
            name=choice.run.name,
            file=file.name,
        )
        return {**dotted(document), "network.continue_from": str(file), "name": ""}, common.notice(said)

    @staticmethod
    def _said(sentence: str) -> Markup:
        return common.notice(sentence, "good")


def _whole(together: float) -> int:
    if together != int(together):
        raise field_error("together", "expected {wanted}, not {value}.", wanted="a whole number", value=together)
    return int(together)


def _folder(run: Run) -> Path:
    from lora_trainer.validation.grid.document import grid_folder

    return grid_folder(run)


def _mark(run: Run | None, *names: str) -> tuple[Any, ...]:
    """Tells whether files of the run's grid have changed."""
    return (run.name, *(_modified(_folder(run) / name) for name in names)) if run else ()


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _answer_to(wish: str, said: str, then: str = "") -> Markup:
    """An answer for the viewer, which knows it by the wish's number; ``then`` is ``"form"`` to go to the form."""
    try:
        number = str(_asked(wish).get("number", ""))
    except InputError:
        number = ""
    return markup(
        '<div class="lt-answer" data-number="{number}" data-then="{then}">{said}</div>',
        number=number,
        then=then,
        said=said,
    )


def _asked(wish: str) -> dict[str, Any]:
    try:
        asked = parse_json(wish)
    except (TypeError, ValueError):
        asked = None
    if not isinstance(asked, dict):
        raise _unreadable()
    return asked


def _unreadable() -> InputError:
    return InputError("The page asked for something unknown; reload it.", field="wish")
