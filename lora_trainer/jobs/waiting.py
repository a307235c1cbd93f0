"""Runs whose checkpoint the host has put away; each goes on by itself when it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.runs.run import Run

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
WAITS_FOR_CHECKPOINT = "checkpoint"


class CheckpointWatcher:
    """Looks from time to time whether a run can go on; without runs there is no thread.

    Args:
        resume: puts a run of this name into the line again, or raises :class:`LoraTrainError`.
    """

    def __init__(self, resume: Callable[[str], object]) -> None:
        self._resume = resume
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, run: Run) -> None:
        """Wait for this run's checkpoint."""
        with self._lock:
            if run not in self._runs:
                self._runs.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._go, name="lora-train suspended", daemon=True)
                self._thread.start()

    def has(self, run: Run) -> bool:
        """Whether this run is waited for."""
        with self._lock:
            return run in self._runs

    def remove(self, run: Run) -> bool:
        """Wait no longer; ``False`` when it was not waited for."""
        with self._lock:
            if run not in self._runs:
                return False
            self._runs.remove(run)
            return True

    def _go(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(LOOK_SECONDS)
            with self._lock:
                if not self._runs:
                    self._thread = None
                    return
                waiting = list(self._runs)
            for run in waiting:
                self._try(run)

    def _try(self, run: Run) -> None:
        try:
            self._resume(run.name)
        except LoraTrainError:
            return  # not yet
        except BaseException:  # a library's SystemExit, too, would end the looking with it
            log.exception("The run %s cannot go on by itself", run.name)
        self.remove(run)
