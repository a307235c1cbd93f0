"""Holding the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.hosts.base import DrawRequest, LoraUse
from lora_trainer.hosts.fair_lock import FairLock
from lora_trainer.hosts.standalone.checkpoint import Checkpoint
from lora_trainer.hosts.standalone.drawing import SAMPLERS, Drawing
from lora_trainer.model.families import CheckpointInfo
from lora_trainer.model.loaded import LoadedModel

if TYPE_CHECKING:
    from PIL import Image


class StandaloneSession:
    """A run's hold on a :class:`Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint, info: CheckpointInfo, clip_skip: int, turns: FairLock) -> None:
        self._turns = turns
        self.on_wait: Callable[[bool], object] = lambda waits: None
        self._checkpoint = checkpoint
        self._info = info
        self._clip_skip = clip_skip
        self._drawing: Drawing | None = None

    @cached_property
    def model(self) -> LoadedModel:
        """The view; made when it is first asked for, since drawing has views of its own."""
        return self._checkpoint.view(self._info, self._clip_skip)

    @contextmanager
    def turn(self, *, drawing: bool = False) -> Iterator[None]:
        """Take turns with whatever else this process does; pictures are drawn on a view of their own."""
        with self._turns.turn(self.on_wait):
            yield

    def wanted(self) -> bool:
        """Whether another thread of this process waits."""
        return self._turns.wanted

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        """Draw with a diffusers pipeline on a second view of the same weights, the LoRA read from its file."""
        import diffusers
        import torch

        request = requests[0]
        drawing = self._drawing_for(lora)
        pipeline = drawing.pipeline
        name, arguments = SAMPLERS.get(request.sampler) or SAMPLERS["Euler a"]
        alphas = self._checkpoint.alphas_cumprod
        betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
        pipeline.scheduler = getattr(diffusers, name)(
            trained_betas=betas.tolist(), prediction_type=self._info.prediction, steps_offset=1, **arguments
        )
        with torch.no_grad():
            states = drawing.text([*(r.prompt for r in requests), request.negative]).states
            output = pipeline(
                prompt_embeds=states[:-1],
                negative_prompt_embeds=states[-1:].expand(len(requests), -1, -1),
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.cfg,
                generator=[torch.Generator().manual_seed(r.seed) for r in requests],
            )
        for each, image in zip(requests, output.images, strict=True):
            image.info["parameters"] = self._infotext(each, lora)
        return list(output.images)

    def draw_settings(self) -> str:
        """Clip skip; there are no others."""
        return f"Clip skip: {self._clip_skip}"

    def _infotext(self, request: DrawRequest, lora: LoraUse | None) -> str:
        """How a picture was made, in the form that the WebUI writes and reads (modules/infotext_utils.py)."""
        values = {
            "Steps": request.steps,
            "Sampler": request.sampler,
            "CFG scale": f"{request.cfg:g}",
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": self._info.sha256[:10],
            "Model": Path(self._info.name).stem,
            **({"Clip skip": self._clip_skip} if self._clip_skip > 1 else {}),
        }
        negative = [f"Negative prompt: {request.negative}"] if request.negative else []
        prompt = request.prompt + (lora.tag if lora else "")
        return "\n".join([prompt, *negative, ", ".join(f"{k}: {v}" for k, v in values.items() if v != "")])

    def show_progress(self, name: str, step: int, steps: int) -> None:
        """The command line has its own bar."""

    def interrupted(self) -> bool:
        """Ctrl-C is handled by the command line."""
        return False

    def _drawing_for(self, lora: LoraUse | None) -> Drawing:
        """The pipeline for a LoRA; the one at hand is kept while only the weights change."""
        path = lora.path if lora else None
        if self._drawing is None or self._drawing.path != path:
            self._drawing = Drawing(self._checkpoint, self._checkpoint.view(self._info, self._clip_skip), path)
        if lora is not None:
            self._drawing.set_weight(lora.weight, lora.lbw)
        return self._drawing
