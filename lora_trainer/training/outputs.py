"""What a run leaves behind while it goes on: LoRA files with their cards, samples, validation losses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lora_trainer.config import TrainConfig
from lora_trainer.dataset.plan import Step
from lora_trainer.errors import CheckpointChanged, LoraTrainError
from lora_trainer.files import remove_unfinished, save_picture, write_json
from lora_trainer.hosts.base import Host, LoraUse, draw_request
from lora_trainer.network.lora_file import file_name, save_lora, verify
from lora_trainer.runs import Run, output_folder
from lora_trainer.training.memory import free_memory, is_out_of_memory
from lora_trainer.training.metadata import Progress, sidecar, training_metadata
from lora_trainer.training.work import Note, Work

log = logging.getLogger(__name__)


class Outputs:
    """Writes a run's files and notes them in its manifest."""

    def __init__(self, run: Run, config: TrainConfig, host: Host, note: Note) -> None:
        self._run = run
        self._config = config
        self._host = host
        self._note = note
        self._folder = output_folder(config, host.folders.loras)
        self._began = float(run.manifest.get("started", time.time()))

    def remove_unfinished(self) -> None:
        """Delete what was not finished when an earlier part of the run was killed."""
        self._run.remove_unfinished()
        remove_unfinished(self._folder)

    def is_due(self, step: Step, last: bool) -> bool:
        """Whether anything is to be done after a step."""
        return last or any(self._due(step, section) for section in ("save", "samples", "validation"))

    def after(self, work: Work, step: Step, last: bool, loss: float | None, *, again: bool = False) -> bool:
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
        """Tell what is done meanwhile: a wish of the person counts only after it."""
        before = self._run.manifest.get("phase", "")
        self._note(phase=name, phase_done=0, phase_total=of, now=True)
        yield
        self._note(phase=before, now=True)

    def _prompts(self, work: Work, step: Step, last: bool) -> Sequence[str]:
        """Of the samples that are due; the last file gets a picture in any case."""
        prompts = self._config.samples.prompts
        if prompts:
            return prompts if last or self._due(step, "samples") else []
        return [work.dataset.items[0].caption] if last else []

    def _validation(self, step: Step) -> float | None:
        """The loss that was measured after a step."""
        found = (e for e in self._run.entries() if e.get("step") == step.number and not e.get("base"))
        return next((e["validation"] for e in found if "validation" in e), None)

    def _file(self, step: Step) -> Path | None:
        """The file that was written after a step, and is still there."""
        paths = (Path(e["path"]) for e in self._run.manifest["files"] if e["step"] == step.number)
        return next((path for path in paths if path.is_file()), None)

    def _samples(self, step: Step) -> int:
        """How many pictures were drawn after a step."""
        return sum(sample["step"] == step.number for sample in self._run.manifest["samples"])

    def validate(self, work: Work, step: int, epoch: int, *, base: bool = False) -> float:
        """Measure the held-out loss, of the untouched checkpoint when ``base``."""
        levels = self._config.validation.timesteps
        untouched = work.trainer.adapters.disabled() if base else nullcontext()
        with self._phase("validation"), work.session.turn(), untouched:
            loss = work.trainer.denoiser.held_out_loss(work.held_out, work.latents, levels)
        known = dict(self._run.manifest["validation"])
        if base:
            known["base"] = loss
        else:
            known["last"] = loss
            if loss <= known.get("best", math.inf):
                known |= {"best": loss, "best_epoch": epoch, "best_step": step}
        self._run.log(step=step, epoch=epoch, validation=loss, base=base)
        self._note(validation=known, now=True)
        return loss

    def save(self, work: Work, step: Step, label: dict[str, int], metrics: dict[str, Any]) -> Path:
        """Write the LoRA as it is now, load it back, and give it a card."""
        path = self._folder / f"{file_name(self._config.name, **label)}.safetensors"
        model, config = work.session.model, self._config
        progress = Progress(step.epoch, step.number, self._began, time.time())
        metadata = training_metadata(
            config, model.info, work.learned, len(work.held_out), work.plan, progress, work.precision, model.clip_skip
        )
        digest = save_lora(path, work.trainer.adapters.state_dict(), metadata, config.save.precision)
        verify(path, work.trainer.adapters)
        write_json(path.with_suffix(".json"), sidecar(config, work.learned, model.info))
        entry: dict[str, Any] = {"path": str(path), "epoch": step.epoch, "step": step.number, "sha256": digest}
        self._run.add_file({**entry, "metrics": metrics})
        self._host.announce(path)
        return path

    def _sample(self, work: Work, step: Step, path: Path | None, prompts: Sequence[str]) -> None:
        """Draw samples; a picture that fails is reported and the run goes on."""
        temporary = None
        try:
            if path is None:
                temporary = path = self._run.samples / f"{self._config.name}-sample-{step.number:08d}.safetensors"
                save_lora(path, work.trainer.adapters.state_dict(), {}, self._config.save.precision)
            for index, prompt in enumerate(prompts):
                picture = self._draw(work, step, path, index, prompt)
                if index == 0 and temporary is None:
                    path.with_suffix(".png").write_bytes(picture.read_bytes())
        except CheckpointChanged:
            raise
        except (LoraTrainError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.exception("Drawing a sample failed")
            if is_out_of_memory(error):
                free_memory()
            self._note(message=f"A sample could not be drawn: {error}", now=True)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _draw(self, work: Work, step: Step, path: Path, index: int, prompt: str) -> Path:
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
