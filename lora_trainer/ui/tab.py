"""The LoRA Train tab: seven steps on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from lora_trainer.config import presets
from lora_trainer.config.train import DataConfig, TrainConfig
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate, translator
from lora_trainer.core.plain_json import json_text
from lora_trainer.dataset.scan import Dataset
from lora_trainer.jobs.health import health_report
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.families import is_same_checkpoint
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import RESUMABLE, UNFINISHED, Run
from lora_trainer.training.advice import advise, calculate
from lora_trainer.training.proposals import propose, purpose_of, with_proposals
from lora_trainer.ui.html import common
from lora_trainer.ui.html import run as views
from lora_trainer.ui.panels.blocks import BlocksPanel
from lora_trainer.ui.panels.follow import Follower
from lora_trainer.ui.panels.lora_files import ToolsPanel
from lora_trainer.ui.panels.proposals import ProposalsBox
from lora_trainer.ui.panels.run_list import RunList
from lora_trainer.ui.panels.stacks import StacksPanel
from lora_trainer.ui.panels.sweeps import SweepBox
from lora_trainer.ui.panels.validation import ValidatePanel
from lora_trainer.ui.widgets.form import Form, dotted
from lora_trainer.ui.widgets.keep import Keeper
from lora_trainer.ui.widgets.preset_box import DOWNLOAD, PresetBox
from lora_trainer.ui.widgets.refresh import Refresh, together
from lora_trainer.ui.widgets.unsaved import unsaved

Updates = dict[Any, Any]

_SHOW_CHECKPOINT = "(title) => { if (title && window.selectCheckpoint) window.selectCheckpoint(title); return []; }"
"""Chooses a checkpoint in the WebUI's list at the top of the page, as its own cards do (javascript/ui.js)."""

_ADVISED = "() => { if (window.loraTrainAdvised) window.loraTrainAdvised(); return []; }"
"""Tells the page that the answer is there (lora_train_form.js)."""


def build(jobs: Jobs) -> gr.Blocks:
    """The tab for a host's jobs."""
    return Tab(jobs).blocks


