"""The page's panel for block weights: what the blocks of a file do, and which weights suit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.config import parsing as lists
from lora_trainer.core.errors import InputError, LoraTrainError, explained
from lora_trainer.core.i18n import Translate
from lora_trainer.jobs.block_work import ANALYSIS, TUNING, blocks_folder
from lora_trainer.jobs.blocks import known_result, read_result
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.manifest import DAMAGED
from lora_trainer.runs.run import UNFINISHED, Run
from lora_trainer.ui.html import blocks as block_views
from lora_trainer.ui.html import common
from lora_trainer.ui.html.markup import EMPTY, Markup
from lora_trainer.ui.panels.common import WholePage, choice, shown_run
from lora_trainer.ui.widgets.fields import Shown
from lora_trainer.ui.widgets.refresh import HIDDEN, Part, Refresh, Watch

_BAKE_SECONDS = 60.0
"""How long the answer waits for the new file; baking takes a second, but it may stand in line behind a merge."""


_FIELDS = {
    "file": Shown("File of the run", "lora_train_blocks_file"),
    "weight": Shown("LoRA weight", "lora_train_blocks_weight"),
    "prompts": Shown("Prompts", "lora_train_blocks_prompts"),
    "seeds": Shown("Seeds", "lora_train_blocks_seeds"),
    "pictures": Shown("Other pictures", "lora_train_blocks_pictures"),
}


class BlocksPanel:
    """Widgets and what happens when they are used; made inside the ``with`` of whatever holds them.

    Args:
        jobs: of the host.
        translate: into the page's language.
    """

    def __init__(self, jobs: Jobs, translate: Translate) -> None:
        self._jobs = jobs
        self._t = translate
        self._build()
        self.watch = Watch([self.run, self.file, self.request], self.widgets, self.parts)

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        return {
            "run": self.run,
            "file": self.file,
            "heat": self.heat,
            "status": self.status,
            "tuning": self.tuning,
            "bake": self.bake,
            "request": self.request,
            "analysis": self.analysis,
            "analyze": self.analyze,
            "tune": self.tune,
            "stop": self.stop,
        }

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Wire the widgets; none of their events fills in the form."""
        shown = self.watch.refresh
        for chosen in (self.run, self.file, self.request):
            shown.on(chosen.input)
        for chosen in (self.run, self.file):
            chosen.input(lambda: "", None, [self.feedback], **HIDDEN)  # it was about another file
        subject = [self.run, self.file, self.weight]
        for event in (self.file.change, self.weight.change, self.prompts.blur, self.seeds.blur):
            event(self._cost, [*subject, self.prompts, self.seeds], [self.cost], **HIDDEN)
        self.analyze.click(self._analyze, [*subject, self.prompts, self.seeds], [self.feedback], **HIDDEN)
        self.tune.click(self._tune, [*subject, self.pictures], [self.feedback], **HIDDEN)
        self.stop.click(self._stop, [self.run], [self.feedback], **HIDDEN)
        self.bake.click(self._bake, [self.run, self.file], [self.feedback], queue=False)
        return []

    def following(self, run: Any) -> Refresh:
        """Takes over the choice of a run from another list, whoever made it."""
        return Refresh(lambda name: [self._followed(name)], [run], [self.run])

    def _followed(self, name: str | None) -> Any:
        names = self._jobs.run_names()
        return gr.update(choices=names, value=name) if name in names else gr.update()

    # -------------------------------------------------------------- layout
    def _build(self) -> None:
        t = self._t
        with gr.Row():
            self.run = gr.Dropdown(choices=[], label=t("Run of the file"), elem_id="lora_train_blocks_run")
            self.file = gr.Dropdown(
                choices=[], label=t("File of the run"), elem_id="lora_train_blocks_file", allow_custom_value=True
            )
            self.weight = gr.Number(value=1.0, label=t("LoRA weight"), elem_id="lora_train_blocks_weight")
        self.heat = gr.HTML(elem_id="lora_train_blocks_heat")
        with gr.Row():
            self.prompts = gr.Textbox(
                lines=2,
                label=t("Prompts"),
                info=t("One a line, some without the trigger word; empty: the sample prompts."),
                elem_id="lora_train_blocks_prompts",
            )
            self.seeds = gr.Textbox(
                value="1, 2",
                max_lines=1,
                label=t("Seeds"),
                info=t("With commas between; more give surer numbers."),
                elem_id="lora_train_blocks_seeds",
            )
            self.pictures = gr.Textbox(
                max_lines=1,
                label=t("Other pictures"),
                info=t("Folder with captions, to learn weights from; empty: those that the run kept aside."),
                elem_id="lora_train_blocks_pictures",
            )
        with gr.Row():
            self.analyze = gr.Button(t("Find out what each block does"), elem_id="lora_train_blocks_analyze")
            self.tune = gr.Button(t("Find the best block weights"), elem_id="lora_train_blocks_tune")
            self.stop = gr.Button(t("Stop"), visible=False, elem_id="lora_train_blocks_stop")
        self.cost = gr.HTML(elem_id="lora_train_blocks_cost")
        self.feedback = gr.HTML(elem_id="lora_train_blocks_feedback")
        self.status = gr.HTML(elem_id="lora_train_blocks_status")
        self.tuning = gr.HTML(elem_id="lora_train_blocks_tuning")
        self.bake = gr.Button(t("Bake these weights into a new file"), visible=False, elem_id="lora_train_blocks_bake")
        self.request = gr.Dropdown(
            choices=[], label=t("Prompt and seed"), visible=False, elem_id="lora_train_blocks_request"
        )
        self.analysis = gr.HTML(elem_id="lora_train_blocks_analysis")

    # -------------------------------------------------------------- what is shown
    def parts(self, chosen: str | None, file_name: str | None, prompt: str | None) -> dict[str, Part]:
        """The chosen run, file, and prompt and seed; see :attr:`widgets`."""
        name, asked, request = chosen or "", file_name or "", prompt or ""
        t, names = self._t, self._jobs.run_names()
        run = shown_run(self._jobs, name, names)
        paths = [Path(entry["path"]) for entry in run.manifest["files"]] if run else []
        stems = [path.stem for path in paths]
        file = asked if asked in stems else (stems[-1] if stems else "")
        path = paths[stems.index(file)] if file else None
        progress = self._jobs.blocks.progress(run) if run else {}
        busy = progress.get("state") in UNFINISHED
        analysis, tuning = ((self._stamp(run, path, kind), kind) for kind in (ANALYSIS, TUNING))

        def result(kind: str) -> dict[str, Any] | None:
            return known_result(run, path, kind) if run and path else None

        def shown(kind: str, show: Callable[[dict[str, Any]], Markup]) -> Markup:
            try:
                document = read_result(run, path, kind) if run and path else None
                return show(document) if document else EMPTY
            except InputError as error:  # a damaged one
                return common.error_notice(error, t)

        def analysed(document: dict[str, Any]) -> Markup:
            choices = _requests(document)
            return block_views.analysis_report(document, choices.index(request) if request in choices else 0, t)

        return {
            "run": ((names, run and run.name), lambda: choice(names, run.name if run else None, name)),
            "file": ((stems, file), lambda: choice(stems, file or None, asked)),
            "heat": (
                (run and run.name, [self._modified(each) for each in paths], file),
                lambda: self._heat(run, file) if run else common.notice(t("No run yet.")),
            ),
            "status": (progress, lambda: block_views.blocks_status(progress, t)),
            "tuning": (tuning, lambda: shown(TUNING, lambda document: block_views.tuning_report(document, t))),
            "bake": ((tuning, busy), lambda: gr.update(visible=_changes_something(result(TUNING)))),
            "request": (analysis, lambda: self._request_choice(result(ANALYSIS))),
            "analysis": ((analysis, request), lambda: shown(ANALYSIS, analysed)),
            "analyze": ((busy, bool(file)), lambda: gr.update(interactive=bool(file) and not busy)),
            "tune": ((busy, bool(file)), lambda: gr.update(interactive=bool(file) and not busy)),
            "stop": (busy, lambda: gr.update(visible=busy)),
        }

    def _heat(self, run: Run, file: str) -> Markup:
        from lora_trainer.runs.saved_files import run_files
        from lora_trainer.validation.blocks.norms import heat_map

        if run.state == DAMAGED:
            return common.notice(explained(run.manifest).text(self._t), "error")
        return block_views.heat_table(heat_map(run.name, run_files(run)), file, self._t)

    @staticmethod
    def _request_choice(document: dict[str, Any] | None) -> Any:
        choices = _requests(document) if document else []
        return gr.update(choices=choices, value=choices[0] if choices else None, visible=len(choices) > 1)

    def _stamp(self, run: Run | None, path: Path | None, kind: str) -> tuple[str, str, float]:
        """What tells whether there is another document to show."""
        if run is None or path is None:
            return ("", "", 0.0)
        return (run.name, path.stem, self._modified(blocks_folder(run) / path.stem / f"{kind}.json"))

    @staticmethod
    def _modified(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    # -------------------------------------------------------------- buttons
    def _analyze(self, run: str | None, file: str | None, weight: float | None, prompts: str, seeds: str) -> Markup:
        def start() -> None:
            self._jobs.blocks.analyze(run or "", self._wanted(file, weight, prompts, seeds))

        return common.answered(start, "", self._t, _FIELDS)

    def _cost(self, run: str | None, file: str | None, weight: float | None, prompts: str, seeds: str) -> Markup:
        """What the buttons would take; what is wrong with the fields is said when one is pressed."""
        try:
            found = self._jobs.blocks.cost(run or "", self._wanted(file, weight, prompts, seeds))
        except LoraTrainError:
            return EMPTY
        return block_views.costs(found[ANALYSIS], found[TUNING], self._t)

    def _wanted(self, file: str | None, weight: float | None, prompts: str, seeds: str) -> dict[str, Any]:
        return {
            **self._subject(file, weight),
            "prompts": [line.strip() for line in prompts.splitlines() if line.strip()],
            "seeds": lists.seeds(seeds),
        }

    def _tune(self, run: str | None, file: str | None, weight: float | None, pictures: str) -> Markup:
        body = {**self._subject(file, weight), "pictures": pictures.strip()}
        return common.answered(lambda: self._jobs.blocks.tune(run or "", body), "", self._t, _FIELDS)

    def _stop(self, run: str | None) -> Markup:
        return common.answered(lambda: self._jobs.blocks.stop(run or ""), "", self._t)

    def _bake(self, run: str | None, file: str | None) -> Markup:
        """Write the learned weights into a new file beside the old one, and make it known to the host."""
        try:
            entry = self._jobs.settled(run or "")
            path = self._path(entry, file or "")
            document = read_result(entry, path, TUNING)
            if document is None:
                raise InputError("There are no learned weights of {file} yet.", file=path.stem)
            task = self._jobs.tools.start("bake", {**self._named(path), **_baked(document)}, outside=True)
            if not self._jobs.tools.wait(task, _BAKE_SECONDS):
                return common.notice(self._t("{name} is in line.", name=task.title))
            if task.error:
                raise task.error
        except LoraTrainError as error:
            return common.error_notice(error, self._t)
        return common.notice(self._t("Written: {path}", path=task.result.path), "good")

    def _named(self, path: Path) -> dict[str, str]:
        loras = self._jobs.loras.root
        within = loras in path.parents
        return {"file": path.relative_to(loras).with_suffix("").as_posix() if within else str(path)}

    @staticmethod
    def _path(run: Run, file: str) -> Path:
        from lora_trainer.runs.saved_files import find_file

        return find_file(run, file).path

    @staticmethod
    def _subject(file: str | None, weight: float | None) -> dict[str, Any]:
        return {"file": file or "", "weight": weight}


def _requests(document: dict[str, Any]) -> list[str]:
    """What tells the pictures of one prompt and seed from those of others."""
    return [f"{each['prompt']} · {each['seed']}" for each in document["requests"]]


def _changes_something(document: dict[str, Any] | None) -> bool:
    """Whether the learned weights help, and baking them would make another file."""
    if document is None or document["recommended"] != "tuned":
        return False
    return any(weight != 1 for weight in (document["weight"], *document["weights"].values()))


def _baked(document: dict[str, Any]) -> dict[str, Any]:
    return {"weight": document["weight"], "lbw": document["lbw"]}
