"""What can be known of a run before it begins: everything that can be found wrong then is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.config.train import DataConfig, TrainConfig, require_warmup
from lora_trainer.core.errors import InputError, concerning
from lora_trainer.core.paths import expand
from lora_trainer.hosts.base import Host, ModelRequest
from lora_trainer.jobs.library import require_readable
from lora_trainer.jobs.naming import require_free
from lora_trainer.model.families import CheckpointInfo, is_same_checkpoint, unknown_checkpoint
from lora_trainer.runs.run import Run, output_folder

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Dataset
    from lora_trainer.model.family import ModelFamily


@dataclass(frozen=True)
class Checked:
    """A run that can be started, and what was found on the way."""

    config: TrainConfig
    checkpoint: CheckpointInfo
    dataset: Dataset


class RunChecks:
    """Looks at settings, data set and checkpoint.

    Args:
        host: where the model is.
        runs: folder of all runs.
        confined: keep output folders within the host's LoRA folder.
    """

    def __init__(self, host: Host, runs: Path, *, confined: bool) -> None:
        self._host = host
        self._runs = runs
        self._confined = confined

    def startable(self, config: TrainConfig, before: Sequence[Checked] = ()) -> Checked:
        """A run that can be started under its name; see :meth:`usable`.

        Raises:
            InputError: one clear sentence.
        """
        self._require_output(config)
        return self.usable(config, before)

    def usable(self, config: TrainConfig, before: Sequence[Checked] = ()) -> Checked:
        """What ``config`` would train on; a data set that one ``before`` has too is looked at once.

        Raises:
            InputError: one clear sentence.
        """
        from lora_trainer.training.advice import calculate

        checkpoint = self._host.check(ModelRequest.of(config))
        known = next((each.dataset for each in before if each.config.data == config.data), None)
        dataset = known or self.dataset(config.data)
        require_readable(self._host, "network.continue_from", config.network.continue_from)
        _require_parts(config, checkpoint.family)
        require_warmup(config, calculate(config, dataset).steps)
        return Checked(config, checkpoint, dataset)

    def dataset(self, data: DataConfig, *, decode: bool = False) -> Dataset:
        """The pictures and captions of a folder; with ``decode`` every picture is read to its end.

        Raises:
            InputError: no such folder, nothing in it, or one that may not be read.
        """
        from lora_trainer.dataset.scan import check_dataset, scan

        require_readable(self._host, "data.folder", data.folder)
        return check_dataset(data) if decode else scan(data)

    def _require_output(self, config: TrainConfig) -> None:
        loras = self._host.folders.loras
        folder = output_folder(config, loras)
        if self._confined and loras.resolve() not in (folder.resolve(), *folder.resolve().parents):
            raise InputError(
                "save.folder: {folder} is outside of {loras}; leave it empty or name a folder in there.",
                field="save.folder",
                folder=folder,
                loras=loras,
            )
        require_free(config, self._host, self._runs)


def require_its_checkpoint(run: Run, loaded: CheckpointInfo) -> None:
    """Whether a run can go on with a checkpoint.

    Raises:
        InputError: it was trained on another one, or nobody can tell.
    """
    wanted = run.manifest.get("checkpoint", {})
    same = is_same_checkpoint(wanted, loaded.to_dict())
    if same is None:
        raise unknown_checkpoint(run.name, wanted)
    if not same:
        raise InputError(
            "The run {name} was trained on {checkpoint}; load that checkpoint to resume it.",
            name=run.name,
            checkpoint=wanted.get("name", ""),
        )


def _require_parts(config: TrainConfig, family: ModelFamily) -> None:
    """That the optimizer is installed and the file to continue from can be read."""
    from lora_trainer.training.optimizers import require_installed

    require_installed(config.training.optimizer)
    if config.network.continue_from:
        from lora_trainer.network.lora_file import require_family

        with concerning("network.continue_from"):
            require_family(expand(config.network.continue_from), family)
