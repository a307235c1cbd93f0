"""What a run leaves behind while it goes on: LoRA files with their cards, samples, validation losses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import CheckpointChanged, LoraTrainError, RunError, explain, explained
from lora_trainer.core.files import remove_unfinished, replace_atomically, save_picture, temporary_folder, write_json
from lora_trainer.dataset.plan import Step
from lora_trainer.hosts.base import Host, LoraUse, draw_request
from lora_trainer.model.memory import free_memory, is_out_of_memory
from lora_trainer.network.lora_file import file_name, read_metadata, save_lora, verify
from lora_trainer.runs.control import only_telling
from lora_trainer.runs.manifest import FileEntry
from lora_trainer.runs.run import Run, output_folder
from lora_trainer.training.metadata import Progress, sidecar, training_metadata
from lora_trainer.training.preparation import Note, PreparedRun

log = logging.getLogger(__name__)


class Artifacts:
    """Writes a run's files and notes them in its manifest."""

    def __init__(self, run: Run, config: TrainConfig, host: Host, note: Note) -> None:
        self._run = run
        self._config = config
        self._host = host
        self._note = note
        self._folder = output_folder(config, host.folders.loras)
        self._began = float(run.manifest.get("started", time.time()))

    def remove_unfinished(self) -> None:
        """Delete what was not finished when an earlier part of the run was killed; other programs' files stay."""
        self._run.remove_unfinished()
        remove_unfinished(self._folder)

    def is_due(self, step: Step, last: bool) -> bool:
        """Whether anything is to be done after a step."""
        return last or any(self._due(step, section) for section in ("save", "samples", "validation"))

    def after(self, work: PreparedRun, step: Step, last: bool, loss: float | None, *, again: bool = False) -> bool:
        """Do what is due after a step; returns whether a LoRA file was written.

        Args:
            work: the run's.
            step: the step that was just learned.
            last: whether it is the run's last.
            loss: mean of the last losses, noted beside the file.
            again: the run goes on from this step; only what was not finished then is done.
        """
        validation = self._validation(step) if again else None
        if validation is None and work.held_out and (last or self._due(step, "validation")):
            validation = self.validate(work, step.number, step.epoch)
        path = self._file(step) if again else None
        saves = path is None and (last or self._due(step, "save"))
        if saves:
            label = {} if last else self._label(step)
            path = self.save(work, step, label, {"loss": loss, "validation": validation})
        prompts = self._prompts(work, step, last)
        if prompts and not (again and self._samples(step) >= len(prompts)):
            with self._phase("samples", len(prompts)):
                self._sample(work, step, path, prompts)
        return saves

    @contextmanager
    def _phase(self, name: str, of: int = 0) -> Iterator[None]:
        """Tell what is done meanwhile: what the person asks for counts only after it."""
        before = self._run.manifest.get("phase", "")
        self._note(phase=name, phase_done=0, phase_total=of, now=True)
        yield
        self._note(phase=before, now=True)

    def _prompts(self, work: PreparedRun, step: Step, last: bool) -> Sequence[str]:
        """Of the samples that are due; the last file gets a picture in any case."""
        prompts = self._config.samples.prompts
        if prompts:
            return prompts if last or self._due(step, "samples") else []
        return [work.dataset.items[0].caption] if last else []

    def _validation(self, step: Step) -> float | None:
        """The loss that was measured after a step."""
        found = (e for e in self._run.entries(step.number - 1) if e["step"] == step.number and not e.get("base"))
        return next((e["validation"] for e in found if e.get("validation") is not None), None)

    def _file(self, step: Step) -> Path | None:
        """The file that was written after a step, and is still there."""
        paths = (Path(e["path"]) for e in self._run.manifest["files"] if e["step"] == step.number)
        return next((path for path in paths if path.is_file()), None)

    def _samples(self, step: Step) -> int:
        """How many pictures were drawn after a step."""
        return sum(sample["step"] == step.number for sample in self._run.manifest["samples"])

    def validate(self, work: PreparedRun, step: int, epoch: int, *, base: bool = False) -> float | None:
        """Measure the held-out loss, of the untouched checkpoint when ``base``; ``None`` when it is no number."""
        levels = self._config.validation.timesteps
        untouched = work.trainer.adapters.disabled() if base else nullcontext()
        with self._phase("validation"), work.session.turn(), untouched:
            measured = work.trainer.denoiser.held_out_loss(work.held_out, work.latents, levels)
        loss = measured if math.isfinite(measured) else None
        self._tell(loss, step)
        known = self._run.manifest["validation"].copy()
        if base:
            known["base"] = loss
        else:
            known["last"] = loss
            if loss is not None and loss <= known.get("best", math.inf):
                known |= {"best": loss, "best_epoch": epoch, "best_step": step}
        self._run.log(step=step, epoch=epoch, validation=loss, base=base)
        self._note(validation=known, now=True)
        return loss

    def _tell(self, loss: float | None, step: int) -> None:
        """Say that a loss is no number, until one is again."""
        problem = _no_number(step)
        said = explained(self._run.manifest).template == problem.message.template
        if loss is None:
            self._note(**explain(problem))
        elif said:
            self._note(message="", error={})

    def save(self, work: PreparedRun, step: Step, label: dict[str, int], metrics: dict[str, Any]) -> Path:
        """Write the LoRA as it is now, load it back, and give it a card."""
        path = self._folder / f"{file_name(self._config.name, **label)}.safetensors"
        model, config = work.session.model, self._config
        progress = Progress(step.epoch, step.number, self._began, time.time())
        metadata = training_metadata(
            config,
            model.info,
            work.learned,
            len(work.held_out),
            work.plan,
            progress,
            work.precision,
            model.clip_skip,
            work.trainer.adapters.kind,
        )
        digest = save_lora(path, work.trainer.adapters.state_dict(), metadata, config.save.precision)
        verify(path, work.trainer.adapters)
        write_json(path.with_suffix(".json"), sidecar(config, work.learned, model.info))
        entry: FileEntry = {"path": str(path), "epoch": step.epoch, "step": step.number, "sha256": digest}
        # The header tells times, so that the hash of the whole file is never the same again; that of its tensors is.
        entry["tensors_sha256"] = read_metadata(path)["sshs_model_hash"]
        entry |= {"by_step": "step" in label, "metrics": metrics}
        self._run.add_file(entry)
        with only_telling():
            self._host.announce(path)
        return path

    def _sample(self, work: PreparedRun, step: Step, path: Path | None, prompts: Sequence[str]) -> None:
        """Draw samples; a picture that fails is reported and the run goes on."""
        try:
            with ExitStack() as until_drawn:
                used = path
                if used is None:
                    folder = until_drawn.enter_context(temporary_folder(self._run.samples))
                    used = folder / f"{self._config.name}-sample-{step.number:08d}.safetensors"
                    save_lora(used, work.trainer.adapters.state_dict(), {}, self._config.save.precision)
                for index, prompt in enumerate(prompts):
                    picture = self._draw(work, step, used, index, prompt)
                    if index == 0 and path is not None:
                        self._make_card(path, picture)
        except CheckpointChanged:
            raise
        except (LoraTrainError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.exception("Drawing a sample failed")
            if is_out_of_memory(error):
                free_memory()
            self._note(message=f"A sample could not be drawn: {error}", now=True)

    @staticmethod
    def _make_card(path: Path, picture: Path) -> None:
        content = picture.read_bytes()
        replace_atomically(path.with_suffix(".png"), lambda temporary: temporary.write_bytes(content))

    def _draw(self, work: PreparedRun, step: Step, path: Path, index: int, prompt: str) -> Path:
        request = draw_request(self._config.samples, prompt, self._config.data.resolution)
        with work.session.turn():
            (image,) = work.session.draw([request], LoraUse(path, self._config.samples.weight))
        picture = self._run.samples / f"{step.number:08d}-{index:02d}.png"
        save_picture(picture, image)
        entry = {"path": str(picture), "step": step.number, "epoch": step.epoch, "prompt": prompt}
        others = [s for s in self._run.manifest["samples"] if s["path"] != entry["path"]]
        self._note(samples=[*others, entry], phase_done=index + 1, now=True)
        return picture

    def _due(self, step: Step, section: str) -> bool:
        options = getattr(self._config, section)
        if step.ends_epoch and options.every_epochs and step.epoch % options.every_epochs == 0:
            return True
        every_steps = getattr(options, "every_steps", 0)
        return bool(every_steps and step.number % every_steps == 0)

    def _label(self, step: Step) -> dict[str, int]:
        every = self._config.save.every_epochs
        if every and step.ends_epoch and step.epoch % every == 0:
            return {"epoch": step.epoch}
        return {"step": step.number}


def _no_number(step: int) -> RunError:
    return RunError(
        "The validation loss at step {step} is no number (NaN or Inf), so the LoRA is of no use there. If it stays so, "
        "lower the learning rate, or train in bf16 or fp32.",
        step=step,
    )
