"""Drawing with diffusers."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.hosts.standalone.checkpoint import Checkpoint
from lora_trainer.model.loaded import LoadedModel

SAMPLERS = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}


class Drawing:
    """A diffusers pipeline on a view of its own, with the LoRA of a file on it.

    Args:
        checkpoint: gives VAE and tokenizer.
        model: the view.
        path: the LoRA file, or ``None`` for the checkpoint alone.
    """

    def __init__(self, checkpoint: Checkpoint, model: LoadedModel, path: Path | None) -> None:
        from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

        from lora_trainer.network.adapters import TEXT_PREFIX, UNET_PREFIX, adapters_for
        from lora_trainer.network.lora_file import read_lora

        self.path = path
        self.text = model.text
        parts = {UNET_PREFIX: model.unet, TEXT_PREFIX: model.text.model}
        self._adapters = adapters_for(parts, read_lora(path)) if path else None
        self.pipeline = StableDiffusionPipeline(
            vae=checkpoint.vae,
            text_encoder=model.text.model,
            tokenizer=checkpoint.tokenizer,
            unet=model.unet.eval(),
            scheduler=EulerAncestralDiscreteScheduler(steps_offset=1),  # each picture sets its own
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def set_weight(self, weight: float, lbw: str = "") -> None:
        """The number and the list in ``<lora:name:0.8:lbw=list>``; raises :class:`InputError` for a wrong list."""
        from lora_trainer.network.blocks.block_map import SD
        from lora_trainer.network.blocks.weights import factors, resolve

        if self._adapters is None:
            return
        self._adapters.set_multiplier(weight)
        if lbw:
            blocks = resolve(lbw, SD)
            self._adapters.scale_each(factors(self._adapters.layers, blocks, weight, weight))
