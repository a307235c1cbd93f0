"""The LoRA files of a run, and how epochs are named in axes and grids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.lora_tag import TAG
from lora_trainer.runs.manifest import FileEntry
from lora_trainer.runs.run import Run, is_by_step


@dataclass(frozen=True)
class SavedFile:
    """A LoRA file of a run, or any other.

    Attributes:
        path: the file.
        label: what its row or column is called.
        epoch: of the run; 0 for a file that is of none.
        step: the same.
        by_step: it was saved for its step, and not as its epoch's.
        sha256: of its bytes; empty where nobody has noted it.
    """

    path: Path
    label: str
    epoch: int = 0
    step: int = 0
    by_step: bool = False
    sha256: str = ""

    @classmethod
    def of(cls, run: str, entry: FileEntry) -> SavedFile:
        """From one of the ``files`` in the manifest of the run of this name."""
        epoch, step, by_step = entry["epoch"], entry["step"], is_by_step(run, entry)
        label = f"step {step}" if by_step else f"epoch {epoch}"
        return cls(Path(entry["path"]), label, epoch, step, by_step, entry.get("sha256", ""))

    @property
    def value(self) -> str:
        """What the axis of epochs calls it: ``3`` or ``step 40``."""
        return self.label if self.by_step else str(self.epoch)


def run_files(run: Run) -> list[SavedFile]:
    """The files in a run's manifest, in the order in which they were written; some may be gone."""
    return [SavedFile.of(run.name, entry) for entry in run.manifest["files"]]


def find_file(run: Run, name: str = "", epoch: int | None = None) -> SavedFile:
    """A file of a run by its name without extension or by its epoch; the last one when neither is given.

    Raises:
        InputError: the run has no such file, or it is gone.
    """
    files = run_files(run)
    if not files:
        raise InputError("The run {name} has no LoRA files (yet), so there is nothing to compare.", name=run.name)
    wanted = files[-1:]
    if name:
        wanted = [file for file in files if file.path.stem == name]
    elif epoch is not None:
        wanted = [file for file in files if file.epoch == epoch and not file.by_step]
    if not wanted:
        raise InputError(
            "The run {name} has no file {file}; it has {known}.",
            field="file",
            name=run.name,
            file=name[:100] or f"epoch {epoch}",
            known=", ".join(file.path.stem for file in files),
        )
    if not wanted[-1].path.is_file():
        raise InputError("{path} does not exist; check the path.", field="file", path=wanted[-1].path)
    return wanted[-1]


def run_of(file: Path, runs: Iterable[Run]) -> Run | None:
    """The run that has a file in its manifest, however the path is written; ``None`` when none has."""
    wanted = file.resolve()
    return next((run for run in runs if any(each.path.resolve() == wanted for each in run_files(run))), None)


NO_LORA = "None"
"""The value of a file axis for the picture without the LoRA."""


_EVERY, _RANGE = r"every\s+(?P<every>\d+)", r"(?P<first>\d+)\s*-\s*(?P<last>\d+)"
_EPOCH = re.compile(rf"all|last|{_EVERY}|{_RANGE}|(step\s+)?\d+")
"""How one file or several are named."""
_WORDS = re.compile(r"(?:every|step)\s+\d+|\d+\s*-\s*\d+|[^\s,，]+")


def epoch_names(text: str) -> list[str]:
    """Names of epochs in a list with commas or spaces: ``all``, ``last``, ``every 2``, ``1-5``, ``3``, ``step 40``.

    ``every`` and ``step`` may stand alone, as a command line has them before it has read the word behind them.

    Raises:
        ValueError: something else is among them.
    """
    names = [" ".join(name.split()) for name in _WORDS.findall(text)]
    if wrong := [name for name in names if name not in ("every", "step") and not _EPOCH.fullmatch(name)]:
        raise ValueError(wrong[0])
    return names