class Tab:
    """The widgets, and what happens when they are used."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._t = translator(jobs.host.language())
        self._form = Form(self._t, jobs.host.samplers())
        self._scanned: tuple[object, Dataset] | None = None
        self.run_list = RunList(jobs, self._t)
        with gr.Blocks(analytics_enabled=False) as self.blocks, unsaved():
            with gr.Column(elem_id="lora_train"):
                with gr.Row(elem_id="lora_train_columns", equal_height=False):
                    with gr.Column(scale=6, min_width=320, elem_id="lora_train_form"):
                        self._build_settings()
                    with gr.Column(scale=5, min_width=320, elem_id="lora_train_side"):
                        self._build_training()
                self._build_validation()
            self._connect()

    # -------------------------------------------------------------- layout
    def _build_settings(self) -> None:
        t, form = self._t, self._form
        with self._step(1, "What to train"):
            with gr.Row():
                form.add("name")
                self.preset = gr.Dropdown(
                    choices=self._preset_names(),
                    label=t("Preset"),
                    info=t("Fills in the settings below."),
                    elem_id="lora_train_preset",
                )
            self.preset_box = PresetBox(t)
        with self._step(2, "Base model"):
            self.base = gr.HTML(elem_id="lora_train_base")
            if self._jobs.host.name == "standalone":
                form.add("checkpoint")
        with self._step(3, "Pictures"):
            form.add("data.folder")
            form.add_rows(["data.resolution", "data.repeats", "data.flip", "data.buckets"], 4)
            self._expert("data.bucket", "data.upscale")
            self.check = gr.Button(t("Check the pictures"), elem_id="lora_train_check")
            self.report = gr.HTML(elem_id="lora_train_report")
        with self._step(4, "Captions"):
            form.add_rows(["data.trigger", "data.shuffle", "data.keep_tokens", "data.caption_dropout"], 3)
            self._expert("data.separator", "data.caption_variants")
        with self._step(5, "Parameters"):
            form.add_rows(["network.rank", "network.alpha", "network.targets"])
            form.add_rows(["training.unet_lr", "training.text_lr", "training.optimizer"])
            form.add_rows(["training.epochs", "training.batch_size", "training.accumulate"])
            form.add_rows(["training.scheduler", "training.precision", "training.checkpointing"])
            rest = [p for p in form.section("network.", "training.", advanced=False) if p not in form.widgets]
            with gr.Accordion(t("More parameters"), open=False):
                form.add_rows(rest + form.section("network.", "training.", advanced=True))
            self.advice = gr.HTML(elem_id="lora_train_advice")
            self.proposals = ProposalsBox(t)

    def _build_training(self) -> None:
        t, form = self._t, self._form
        with self._step(6, "Training"):
            form.add("samples.prompts")
            form.add_rows(["save.every_epochs", "samples.every_epochs", "validation.share"])
            with gr.Accordion(t("More about files, samples and validation"), open=False):
                sections = ("save.", "samples.", "validation.")
                usual = [p for p in form.section(*sections, advanced=False) if p not in form.widgets]
                form.add_rows(usual + form.section(*sections, advanced=True))
            self.sweeps = SweepBox(t)
            self.feedback = gr.HTML(elem_id="lora_train_feedback")
            with gr.Row():
                self.train = gr.Button(t("Train"), variant="primary", elem_id="lora_train_start", scale=3)
                self.measure = gr.Button(t("Measure memory and time"), elem_id="lora_train_measure", scale=2)
            self.run = gr.Dropdown(choices=self._run_names(), label=t("Training run"), elem_id="lora_train_run")
            self.run_list.build()
            self.status = gr.HTML(elem_id="lora_train_status")
            with gr.Row(elem_id="lora_train_buttons"):
                self.stop = gr.Button(t("Stop and keep"), interactive=False, elem_id="lora_train_stop")
                self.after_epoch = gr.Button(t("Stop after this epoch"), interactive=False)
                self.pause = gr.Button(t("Pause"), interactive=False)
                self.resume = gr.Button(t("Resume"), interactive=False)
                self.reuse = gr.Button(t("Use its settings"), interactive=False)
                self.front = gr.Button(t("Train it next"), visible=False, elem_id="lora_train_front")
                self.earlier = gr.Button(t("Train it earlier"), visible=False, elem_id="lora_train_earlier")
                self.later = gr.Button(t("Train it later"), visible=False, elem_id="lora_train_later")
                self.bring = gr.Button(t("Load its checkpoint"), visible=False, elem_id="lora_train_bring")
                self.brought = gr.Textbox(visible=False)
                self.brought.do_not_save_to_config = True
            self.curves = gr.HTML(elem_id="lora_train_curves")
            self.samples = gr.Gallery(
                label=t("Samples"), columns=4, object_fit="contain", height="auto", elem_id="lora_train_samples"
            )
            self.files = gr.HTML(elem_id="lora_train_files")

    def _build_validation(self) -> None:
        with self._step(7, "Validation"), gr.Tabs(elem_id="lora_train_validation"):
            self.validate = self._panel("Epoch × weight", ValidatePanel)
            self.block_weights = self._panel("Block weights", BlocksPanel)
            self.stacks = self._panel("Stacks", StacksPanel)
            self.tools = self._panel("File tools", ToolsPanel)
        self.poll = gr.Button("poll", elem_id="lora_train_poll", elem_classes="lt-hidden")
        self.opened = gr.Button("", elem_id="lora_train_opened", elem_classes="lt-hidden")
        self.advised = gr.Button("", elem_id="lora_train_advised", elem_classes="lt-hidden")
        self.seen = gr.State({})
        self.about = gr.State({})
        self.follower = Follower(self._jobs, self.tools, self.stacks)
        self.keeper = Keeper(self._remembered(), {"preset": self._preset_names})

    def _remembered(self) -> dict[str, Any]:
        """What a reload keeps: whatever a person types or chooses, but for choices that follow the runs and files."""
        kinds = (gr.Textbox, gr.Number, gr.Checkbox, gr.Dropdown)
        follows = ("_run", "_file", "_known", "_add", "_request")
        made = [each for each in Context.root_block.blocks.values() if isinstance(each, kinds)]
        ours = [
            each for each in made if (each.elem_id or "").startswith("lora_train_") and each.interactive is not False
        ]
        return {
            each.elem_id.removeprefix("lora_train_"): each
            for each in ours
            if not each.elem_id.endswith(follows) and "lt-hidden" not in (each.elem_classes or [])
        }

    def _step(self, number: int, title: str) -> gr.Accordion:
        return gr.Accordion(f"{number} · {self._t(title)}", open=True, elem_id=f"lora_train_step_{number}")

    def _panel(self, title: str, panel: Callable[[Jobs, Translate], Any]) -> Any:
        with gr.TabItem(self._t(title)):
            return panel(self._jobs, self._t)

    def _expert(self, *prefixes: str) -> None:
        with gr.Accordion(self._t("For experts"), open=False):
            self._form.add_rows(self._form.section(*prefixes, advanced=True))

    # -------------------------------------------------------------- events
    def _connect(self) -> None:
        fields = {*self._form.widgets.values(), self.preset}
        hidden: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        widgets = list(self._form.widgets.values())
        outdated = [self.report, self.feedback, self.about]
        known = fields | {self.about}
        advised = [self.advice, *self.proposals.outputs, *outdated]
        self.check.click(self._check, known, [self.report, *advised], queue=False)
        # one event for all fields, pressed by lora_train_form.js: each event is a burden for every start of the page,
        # where gradio looks for each of its inputs among all components (get_api_info), and so does Blocks.svelte
        self.advised.click(self._advise, known, advised, **hidden).then(None, None, None, _js=_ADVISED)
        filled = [self.preset.select(self._load_preset, [self.preset], [*widgets, self.feedback], **hidden)]
        self.proposals.take.click(self._take, fields, [*widgets, *advised], **hidden)
        box = self.preset_box
        box.save.click(self._save_preset, fields | {box.name}, [self.preset, self.feedback], **hidden)
        given = box.download.click(self._export_preset, fields | {box.name}, [box.exported, self.feedback], **hidden)
        given.then(None, [box.exported], None, _js=DOWNLOAD, **hidden)
        filled.append(
            box.upload.upload(self._import_preset, [box.upload], [*widgets, self.preset, self.feedback], **hidden)
        )
        filled.append(box.defaults.click(self._defaults, None, [*widgets, self.feedback], **hidden))
        said = self.measure.click(self._measuring, None, [self.feedback], **hidden)
        said.then(self._measure, known, [self.feedback, self.about], **hidden)
        asked = [self.train.click(self._train, fields | {self.sweeps.text}, [self.run, self.feedback], **hidden)]
        self.sweeps.connect(fields, self._loose_config)
        ends = (
            (self.stop, StopRequest.STOP),
            (self.after_epoch, StopRequest.AFTER_EPOCH),
            (self.pause, StopRequest.PAUSE),
        )
        for button, request in ends:
            asked.append(button.click(self._asking(request), [self.run], [self.feedback], **hidden))
        asked.append(self.resume.click(self._resume, [self.run], [self.feedback], **hidden))
        for button, places in (self.front, None), (self.earlier, -1), (self.later, 1):
            asked.append(button.click(self._moving(places), [self.run], [self.feedback], **hidden))
        brought = self.bring.click(self._bring, [self.run], [self.feedback, self.brought], queue=False)
        brought.then(None, [self.brought], None, _js=_SHOW_CHECKPOINT)
        filled.append(self.reuse.click(self._reuse, [self.run], [*widgets, self.feedback], **hidden))
        filled.append(self.validate.connect(self.run, widgets, self._form.updates))
        self.run_list.connect(self.run, self.feedback)
        self.block_weights.connect()
        self.block_weights.follow(self.run, [self.run_list.changed])
        shown = [
            self.base, self.run, self.status, self.curves, self.samples, self.files, self.stop, self.after_epoch,
            self.pause, self.resume, self.reuse, self.front, self.earlier, self.later, self.bring,
            *self.run_list.outputs, *self.validate.outputs, self.seen,
        ]  # fmt: skip
        for answer in asked:
            answer.then(self._poll, [self.run, self.seen], shown, **hidden)
        filled.append(self.keeper.connect(self.opened, [self.tools.opened, self.stacks.opened]))
        for form in filled:
            form.then(self._advise, known, advised, **hidden)
        self.polled = Refresh(self._poll, [self.run, self.seen], shown)
        polled = together([self.polled, self.block_weights.polled, self.follower.polled(self.run)])
        self.poll.click(polled.show, polled.inputs, polled.outputs, **hidden)
        self.follower.connect()

    def _check(self, values: Updates) -> Updates:
        try:
            config = self._loose_config(values)
            dataset = self._jobs.dataset(config.data, decode=True)
        except LoraTrainError as error:
            return {self.report: common.error_notice(error, self._t), self.advice: "", **self.proposals.hidden()}
        self._scanned = (self._data_key(config.data), dataset)
        about = {**(values.get(self.about) or {}), "report": self._data_key(config.data)}
        report = views.dataset_report(dataset, self._t)
        return {self.report: report, self.about: about, **self._advised(values, config, dataset)}

    def _advise(self, values: Updates) -> Updates:
        try:
            config = self._loose_config(values)
            advised = self._advised(values, config, self._dataset(config.data))
            return {**advised, **self._outdated(values.get(self.about), config)}
        except LoraTrainError as error:
            return {self.advice: common.error_notice(error, self._t), **self.proposals.hidden()}

    def _take(self, values: Updates) -> Updates:
        """Fill in what is proposed for the form as it is now."""
        try:
            config = self._loose_config(values)
            dataset = self._dataset(config.data)
            if dataset is None:
                return self.proposals.hidden()
            proposals = propose(config, dataset, *self._subject(values, config))
        except LoraTrainError as error:
            return {self.advice: common.error_notice(error, self._t), **self.proposals.hidden()}
        filled = with_proposals(config, proposals)
        updates = {self._form.widgets[each.path]: gr.update(value=each.value) for each in proposals}
        return {**updates, **self._advised(values, filled, self._dataset(filled.data))}

    def _outdated(self, about: dict[str, Any] | None, config: TrainConfig) -> Updates:
        """Take away what is about other settings than the form's: the report of pictures, and what was measured."""
        now = {"report": self._data_key(config.data), "feedback": repr(config)}
        gone = [part for part, key in (about or {}).items() if key != now[part]]
        if not gone:
            return {}
        left = {part: key for part, key in (about or {}).items() if part not in gone}
        return {**{getattr(self, part): "" for part in gone}, self.about: left}

    def _train(self, values: Updates) -> Updates:
        try:
            config = TrainConfig.from_dict(self._form.document(values))
            wanted = self.sweeps.parse(values.get(self.sweeps.text))
            runs = self._jobs.sweep(config, wanted) if wanted else [self._jobs.submit(config)]
        except LoraTrainError as error:
            return {self.feedback: common.error_notice(error, self._t)}
        return {self.run: gr.update(choices=self._run_names(), value=runs[0].name), self.feedback: ""}

    def _measuring(self) -> str:
        return common.notice(self._t("A few steps are tried …"))

    def _measure(self, values: Updates) -> Updates:
        try:
            config = self._loose_config(values)
            measured = self._jobs.measure(config)
        except LoraTrainError as error:
            return {self.feedback: common.error_notice(error, self._t)}
        about = {**(values.get(self.about) or {}), "feedback": repr(config)}
        return {self.feedback: views.estimate(measured, self._t), self.about: about}

    def _asking(self, request: StopRequest) -> Callable[[str], str]:
        def ask(name: str) -> str:
            return common.answered(lambda: self._jobs.stop(name or "", request), "", self._t)  # the status tells it

        return ask

    def _resume(self, name: str) -> str:
        return common.answered(lambda: self._jobs.resume(name or ""), "", self._t)

    def _moving(self, places: int | None) -> Callable[[str], str]:
        """What moves a waiting run by some places, or to the front."""

        def move(name: str) -> str:
            names = [task.run.name for task in self._jobs.training.waiting()]
            place = names.index(name) + 1 + places if places and name in names else 1
            return common.answered(lambda: self._jobs.move(name or "", place), "", self._t)

        return move

    def _bring(self, name: str) -> tuple[str, str]:
        """What to say, and what the host's own list of checkpoints should show."""
        said = common.answered(lambda: self._jobs.load_checkpoint(name or ""), "The checkpoint is loaded.", self._t)
        return said, self._jobs.host.chosen_checkpoint()

    def _load_preset(self, name: str) -> list[Any]:
        try:
            values = presets.load(name, self._jobs.host.folders.presets)
        except LoraTrainError as error:
            return [*self._form.updates({}), common.error_notice(error, self._t)]
        return [*self._form.updates(values), common.notice(self._t("The preset {name} is filled in.", name=name))]

    def _save_preset(self, values: Updates) -> Updates:
        name = str(values.get(self.preset_box.name) or "").strip()
        try:
            config = self._loose_config(values)
            path = presets.save(name, config, self._jobs.host.folders.presets)
        except LoraTrainError as error:
            return {self.feedback: common.error_notice(error, self._t)}
        message = self._t("Saved as {path}.", path=path)
        return {
            self.preset: gr.update(choices=self._preset_names(), value=name),
            self.feedback: common.notice(message, "good"),
        }

    def _export_preset(self, values: Updates) -> Updates:
        """The form as a preset's file, for the browser to store."""
        name = str(values.get(self.preset_box.name) or values.get(self.preset) or "preset").strip()
        try:
            text = presets.to_toml(self._loose_config(values))
        except LoraTrainError as error:
            return {self.preset_box.exported: "", self.feedback: common.error_notice(error, self._t)}
        return {self.preset_box.exported: json_text({"name": f"{name}.toml", "text": text}), self.feedback: ""}

    def _import_preset(self, file: Any) -> list[Any]:
        """Keep a file of settings among the presets, and fill the form in."""
        own = self._jobs.host.folders.presets
        try:
            name = presets.add(Path(file.name), own)
            values = presets.load(name, own)
        except LoraTrainError as error:
            return [*self._form.updates({}), gr.update(), common.error_notice(error, self._t)]
        said = self._t("The preset {name} is filled in.", name=name)
        return [*self._form.updates(values), gr.update(choices=self._preset_names(), value=name), common.notice(said)]

    def _defaults(self) -> list[Any]:
        """What belongs to one data set stays."""
        values = {k: v for k, v in dotted(TrainConfig().to_dict()).items() if k not in presets.PERSONAL}
        return [*self._form.updates(values), common.notice(self._t("The usual settings are filled in."))]

    def _reuse(self, name: str) -> list[Any]:
        try:
            document = self._jobs.settled(name or "").config().to_dict()
        except LoraTrainError as error:
            return [*self._form.updates({}), common.error_notice(error, self._t)]
        message = self._t("The settings of {name} are filled in; give a new name.", name=name)
        return [*self._form.updates(dotted(document)), common.notice(message)]

    # -------------------------------------------------------------- what is shown
    def _poll(self, name: str | None, seen: dict[str, Any]) -> list[Any]:
        """Everything that may have changed since ``seen``; what has not is left alone."""
        parts = self._parts(self._shown_run(name), name or "")
        shown = [gr.update() if seen.get(key) == mark else make() for key, (mark, make) in parts.items()]
        return [*shown, {key: mark for key, (mark, _) in parts.items()}]

    def _parts(self, run: Run | None, asked: str) -> dict[str, tuple[Any, Callable[[], Any]]]:
        """Key → what tells its state, and what shows it; in the order of the outputs."""
        t = self._t
        m: Mapping[str, Any] = run.manifest if run else {}
        health = health_report(self._jobs)
        names = self._run_names()
        state = run.state if run else ""
        waiting = [task.run for task in self._jobs.training.waiting()]
        before = waiting.index(run) + 1 if run and run in waiting else 0
        task = self._jobs.training.find(run) if run else None
        request = task.control.request if task else None

        waits = bool(m.get("waits"))
        other = self._jobs.host.name != "standalone" and state in RESUMABLE and not _is_loaded(m, health)

        def button(on: bool) -> tuple[Any, Callable[[], Any]]:
            return (on, lambda: gr.update(interactive=on))

        def shown(on: bool) -> tuple[Any, Callable[[], Any]]:
            return (on, lambda: gr.update(visible=on))

        return {
            "base": ((health["checkpoint"], health["problem"]), lambda: self._base_model(health)),
            "run": ((names, run and run.name), lambda: self._run_choice(names, run, asked)),
            "status": (
                (dict(m), before, request),
                lambda: views.status_card(m, before, t, request) if run else self._no_run(),
            ),
            "curves": (
                (run and run.name, m.get("step"), m.get("validation")),
                lambda: self._curves(run),
            ),
            "samples": (list(m.get("samples", [])), lambda: _gallery(m)),
            "files": (list(m.get("files", [])), lambda: self._files(run)),
            "stop": button(state in UNFINISHED or waits),
            "after_epoch": button(state == "running"),
            "pause": button(state in UNFINISHED or waits),
            "resume": button(state in RESUMABLE and not waits),
            "reuse": button(bool(run)),
            "front": shown(before > 1),
            "earlier": shown(before > 2),
            "later": shown(0 < before < len(waiting)),
            "bring": shown(other),
            **self.run_list.parts(run, names),
            **self.validate.parts(run),
        }

    def _shown_run(self, name: str | None) -> Run | None:
        """The chosen run; without one what is worked on, else the newest readable: a reloaded page finds it again."""
        current = self._jobs.training.current()
        for candidate in (name, current.run.name if current else None, *self._run_names()):
            try:
                if candidate:
                    return self._jobs.shown(candidate)
            except InputError:
                continue
        return None

    def _curves(self, run: Run | None) -> str:
        try:
            return views.curves(run.history.curve(), run.manifest, self._t) if run else ""
        except InputError as error:  # the log cannot be read
            return common.error_notice(error, self._t)

    def _base_model(self, health: dict[str, Any]) -> str:
        try:
            self._jobs.host.check(TrainConfig(name="health"))
        except LoraTrainError as error:  # as health tells it, but in the page's language
            return common.error_notice(error, self._t)
        return views.base_model(health, self._t)

    @staticmethod
    def _run_choice(names: list[str], run: Run | None, asked: str) -> Any:
        """The list of runs. What the person chose is left alone: this answer may come after they chose again."""
        if run and run.name == asked:
            return gr.update(choices=names)
        return gr.update(choices=names, value=run.name if run else None)

    def _no_run(self) -> str:
        return common.notice(self._t("No run yet. Fill in the steps on the left and press Train."))

    def _files(self, run: Run | None) -> str:
        if run is None:
            return ""
        try:
            trigger = run.config().data.trigger
        except InputError:
            trigger = ""
        return views.files_table(run.manifest, trigger, self._t)

    def _run_names(self) -> list[str]:
        return self._jobs.runs.names()

    def _preset_names(self) -> list[str]:
        return presets.names(self._jobs.host.folders.presets)

    # -------------------------------------------------------------- helpers
    def _loose_config(self, values: Updates) -> TrainConfig:
        """The form without asking for a name yet."""
        document = self._form.document(values)
        return TrainConfig.from_dict({**document, "name": document["name"] or "unnamed"})

    def _dataset(self, data: DataConfig) -> Dataset | None:
        """The data set, scanned again only when its settings or folder changed."""
        if not data.folder:
            return None
        key = self._data_key(data)
        if self._scanned is None or self._scanned[0] != key:
            try:
                self._scanned = (key, self._jobs.dataset(data))
            except InputError:
                return None
        return self._scanned[1]

    @staticmethod
    def _data_key(data: DataConfig) -> object:
        return (repr(data), _modified(data.folder))

    def _advised(self, values: Updates, config: TrainConfig, dataset: Dataset | None) -> Updates:
        """Advice and proposals for the form."""
        found = self.proposals.shown(config, dataset, *self._subject(values, config)) if dataset else None
        return {self.advice: self._advice(config, dataset), **(found or self.proposals.hidden())}

    def _subject(self, values: Updates, config: TrainConfig) -> tuple[str, int]:
        """What is trained, and the checkpoint's own resolution."""
        return purpose_of(values.get(self.preset), config), self._jobs.host.native_resolution(config)

    def _advice(self, config: TrainConfig, dataset: Dataset | None) -> str:
        host = self._jobs.host
        found = advise(config, dataset, host.native_resolution(config), host.is_common_word, host.words)
        return views.advice_list(found, calculate(config, dataset) if dataset else None, self._t)


def _gallery(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The newest samples first, each with its step and prompt."""
    entries = [s for s in manifest.get("samples", []) if Path(s["path"]).is_file()]
    return [(s["path"], f"{s['epoch']} · {s['step']} · {s['prompt']}") for s in reversed(entries[-40:])]


def _is_loaded(manifest: Mapping[str, Any], health: dict[str, Any]) -> bool:
    """Whether a run's checkpoint is loaded, as far as is known."""
    return is_same_checkpoint(manifest.get("checkpoint", {}), health["checkpoint"]) is True


def _modified(path: str | None) -> float:
    try:
        return Path(path).stat().st_mtime if path else 0.0
    except OSError:
        return 0.0
