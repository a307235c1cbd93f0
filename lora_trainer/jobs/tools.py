"""Work on LoRA files that page, REST and command line start by name, and what is known of such files."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_trainer.hosts.base import Host, ModelRequest
from lora_trainer.jobs import lora_files, mixes
from lora_trainer.jobs.background import BackgroundTask, BackgroundTasks
from lora_trainer.jobs.kinds import DRAWING, FILES, KINDS, NewFile
from lora_trainer.jobs.library import LoraFolder
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.jobs.requests import MixDocument, read

if TYPE_CHECKING:
    from lora_trainer.network.blocks.stack import Stack
    from lora_trainer.validation.mixes import Mixed, MixPlan


class Tools:
    """Starts such work and tells of it.

    Args:
        host: whose LoRA folder it is; draws the mixes.
        drawing: the queue of what needs the model to draw.
    """

    def __init__(self, host: Host, drawing: JobQueue) -> None:
        self._host = host
        self._loras = LoraFolder(host)
        self._tasks = {FILES: BackgroundTasks(JobQueue("lora-train files")), DRAWING: BackgroundTasks(drawing)}
        self._naming = threading.Lock()
        """Held while a new file gets its name."""

    def start(self, name: str, body: Mapping[str, Any], *, outside: bool = False) -> BackgroundTask:
        """Do work of one of :data:`~lora_trainer.jobs.kinds.KINDS`; what can be checked is checked at once.

        Args:
            name: of the kind.
            body: a document of its kind.
            outside: LoRA files outside of the LoRA folder may be read too, where the host lets people read.

        Raises:
            InputError: one clear sentence, with the field's path.
        """
        kind = KINDS[name]
        prepared = kind.prepared(self._host, body, outside=outside)
        with self._naming:
            if isinstance(prepared, NewFile):
                awaited = [task.title for task in self.list(kind.queue) if task.is_working]
                prepared = prepared.named(self._host, awaited)
            return self._tasks[kind.queue].start(name, prepared.title, prepared.work)

    def list(self, queue: str = FILES) -> list[BackgroundTask]:
        """Such work that waits in a queue, goes on or is over, newest first."""
        return self._tasks[queue].list()

    def get(self, name: str, queue: str = FILES) -> BackgroundTask:
        """A piece of it by its id; raises :class:`NotFound`."""
        return self._tasks[queue].get(name)

    def stop(self, name: str, queue: str = FILES) -> BackgroundTask:
        """Stop it, nothing half-made is left; raises :class:`InputError` when it is over."""
        return self._tasks[queue].stop(name)

    def wait(self, task: BackgroundTask, timeout: float | None = None) -> bool:
        """Wait until it is over; ``False`` when the time ran out before."""
        return self._tasks[KINDS[task.kind].queue].wait(task, timeout)

    def info(self, name: str, *, outside: bool = False) -> dict[str, Any]:
        """What is in a LoRA file, ready for JSON; raises :class:`InputError` when there is none or it is damaged."""
        return lora_files.lora_info(self._loras.find(name, "name", outside=outside))

    def preset_names(self, name: str) -> builtins.list[str]:
        """Names of the block presets for a LoRA file; raises :class:`InputError`."""
        return lora_files.preset_names(self._host, self._loras.find(name, outside=True))

    def stack(self, text: str) -> Stack:
        """The LoRAs of some lines as a prompt names them; raises :class:`InputError`."""
        return mixes.read_stack(self._host, text)[0]

    def mix_plan(self, body: Mapping[str, Any], *, outside: bool = False) -> tuple[MixPlan, ModelRequest]:
        """Random mixes that are not drawn; see :func:`lora_trainer.jobs.mixes.mix_plan`."""
        return mixes.mix_plan(self._host, read(MixDocument, body), outside)

    def draw_mixes_now(
        self, plan: MixPlan, model: ModelRequest, progress: Callable[[int, int, Mixed], object]
    ) -> Mixed:
        """Draw them and return their folder and documents; see :func:`lora_trainer.jobs.mixes.drawn_mixes`."""
        return mixes.drawn_mixes(self._host, plan, model, progress)