@dataclass(frozen=True)
class RunFiles:
    """A run's finished files in their order.

    Attributes:
        run: its name.
        files: ``3`` or ``step 40`` → the file.
    """

    run: str
    files: dict[str, SavedFile]

    @classmethod
    def of(cls, run: str, entries: Iterable[FileEntry]) -> RunFiles:
        """From the manifest's ``files``; of several of one epoch the last counts."""
        return cls(run, {file.value: file for file in (SavedFile.of(run, entry) for entry in entries)})

    @property
    def names(self) -> frozenset[str]:
        """The names by which prompts call them."""
        return frozenset(file.path.stem for file in self.files.values())

    def choices(self) -> list[str]:
        """What the axis offers: each file, and the ways to name several."""
        several = ["all", "every 2", "last"] if len(self.files) > 2 else ["all"]
        return [f"{self.run}: {label}" for label in (*several, *self.files)]


class EpochValue(str):
    """A value of the axis *LoRA run epoch* as it is shown, with the file that it stands for."""

    file: Path | None
    family: frozenset[str]

    def __new__(cls, text: str, file: Path | None = None, family: frozenset[str] = frozenset()) -> EpochValue:
        """The value; ``file`` is ``None`` for the picture without the LoRA."""
        value = super().__new__(cls, text)
        value.file, value.family = file, family
        return value


def epoch_values(texts: Iterable[str], runs: Sequence[RunFiles], prompt: str = "") -> list[EpochValue]:
    """The files that the values mean.

    Args:
        texts: ``run: 3``, ``run: all``, ``run: every 2``, ``run: 1-5``, ``run: last``, ``run: step 40``; without a run
            that of the value before, else the one whose file is in the prompt, else the newest. ``None`` is the
            picture without the LoRA.
        runs: the newest first.
        prompt: of the grid.

    Raises:
        InputError: no such run or epoch, or a file that is named is gone. Of ``all``, ``every`` and ranges, files that
            are gone are left out while others are there.
    """
    run = next((r for r in runs if any(tag[2].split(":")[0] in r.names for tag in TAG.finditer(prompt))), None)
    run = run or next((r for r in runs if r.files), None)
    found: dict[str, EpochValue] = {}
    for text in (" ".join(text.split()) for text in texts):
        if text.lower() == NO_LORA.lower():
            found[NO_LORA] = EpochValue(NO_LORA, None, run.names if run else frozenset())
            continue
        name, colon, wanted = text.rpartition(":")
        if colon:
            run = next((r for r in runs if r.run == name.strip()), None)
            if run is None:
                raise InputError("There is no run named {name}.", field="name", name=name.strip()[:100])
        if run is None:
            raise InputError("There is no run with LoRA files yet; train one, or use the axis for files.")
        for label in _labels(run, wanted.strip()):
            value = EpochValue(f"{run.run}: {label}", run.files[label].path, run.names)
            found.setdefault(value, value)
    return list(found.values())


def _labels(run: RunFiles, wanted: str) -> list[str]:
    """The files of a run that a value means."""
    several = _several(run, wanted)
    if several is None:
        if wanted not in run.files:
            raise InputError(
                "The run {run} has no epoch {wanted}; it has {known}.",
                run=run.run,
                wanted=wanted[:50] or "of no number",
                known=", ".join(run.files) or "no files yet",
            )
        several = [wanted]
    there = [label for label in several if run.files[label].path.is_file()]
    if not there:
        raise InputError(
            "The run {run} has no file any more for {wanted}: {path} is gone.",
            run=run.run,
            wanted=wanted[:50],
            path=run.files[several[0]].path.name if several else "every one",
        )
    return there


def _several(run: RunFiles, wanted: str) -> list[str] | None:
    """The files that ``all``, ``last``, ``every N`` and ``A-B`` mean; ``None`` for anything else."""
    labels = list(run.files)
    epochs = {label: file.epoch for label, file in run.files.items() if not file.by_step}
    if wanted == "all":
        return labels
    if wanted == "last":
        return labels[-1:]
    numbers = {name: int(number) for name, number in _numbers(wanted).items() if number}
    if "every" in numbers:
        every = max(1, numbers["every"])
        return [label for label, epoch in epochs.items() if epoch % every == 0 or label == labels[-1]]
    if numbers:
        first, last = sorted(numbers.values())
        return [label for label, epoch in epochs.items() if first <= epoch <= last] or None
    return None


def _numbers(wanted: str) -> dict[str, str | None]:
    """Those of ``every`` and of a range, by their names in :data:`_EPOCH`."""
    match = _EPOCH.fullmatch(wanted)
    return match.groupdict() if match else {}
