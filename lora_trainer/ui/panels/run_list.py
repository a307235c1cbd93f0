"""All runs in a table to choose from, and their end: discarding and deleting, which ask first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs import trash
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.run import UNFINISHED, Run
from lora_trainer.ui.html import common
from lora_trainer.ui.html import run as views
from lora_trainer.ui.html.markup import Markup, joined, markup
from lora_trainer.ui.panels.common import WholePage
from lora_trainer.ui.widgets.refresh import HIDDEN, Part, Refresh

SHOWN = 50
"""Runs in the table; all of them are in the list above it."""


class RunList:
    """The widgets, and what happens when they are used; made where gradio is now.

    Args:
        jobs: whose runs are shown.
        translate: into the page's language.
    """

    def __init__(self, jobs: Jobs, translate: Translate) -> None:
        self._jobs = jobs
        self._t = translate
        self._build()
        self.asking = [self.asked, self.question, self.answers, self.yes, self.only_run]
        self.changed = Refresh(self._nothing_asked, [], self.asking)
        """For another run nothing has been asked yet."""

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        return {"runs": self.table, "discard": self.discard, "delete": self.delete}

    # -------------------------------------------------------------- layout
    def _build(self) -> None:
        """The buttons that end a run for good are apart from those of every day."""
        t = self._t
        with gr.Accordion(t("All runs"), open=False, elem_id="lora_train_all_runs"):
            self.table = gr.HTML(elem_id="lora_train_runs")
            with gr.Row():
                self.discard = gr.Button(
                    t("Stop and discard the chosen run …"), interactive=False, elem_id="lora_train_discard"
                )
                self.delete = gr.Button(t("Delete the chosen run …"), interactive=False, elem_id="lora_train_delete")
            self.question = gr.HTML(elem_id="lora_train_question")
            with gr.Row(visible=False) as self.answers:
                self.yes = gr.Button("", variant="stop", elem_id="lora_train_yes")
                self.only_run = gr.Button(t("Delete, but keep its LoRA files"), elem_id="lora_train_only_run")
                self.no = gr.Button(t("Cancel"), elem_id="lora_train_no")
        self.wish = gr.Textbox(elem_id="lora_train_run_wish", elem_classes="lt-hidden", show_label=False)
        self.choose = gr.Button("", elem_id="lora_train_run_choose", elem_classes="lt-hidden")
        self.asked = gr.State({})

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; none of their events fills in the form."""
        ended = [page.feedback, *self.asking]
        self.choose.click(self._choose, [self.wish], [page.run], **HIDDEN)
        self.discard.click(lambda name: self._ask("discard", name), [page.run], self.asking, **HIDDEN)
        self.delete.click(lambda name: self._ask("delete", name), [page.run], self.asking, **HIDDEN)
        self.changed.on(self.no.click)
        self.yes.click(lambda asked: self._end(asked, files=True), [self.asked], ended, **HIDDEN)
        self.only_run.click(lambda asked: self._end(asked, files=False), [self.asked], ended, **HIDDEN)
        return []

    # -------------------------------------------------------------- what is shown
    def parts(self, run: Run | None, names: list[str]) -> dict[str, Part]:
        """Key → what tells its state, and what shows it; by the names of :attr:`widgets`.

        Args:
            run: the chosen run.
            names: of all runs, newest first.
        """
        rows = self._rows(names)
        chosen = run.name if run else ""
        goes_on = run is not None and (run.state in UNFINISHED or bool(run.manifest.get("waits")))
        can_go = run is not None and not self._jobs.is_worked_on(run)
        return {
            "runs": ((rows, chosen, len(names)), lambda: runs_table(rows, chosen, len(names), self._t)),
            "discard": (goes_on, lambda: gr.update(interactive=goes_on)),
            "delete": (can_go, lambda: gr.update(interactive=can_go)),
        }

    def _rows(self, names: list[str]) -> list[dict[str, Any]]:
        """Those that are worked on, in their order, then the newest."""
        waiting = [run.name for run in self._jobs.waiting()]
        current = self._jobs.current()
        order = [current.name, *waiting] if current else waiting
        shown = [*(name for name in order if name in names), *(name for name in names if name not in order)]
        return [self._row(name, waiting) for name in shown[:SHOWN]]

    def _row(self, name: str, waiting: list[str]) -> dict[str, Any]:
        try:
            m = self._jobs.settled(name).manifest
        except InputError:  # damaged
            return {"name": name, "state": ""}
        place = waiting.index(name) + 1 if name in waiting else 0
        keys = ("state", "created", "epoch", "epochs", "loss_average")
        return {"name": name, "place": place, **{key: m.get(key) for key in keys},
                "validation": (m.get("validation") or {}).get("last")}  # fmt: skip

    @staticmethod
    def _choose(name: str) -> Any:
        return gr.update(value=name)

    # -------------------------------------------------------------- asking first
    def _ask(self, kind: str, name: str | None) -> list[Any]:
        t = self._t
        try:
            run = self._jobs.runs.get(name or "")
        except LoraTrainError as error:
            return [{}, common.error_notice(error, t), gr.update(visible=False), gr.update(), gr.update()]
        files, place = len(run.manifest["files"]), self._jobs.runs.root / trash.FOLDER
        if kind == "discard":
            says = t(
                "Stop {name} and discard all of it, with its {count} LoRA files? It goes to {folder}.",
                name=run.name, count=files, folder=place,
            )  # fmt: skip
            yes = t("Stop and discard")
        else:
            says = t(
                "Delete {name}? Its settings, log, samples and grids go to {folder}. With its {count} LoRA files kept, "
                "its name stays taken.",
                name=run.name, count=files, folder=place,
            )  # fmt: skip
            yes = t("Delete with its LoRA files")
        return [
            {"kind": kind, "name": run.name}, common.notice(says, "warning"), gr.update(visible=True),
            gr.update(value=yes), gr.update(visible=kind == "delete"),
        ]  # fmt: skip

    @staticmethod
    def _nothing_asked() -> list[Any]:
        return [{}, "", gr.update(visible=False), gr.update(), gr.update()]

    def _end(self, asked: dict[str, Any], *, files: bool) -> list[Any]:
        """What was asked about, not what is chosen now."""
        name = str(asked.get("name", ""))
        try:
            if asked.get("kind") == "discard":
                trash.discard(self._jobs, name)
                said = self._t("{name} stops after this step and is discarded.", name=name)
            else:
                said = self._t("Deleted: it lies in {path}.", path=trash.delete(self._jobs, name, files=files))
        except LoraTrainError as error:
            return [common.error_notice(error, self._t), *self._nothing_asked()]
        return [common.notice(said, "good"), *self._nothing_asked()]


