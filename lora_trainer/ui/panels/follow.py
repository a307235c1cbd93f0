"""Tools and stacks follow the chosen run, and files that are new appear in their lists by themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from lora_trainer.core.errors import InputError
from lora_trainer.jobs.library import SUFFIX, LoraFolder
from lora_trainer.jobs.service import Jobs
from lora_trainer.ui.html.markup import markup
from lora_trainer.ui.panels.common import WholePage
from lora_trainer.ui.panels.lora_files import ToolsPanel
from lora_trainer.ui.panels.stacks import StacksPanel
from lora_trainer.ui.widgets.refresh import HIDDEN, Marks, Part, Watch, changes

_WEIGHT = 0.8


class FolderWatch:
    """The LoRA files of a host, listed again only when a folder has changed.

    A folder's time changes with each file that comes or goes, and with each folder in it, so that a look at the
    folders is enough.
    """

    def __init__(self, loras: LoraFolder) -> None:
        self._loras = loras
        self._folders: dict[str, int] = {}
        self._names: list[str] = []
        self._newest = ""

    @property
    def mark(self) -> str:
        """What :meth:`names` found, in a few letters; others with each file, card or preview that comes or goes."""
        return hashlib.sha256(repr(sorted(self._folders.items())).encode(errors="replace")).hexdigest()[:16]

    @property
    def newest(self) -> str:
        """Name of the LoRA file that was written last, of those that :meth:`names` found."""
        return self._newest

    def names(self) -> list[str]:
        """All names, as :meth:`LoraFolder.names` has them."""
        now = {folder: _changed(folder) for folder in self._folders}
        if not self._folders or now != self._folders:
            # the times come first: what is written meanwhile is found the next time
            self._folders = {folder: _changed(folder) for folder in self._all_folders()}
            self._names = self._loras.names()
            self._newest = max(self._names, key=self._time, default="")
        return self._names

    def _time(self, name: str) -> int:
        return _changed(f"{self._loras.root / name}{SUFFIX}")

    def _all_folders(self) -> list[str]:
        """The folder and those below it; links are followed, but never in a circle."""
        found: dict[str, str] = {}
        for folder, inner, _ in os.walk(self._loras.root, followlinks=True):
            real = os.path.realpath(folder)
            if real in found:
                inner.clear()
            found.setdefault(real, folder)
            inner[:] = [name for name in inner if not name.startswith(".")]
        return list(found.values())


def _changed(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    return 0


class Follower:
    """What is put into the panels of tools and stacks as runs and files come.

    A choice of the person's own is left alone: only what is empty, or what was put in here before, is replaced.

    Args:
        jobs: of the host.
        tools: the panel of file tools.
        stacks: the panel of stacks.
    """

    def __init__(self, jobs: Jobs, tools: ToolsPanel, stacks: StacksPanel) -> None:
        self._jobs = jobs
        self._loras = jobs.loras
        self._watch = FolderWatch(jobs.loras)
        self._tools = tools
        self._stacks = stacks
        self._stack = stacks.fields["stack"]
        self.loras = gr.HTML(elem_id="lora_train_loras", elem_classes="lt-hidden")
        self.look = gr.Button("", elem_id="lora_train_look", elem_classes="lt-hidden")

    @property
    def widgets(self) -> dict[str, Any]:
        """What shows :meth:`parts`."""
        adders = {"merge": self._tools.adder, "stacks": self._stacks.adder}
        return {"file": self._tools.file, **adders, "stack": self._stack, "cards": self.loras}

    def connect(self, page: WholePage) -> Sequence[Any]:
        """Let the page look at the cards while the tab is not in view (lora_train_cards.js)."""
        inputs = [page.run, self._tools.file, self._stack]
        self.watch = Watch(inputs, self.widgets, self.parts, remembers=True)
        self.look.click(self._look, [self.watch.seen], [self.loras, self.watch.seen], **HIDDEN)
        return []

    def parts(self, run: str | None, file: str | None, stack: str | None, seen: Marks) -> dict[str, Part]:
        """What there is for tools and stacks; see :attr:`widgets`.

        Args:
            run: name of the chosen run.
            file: that is chosen for the tools.
            stack: the lines of the stack.
            seen: the marks of before: what was put in by them may be replaced.
        """
        names, newest = self._watch.names(), self.newest(run)
        before = seen.get("stack", "")
        now = newest or before

        def offer() -> Any:
            return gr.update(choices=names)

        def choose() -> Any:
            offered = {} if seen.get("merge") == names else {"choices": names}
            is_ours = now != before and (not file or file == before)
            return gr.update(**offered, **({"value": now} if is_ours else {}))

        def line() -> Any:
            is_ours = now != before and (stack or "").strip() in ("", _line(before))
            return gr.update(value=_line(now)) if is_ours else gr.update()

        return {
            "file": ((names, now), choose),
            "merge": (names, offer),
            "stacks": (names, offer),
            "stack": (now, line),
            "cards": self._cards(),
        }

    def _look(self, seen: Marks) -> list[Any]:
        self._watch.names()
        updates, marks = changes({"cards": self._cards()}, seen)
        return [*updates, {**seen, **marks}]

    def _cards(self) -> Part:
        """What the page's script compares the WebUI's cards with."""
        mark, name = self._watch.mark, self._watch.newest.rpartition("/")[2]
        return mark, lambda: markup('<i data-loras="{mark}" data-newest="{name}"></i>', mark=mark, name=name)

    def newest(self, name: str | None) -> str:
        """Name of a run's newest LoRA file below the LoRA folder; empty where there is none."""
        try:
            entries = self._jobs.runs.get(name or "").manifest["files"]
        except InputError:
            return ""
        names = set(self._watch.names())
        for entry in reversed(entries):
            with suppress(ValueError):  # it lies elsewhere
                found = Path(entry["path"]).relative_to(self._loras.root).with_suffix("").as_posix()
                if found in names:
                    return found
        return ""


def _line(name: str | None) -> str:
    return f"{name}: {_WEIGHT:g}" if name else ""
