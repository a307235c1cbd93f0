"""One weight a block, learned on pictures with the LoRA fixed, and measured on others.

The weights w (one a block of the UNet, one a text encoder) minimise

    E[L(w)] / E[L(1)] + λ · Σ |w_b − 1|,    0 ≤ w_b ≤ 1.5

where L is the loss that LoRAs are trained with, on pictures that this LoRA was not trained on. The pull towards 1
keeps weights that do not matter at exactly 1: after each step of Adam (Kingma & Ba, 2015) stands the proximal step of
the penalty in Adam's own metric (Yun et al., 2021, "Adaptive proximal gradient methods for structured neural
networks"), so that a weight rests at 1 while its mean gradient is below λ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import python_rng
from lora_trainer.diffusion.conditioning import frozen_conditioning
from lora_trainer.diffusion.denoiser import Conditioning, Denoiser
from lora_trainer.diffusion.noise import keyed_noise
from lora_trainer.hosts.base import Session
from lora_trainer.model.memory import free_memory, is_out_of_memory, out_of_memory
from lora_trainer.model.precision import resolve_precision
from lora_trainer.network.adapters import TEXT_PREFIX, UNET_PREFIX, adapters_for, remove_adapters
from lora_trainer.network.lora_file import read_lora
from lora_trainer.network.ops.info import ORDER, OTHER, place_of
from lora_trainer.validation.blocks.effort import Effort
from lora_trainer.validation.blocks.proximal_adam import ProximalAdam, Weights
from lora_trainer.validation.metrics.evaluation_set import Pictures
from lora_trainer.validation.metrics.paired import Difference, paired

_FP16_SCALE = 2.0**12

OnPart = Callable[[int], object]
"""Called with the number of times that a picture has been looked at."""


@dataclass(frozen=True)
class Gain:
    """A cross-fitted comparison: losses by number of the picture.

    Attributes:
        before: with all blocks at 1.
        after: with weights that were chosen on other pictures.
    """

    before: Mapping[int, float]
    after: Mapping[int, float]

    @property
    def difference(self) -> Difference:
        """Before minus after, paired by picture: above 0 the weights are better."""
        return _paired(self.after, self.before)

    @property
    def state(self) -> str:
        """``helps`` (hardly by chance), ``maybe`` (more than its standard error) or ``no``."""
        if self.difference.is_within_error:
            return "no"
        return "helps" if self.difference.is_higher else "maybe"

    def is_beaten_by(self, other: Gain) -> bool:
        """Whether the other is better by more than the standard error of what lies between them."""
        return not _paired(other.after, self.after).is_within_error

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        before, difference = statistics.fmean(self.before.values()), self.difference
        return {
            "before": before,
            "after": statistics.fmean(self.after.values()),
            "improvement": difference.mean,
            "error": difference.se,
            "relative": difference.mean / before,
            "state": self.state,
        }


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    one: dict[Hashable, float] = dict(first.items())
    other: dict[Hashable, float] = dict(second.items())
    found = paired(one, other)
    if found is None:
        raise ValueError("no pictures to compare")
    return found


class Tuner:
    """Measures and fits block weights of one LoRA on the session's model.

    Args:
        session: a turn is taken for each picture, so that generation goes on.
        file: the LoRA, plain LoRA or LoCon.
        pictures: what is learned from.
        precision: the config's; ``auto`` is what the device can do.
        weight: of the LoRA as a whole.
        effort: how thoroughly.
        on_part: called after every picture; what it raises ends the work.

    Raises:
        InputError: the file cannot be used with this model.
    """

    def __init__(
        self,
        session: Session,
        file: Path,
        pictures: Pictures,
        precision: str = "auto",
        weight: float = 1.0,
        effort: Effort | None = None,
        on_part: OnPart = lambda done: None,
    ) -> None:
        self.effort = effort or Effort()
        self._session = session
        self._pictures = pictures
        self._weight = weight
        self._on_part = on_part
        self._done = 0
        self._at_once = self.effort.levels
        self._losses: dict[tuple[int, Weights], float] = {}
        model = session.model
        tensors = read_lora(file)
        parts = {UNET_PREFIX: model.unet, TEXT_PREFIX: model.text.model}
        with session.turn():
            try:
                self.adapters = adapters_for(parts, tensors)
            except InputError:
                self.close()
                raise
        for parameter in self.adapters.parameters():
            parameter.requires_grad_(False)
        places = {key: place_of(key) for key in self.adapters.layers}
        self.blocks = [block for block in ORDER if block in places.values() and block != OTHER]
        numbers = {block: index for index, block in enumerate(self.blocks)}
        self._index = {key: numbers.get(place) for key, place in places.items()}
        chosen = resolve_precision(precision, model.device, model.unet.dtype)
        self._scale = _FP16_SCALE if chosen == "fp16" else 1.0
        self._denoiser = Denoiser(model, self._conditioning(chosen), chosen)

    def close(self) -> None:
        """Leave the model's view as it was found."""
        model = self._session.model
        remove_adapters(model.unet, model.text.model)
        model.unet.disable_gradient_checkpointing()

    # -------------------------------------------------------------- measuring
    def losses(self, weights: Weights, pictures: Sequence[int]) -> list[float]:
        """The mean loss of each picture with these weights, on noise that is always the same.

        Args:
            weights: in the order of :attr:`blocks`.
            pictures: numbers of the pictures.
        """
        return [self._loss(weights, number) for number in pictures]

    def _loss(self, weights: Weights, number: int) -> float:
        known = self._losses.get((number, weights))
        if known is None:
            cells = [(level, draw) for draw in range(self.effort.draws) for level in range(self.effort.levels)]
            found: list[float] = []
            while len(found) < len(cells):
                found += self._measured(weights, number, cells[len(found) : len(found) + self._at_once])
            known = self._losses[number, weights] = statistics.fmean(found)
            self._count()
        return known

    @torch.no_grad()
    def _measured(self, weights: Weights, number: int, cells: Sequence[tuple[int, int]]) -> list[float]:
        """The losses at some (level, draw); none when there was too little memory, and fewer are to be tried."""
        model, schedule = self._session.model, self._denoiser.schedule
        item = self._pictures.items[number]
        latent = self._pictures.latents[item.path, False]
        levels = [int((level + 0.5) / self.effort.levels * schedule.timesteps) for level, _ in cells]
        pairs = zip(levels, cells, strict=True)
        noise = torch.stack([self._noise(latent, "measure", number, t, draw) for t, (_, draw) in pairs])
        batch, captions = latent.expand(len(cells), *latent.shape), [item.caption] * len(cells)
        try:
            with self._session.turn():
                model.unet.eval()
                model.text.model.eval()
                self._apply(torch.tensor(weights, device=model.device))
                return self._denoiser.losses(batch, noise, torch.tensor(levels), captions).tolist()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(cells) == 1:
                raise out_of_memory(error) from error
        free_memory()
        self._at_once = len(cells) // 2
        return []

    # -------------------------------------------------------------- fitting
    def fit(self, pictures: Sequence[int], key: object = "") -> Weights:
        """The weights that fit these pictures best, in the order of :attr:`blocks`.

        Args:
            pictures: their numbers.
            key: tells the noise of this fit from that of others.

        Raises:
            RunError: there is not enough memory for one picture.
        """
        effort = self.effort
        scale = 1 / statistics.fmean(self.losses(self.ones, pictures))
        optimizer = ProximalAdam(len(self.blocks), effort.steps, effort.rate, effort.l1)
        order: list[int] = []
        for step in range(effort.steps):
            gradient = torch.zeros(len(self.blocks), dtype=torch.float64)
            for place in range(effort.batch):
                if not order:
                    order = list(pictures)
                    python_rng(effort.seed, "block tuning order", key, step, place).shuffle(order)
                gradient += self.gradient(optimizer.weights, order.pop(), place, (key, step)) / effort.batch
                self._count()
            optimizer.step(gradient * scale)
        return optimizer.rounded()

    def gradient(self, weights: torch.Tensor, number: int, stratum: int, key: object) -> torch.Tensor:
        """∂L/∂w of one picture at one noise level of a stratum, float64 on the CPU.

        Raises:
            RunError: there is not enough memory.
        """
        while True:
            try:
                gradient = self._gradient(weights, number, stratum, key)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                unet = self._session.model.unet
                if unet.is_gradient_checkpointing:
                    raise out_of_memory(error) from error
                free_memory()
                unet.enable_gradient_checkpointing()
                continue
            if torch.isfinite(gradient).all() or self._scale <= 1:
                return gradient
            self._scale /= 2

    def _gradient(self, weights: torch.Tensor, number: int, stratum: int, key: object) -> torch.Tensor:
        model, effort = self._session.model, self.effort
        item = self._pictures.items[number]
        latent = self._pictures.latents[item.path, False]
        width = self._denoiser.schedule.timesteps / effort.batch
        share = python_rng(effort.seed, "block tuning level", key, stratum).random()
        t = min(int((stratum + share) * width), self._denoiser.schedule.timesteps - 1)
        noise = self._noise(latent, key, number, t, stratum)
        with self._session.turn():
            model.unet.train()  # gradient checkpointing asks for it; nothing in the view is random
            model.text.model.train()
            free = weights.to(model.device, torch.float32).requires_grad_()
            self._apply(free)
            loss = self._denoiser.losses(latent[None], noise[None], torch.tensor([t]), [item.caption])
            (gradient,) = torch.autograd.grad(loss.sum() * self._scale, free)
            return gradient.double().cpu() / self._scale

    def _apply(self, weights: torch.Tensor) -> None:
        self.adapters.scale_each(
            {key: self._weight * (1.0 if index is None else weights[index]) for key, index in self._index.items()}
        )

    def _noise(self, latent: torch.Tensor, *key: object) -> torch.Tensor:
        return keyed_noise(latent.shape, 0.0, self.effort.seed, "block tuning", *key)

    def _conditioning(self, precision: str) -> Conditioning:
        """The text encoder itself when the LoRA works on it, else captions that are encoded once."""
        model = self._session.model
        if any(block.startswith("TE") for block in self.blocks):
            return model.text
        return frozen_conditioning(model.text, model.device, precision)

    def _count(self) -> None:
        self._done += 1
        self._on_part(self._done)

    # -------------------------------------------------------------- what is compared
    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self._pictures.items)

    @property
    def ones(self) -> Weights:
        """All blocks at 1."""
        return (1.0,) * len(self.blocks)

    def halves(self) -> tuple[list[int], list[int]]:
        """The pictures in two halves, by chance."""
        order = list(range(self.count))
        python_rng(self.effort.seed, "block tuning halves").shuffle(order)
        return sorted(order[::2]), sorted(order[1::2])

    def compare(self, choose: Callable[[Sequence[int]], Weights]) -> tuple[Gain, list[Weights]]:
        """What comes of weights on pictures that they were not chosen on.

        Args:
            choose: the pictures to choose on → weights.

        Returns:
            The gain over all pictures, and the weights of both halves.
        """
        first, second = self.halves()
        before: dict[int, float] = {}
        after: dict[int, float] = {}
        chosen = []
        for on, test in ((first, second), (second, first)):
            weights = choose(on)
            chosen.append(weights)
            before.update(zip(test, self.losses(self.ones, test), strict=True))
            after.update(zip(test, self.losses(weights, test), strict=True))
        return Gain(before, after), chosen

    def best_of(self, candidates: Mapping[str, Weights], pictures: Sequence[int]) -> str:
        """The candidate with the lowest loss on these pictures; of equal ones the first."""
        return min(candidates, key=lambda name: statistics.fmean(self.losses(candidates[name], pictures)))
