"""Several runs at once, by the names that the page itself uses, with their number before Train is pressed."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from lora_trainer.config.schema import Option
from lora_trainer.config.sweep import parse_sweep, variants
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import Translate
from lora_trainer.ui.html import common
from lora_trainer.ui.html.markup import EMPTY, Markup
from lora_trainer.ui.widgets.form import label_of
from lora_trainer.ui.widgets.refresh import HIDDEN

_NAMED = 6


class SweepBox:
    """The list of values to try, what adds a line to it, and how many runs it makes; made where gradio is now.

    Args:
        translate: into the page's language.
    """

    def __init__(self, translate: Translate) -> None:
        self._t = translate
        self._paths = paths_by_label(translate)
        t = translate
        with gr.Accordion(t("Several runs, to compare settings"), open=False, elem_id="lora_train_sweeps"):
            with gr.Row():
                labels = [label_of(item, t) for item in _settings()]
                self.setting = gr.Dropdown(
                    choices=labels, label=t("Setting to try"), elem_id="lora_train_sweep_setting"
                )
                self.values = gr.Textbox(
                    max_lines=1,
                    label=t("Its values"),
                    info=t("With commas between, e.g. 8, 16."),
                    elem_id="lora_train_sweep_values",
                )
                self.add = gr.Button(t("Add the line"), elem_id="lora_train_sweep_add", elem_classes="lt-go")
            self.text = gr.Textbox(
                lines=2,
                label=t("Values to try"),
                info=t("One setting a line, as it is called here, e.g. Rank = 8, 16; every combination becomes a run."),
                elem_id="lora_train_sweep",
            )
            self.count = gr.HTML(elem_id="lora_train_sweep_count")

    def connect(self, fields: set[Any], config: Callable[[dict[Any, Any]], TrainConfig]) -> None:
        """Wire the widgets.

        Args:
            fields: the form's widgets.
            config: makes the configuration of their values.
        """

        def count(values: dict[Any, Any]) -> dict[Any, Any]:
            return {self.count: self.counted(values.get(self.text), lambda: config(values))}

        added = self.add.click(self._added, [self.setting, self.values, self.text], [self.text, self.values], **HIDDEN)
        added.then(count, fields | {self.text}, [self.count], **HIDDEN)
        self.text.blur(count, fields | {self.text}, [self.count], **HIDDEN)

    def parse(self, text: str | None) -> dict[str, list[Any]]:
        """The values by dotted key.

        Raises:
            InputError: a line is not of the form, or there is no such setting.
        """
        return parse_sweep(by_paths(text or "", self._paths))

    def counted(self, text: str | None, config: Callable[[], TrainConfig]) -> Markup:
        """How many runs these are, and their names; or what is wrong."""
        if not (text or "").strip():
            return EMPTY
        try:
            runs = variants(config(), self.parse(text))
        except LoraTrainError as error:
            return common.error_notice(error, self._t)
        names = ", ".join(run.name for run in runs[:_NAMED]) + (" …" if len(runs) > _NAMED else "")
        return common.notice(self._t("Train starts {count} runs: {names}", count=len(runs), names=names))

    @staticmethod
    def _added(setting: str | None, values: str, text: str) -> list[Any]:
        if not setting or not values.strip():
            return [gr.update(), gr.update()]
        lines = [line for line in text.splitlines() if line.strip()]
        return ["\n".join([*lines, f"{setting} = {values.strip()}"]), ""]


def paths_by_label(translate: Translate) -> dict[str, str]:
    """Dotted keys by what the page calls the field, in its language and in English, in small letters.

    The unit may be left out where no other field has the same title. The dotted keys themselves are in it too.
    """
    found = {item.path.lower(): item.path for item in _settings()}
    for language in (translate, _english):
        titles = Counter(language(item.title).lower() for item in _settings())
        for item in _settings():
            found[label_of(item, language).lower()] = item.path
            if titles[language(item.title).lower()] == 1:
                found[language(item.title).lower()] = item.path
    return found


def by_paths(text: str, paths: Mapping[str, str]) -> str:
    """The lines with dotted keys in place of labels.

    Raises:
        InputError: there is no such setting.
    """
    return "\n".join(_by_path(line, paths) for line in text.replace("＝", "=").splitlines())


def _by_path(line: str, paths: Mapping[str, str]) -> str:
    label, equals, values = line.partition("=")
    wanted = " ".join(label.split())
    if not equals or not wanted:
        return line
    path = paths.get(wanted.lower())
    if path is None:
        near = difflib.get_close_matches(wanted.lower(), paths, n=1)
        raise InputError(
            "sweep: there is no setting “{label}”; choose one from the list{near}.",
            field="sweep",
            label=wanted[:80],
            near=f" ({near[0]}?)" if near else "",
        )
    return f"{path} = {values}"


def _settings() -> list[Option]:
    return [item for item in options() if item.path != "name"]


def _english(text: str, /, **values: Any) -> str:
    return text.format(**values) if values else text