def runs_table(rows: list[dict[str, Any]], chosen: str, count: int, translate: Translate) -> Markup:
    """Name, state, place in line, losses, epoch and date of each run; a press on a name shows it."""
    t = translate
    if not rows:
        return common.notice(t("No run yet."))
    names = (t("run"), t("state"), t("loss"), t("validation loss"), t("epoch"), t("begun"))
    heads = joined(markup("<th>{name}</th>", name=name) for name in names)
    lines = joined(_line(row, row["name"] == chosen, t) for row in rows)
    more = common.notice(t("… and {count} more.", count=count - len(rows))) if count > len(rows) else ""
    table = markup(
        '<table class="lt-files lt-runs"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>',
        heads=heads,
        lines=lines,
    )
    return markup('<div class="lt-scroll">{table}</div>{more}', table=table, more=more)


def _line(row: dict[str, Any], is_chosen: bool, t: Translate) -> Markup:
    name, state = row["name"], str(row["state"] or "")
    button = markup('<button class="lt-choose" data-run="{name}">{name}</button>', name=name)
    if state not in views.STATE_NAMES:
        cells = [button, t("damaged"), "", "", "", ""]
    else:
        badge = markup(
            '<span class="lt-badge lt-{state}">{label}</span>',
            state=state,
            label=t(views.STATE_NAMES[state]),
        )
        place = f" {t('place {place}', place=row['place'])}" if row["place"] else ""
        epoch = f"{row['epoch']}/{row['epochs']}"
        losses = [_loss(row["loss_average"]), _loss(row["validation"])]
        cells = [button, badge + place, *losses, epoch, _date(row["created"])]
    mark = markup(' class="lt-chosen"') if is_chosen else ""
    return (
        markup("<tr{mark}>", mark=mark)
        + joined(markup("<td>{cell}</td>", cell=cell) for cell in cells)
        + markup("</tr>")
    )


def _date(created: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(created)))
    except (TypeError, ValueError, OverflowError, OSError):
        return "–"


def _loss(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–"
