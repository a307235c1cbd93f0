"""Damaged training states, as an earlier version wrote them, without a checksum that would tell at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import LoraTrainError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.runs.control import Control
from lora_trainer.training.preparation import Preparation
from lora_trainer.training.state import load_newest, save_state
from tools.soak.small import document, draw_pictures, make_jobs


class States:
    """A run's trainer, and a state of it whose document can be damaged.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        jobs = make_jobs(root)
        config = TrainConfig.from_dict(document("state", draw_pictures(root / "pictures", count=4), 6))
        run = jobs.runs.create(config, checkpoint={})
        self._session = jobs.host.session(ModelRequest.of(config))
        session = self._session.__enter__()
        loaded = session.model.info.to_dict()
        run.update(checkpoint=loaded)
        self._work = Preparation(run, config, jobs.host, session, Control(), run.update).make()
        self._folder = run.states
        self._step()
        path = save_state(self._folder, self._work.trainer, 1)
        with safe_open(path, framework="pt") as file:
            self._text = file.metadata()["state"]
            self._tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        self._path = path

    def close(self) -> None:
        """Give the model back."""
        self._session.__exit__(None, None, None)

    def document(self) -> Any:
        """What a state says beside its tensors, as it was."""
        return json.loads(self._text)

    def look(self, made: Any) -> str:
        """Load a state with this document: it is refused with a sentence, or training goes on with it.

        Raises:
            AssertionError: neither.
        """
        text = made.decode("latin-1") if isinstance(made, bytes) else json.dumps(made)
        save_file(self._tensors, self._path, {"state": text})
        try:
            load_newest(self._folder, self._work.trainer)
            answer = "used"
            self._step()
        except LoraTrainError:
            answer = "refused"
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        save_file(self._tensors, self._path, {"state": self._text})
        assert load_newest(self._folder, self._work.trainer) == 1, "the whole state is refused after it"
        return answer

    def _step(self) -> None:
        with self._work.session.turn():
            self._work.trainer.step(self._work.plan.step(2))
