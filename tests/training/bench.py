"""A trainer whose steps can be looked at."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.latents import LatentCache
from lora_trainer.dataset.plan import Plan, SampleUse, Step
from lora_trainer.dataset.scan import scan
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import Encode, frozen_conditioning
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.families import SD1
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.types import LORA
from lora_trainer.network.types.trainable import TrainableType
from lora_trainer.training.trainer import Trainer
from tests.runs_helpers import document


class Bench:
    """A trainer on fixed latents whose gradients can be looked at.

    Args:
        host: with the small checkpoint.
        root: a folder for pictures.
        precision: of the run.
        weights: type of the checkpoint's weights, of which the model then has copies of its own.
        network_type: what is trained.
        changes: of the configuration.
    """

    def __init__(
        self,
        host: StandaloneHost,
        root: Path,
        precision: str = "fp32",
        weights: torch.dtype = torch.float32,
        network_type: TrainableType = LORA,
        **changes: object,
    ) -> None:
        self.config = TrainConfig.from_dict(document(root, training__steps=0, **changes))
        self.items = scan(self.config.data).items
        self.latents = LatentCache(root / "cache", "none", SD1.latent)
        for index, item in enumerate(self.items):
            generator = torch.Generator().manual_seed(index)
            self.latents._latents[item.path, False] = torch.randn(4, 8, 8, generator=generator)
        with host.session(ModelRequest.of(self.config)) as session:
            self.model: LoadedModel = session.model
        if weights != torch.float32:
            for part in (self.model.unet, self.model.text[0].model):
                own_weights(part, weights)
        captions = Captions(self.items, self.config.data, 0, 1)
        plan = Plan(self.items, self.config)
        text: Encode = self.model.text
        if not self.config.training.text_lr:
            text = frozen_conditioning(self.model.text, self.model.device, precision)
        self.trainer = Trainer(
            self.config, self.model, self.items, plan, self.latents, captions, text, precision, network_type
        )
        with torch.no_grad():  # an adapter of zeros hides half of the gradient
            for index, parameter in enumerate(self.trainer.parameters):
                generator = torch.Generator().manual_seed(index)
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))

    def step(self, *batches: int) -> Step:
        """A step over the first pictures in batches of these sizes."""
        uses = iter(SampleUse(i, False, 0) for i in range(sum(batches)))
        return Step(1, 1, tuple(tuple(next(uses) for _ in range(size)) for size in batches), True)

    def gradient(self, *batches: int) -> tuple[float, torch.Tensor]:
        """Loss and gradient of one step over the first pictures in batches of these sizes."""
        kept: list[torch.Tensor] = []
        self.trainer._apply = lambda: kept.append(torch.cat([p.grad.flatten() for p in self.trainer.parameters]))  # type: ignore[method-assign]
        loss = float(self.trainer.step(self.step(*batches)))
        self.trainer.optimizer.zero_grad()
        return loss, kept[0].clone()


def own_weights(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a view weights of this type, so that the host's own are left as they are."""
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
