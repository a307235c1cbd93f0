"""One run's mathematics: adapters, optimizer, and what happens in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.randomness import global_rng, python_rng
from lora_trainer.dataset.plan import Plan, SampleUse, Step
from lora_trainer.dataset.scan import Item
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import Encode
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.diffusion.noise import keyed_noise
from lora_trainer.diffusion.objective import MinSnr, Weighting
from lora_trainer.model.family import Part
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.memory import free_memory, is_out_of_memory
from lora_trainer.model.precision import grad_scaler
from lora_trainer.network.adapters import add_adapters
from lora_trainer.network.types import LORA
from lora_trainer.network.types.base import Shape
from lora_trainer.network.types.trainable import TrainableType
from lora_trainer.training.optimizers import Group, build_optimizer, build_schedule, learning_rates, warmup_steps


class Latents(Protocol):
    """Latents of a run's pictures, as :class:`lora_trainer.dataset.latents.LatentCache`."""

    def __getitem__(self, key: tuple[Path, bool]) -> torch.Tensor:
        """The latent (C, H/8, W/8), fp32 on the CPU, of (picture path, mirrored)."""


class StepOutOfMemory(Exception):
    """A step needs more memory than there is."""


class Trainer:
    """Trains new adapters on a model's view.

    Args:
        config: the run's settings.
        model: the view; its own parameters stay frozen.
        items: the pictures that are trained on.
        plan: which of them at which step.
        latents: their latents.
        captions: their captions.
        encode: encodes captions.
        precision: fp16, bf16 or fp32.
        network_type: what is trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: LoadedModel,
        items: Sequence[Item],
        plan: Plan,
        latents: Latents,
        captions: Captions,
        encode: Encode,
        precision: str,
        network_type: TrainableType = LORA,
    ) -> None:
        self._config = config
        self._model = model
        self._items = items
        self._latents = latents
        self._captions = captions
        self.denoiser = Denoiser(model, encode, precision)
        self._objective = replace(self.denoiser.objective, weighting=_weighting(config))
        rates = _rates(config, model)
        self._trained = {part.prefix: model.parts[part.prefix] for part in rates}
        self.adapters = add_adapters(
            self._trained,
            model.info.family,
            rank=config.network.rank,
            alpha=config.network.alpha,
            dropout=config.network.dropout,
            convolutions=_convolutions(config),
            seed=config.training.seed,
            kind=network_type,
        )
        groups = [Group(part.name, self.adapters.parameters(part.prefix), lr) for part, lr in rates.items()]
        self.parameters = [p for group in groups for p in group.parameters]
        self.optimizer = build_optimizer(config, groups)
        self.lr_schedule = build_schedule(
            config, self.optimizer, warmup_steps(config, plan.total_steps), plan.total_steps
        )
        self.scaler = grad_scaler(precision, model.device)
        self._part = config.training.batch_size
        if config.training.checkpointing:
            model.unet.enable_gradient_checkpointing()

    @property
    def learning_rates(self) -> dict[str, float]:
        """The rate of each part in the coming step."""
        return learning_rates(self.optimizer)

    def step(self, step: Step) -> torch.Tensor:
        """Learn from one step's batches; returns the mean loss of its pictures, still on the device.

        Raises:
            StepOutOfMemory: there was not enough memory; nothing was learned, and the step can be tried again.
        """
        for prefix, part in self._model.parts.items():
            part.train(part is self._model.unet or prefix in self._trained)
        try:
            with global_rng(self._model.device, self._config.training.seed, "dropout", step.number):
                loss = self._gradients(step)
        except (RuntimeError, MemoryError) as error:
            self.optimizer.zero_grad(set_to_none=True)
            if not is_out_of_memory(error):
                raise
            raise StepOutOfMemory(str(error)) from None  # the error's frames would keep the memory
        self._apply()
        return loss

    def need_less_memory(self) -> str:
        """Compute the coming steps in smaller parts; returns what was changed, or ``""`` when nothing is left.

        The gradients of the parts are added up, so the effective batch stays as it is.
        """
        free_memory()
        if self._part > 1:
            self._part = (self._part + 1) // 2
            return f"pictures are now computed {self._part} at a time, added up to the same batch."
        if not self._model.unet.is_gradient_checkpointing:
            self._model.unet.enable_gradient_checkpointing()
            return "gradient checkpointing was turned on; steps are slower, the result is the same."
        return ""

    def _gradients(self, step: Step) -> torch.Tensor:
        total = torch.zeros((), device=self._model.device)
        first = 0
        for batch, captions in zip(step.batches, self._captions.of_step(step), strict=True):
            for start in range(0, len(batch), self._part):
                part = slice(start, start + self._part)
                with self.adapters.cast_once(self.denoiser.dtype):
                    loss = self._losses(step.number, first + start, batch[part], captions[part]).sum() / step.images
                    self.scaler.scale(loss).backward()
                total += loss.detach()
            first += len(batch)
        return total

    def _losses(self, step: int, first: int, batch: Sequence[SampleUse], captions: Sequence[str]) -> torch.Tensor:
        """Weighted loss of each picture of a batch; pictures are numbered ``first`` … within the step.

        Noise and noise level belong to that number, so two batches of 2 learn the same as one of 4.
        """
        seed, training = self._config.training.seed, self._config.training
        latents = torch.stack([self._latents[self._items[use.item].path, use.flip] for use in batch])
        numbers = range(first, first + len(batch))
        noise = torch.stack(
            [keyed_noise(latents.shape[1:], training.noise_offset, seed, "noise", step, n) for n in numbers]
        )
        levels = [python_rng(seed, "timestep", step, n).randrange(self.denoiser.schedule.timesteps) for n in numbers]
        t = torch.tensor(levels)
        return self.denoiser.losses(latents, noise, t, captions, self._objective)

    def _apply(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self._config.training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._config.training.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


def _rates(config: TrainConfig, model: LoadedModel) -> dict[Part, float]:
    """The learning rate of each part that is trained, in the order in which they are optimized."""
    family, training = model.info.family, config.training
    rates = {part: training.unet_lr if part is family.unet else training.text_lr for part in family.parts}
    return {part: rate for part, rate in rates.items() if rate}


def _weighting(config: TrainConfig) -> Weighting | None:
    gamma = config.training.min_snr_gamma
    return MinSnr(gamma) if gamma else None


def _convolutions(config: TrainConfig) -> Shape | None:
    if config.network.targets != "attention+conv":
        return None
    return Shape(config.network.conv_rank, config.network.conv_alpha)
