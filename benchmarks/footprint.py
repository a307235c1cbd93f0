"""``python -m benchmarks.footprint``: peak memory of a step by arithmetic, a figure that needs no graphics card.

SD1.5 is the trainer's own step. SDXL cannot be trained yet: there it is a step of the UNet alone, with the same
adapters and optimizer. ``--check`` does steps of SD1.5 for real on this machine, and compares.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import report
from benchmarks.material import prepare
from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.buckets import fit
from lora_trainer.dataset.plan import Plan, Step
from lora_trainer.dataset.scan import Item
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.hosts.standalone.tokenizer import load_tokenizer
from lora_trainer.model.families import SD1, CheckpointInfo
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.text import TextEncoder
from lora_trainer.network.adapters import UNET_PREFIX, add_adapters
from lora_trainer.training import footprint, preflight
from lora_trainer.training.footprint import Footprint
from lora_trainer.training.optimizers import Group, build_optimizer

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""unet/config.json of stable-diffusion-xl-base-1.0."""


def config(side: int, batch: int, checkpointing: bool, text: bool, precision: str, **more: object) -> TrainConfig:
    """A usual run: rank 16, all attention and feed-forward layers, AdamW."""
    training = {"batch_size": batch, "checkpointing": checkpointing, "text_lr": 5e-5 if text else 0.0}
    document = {
        "name": "footprint",
        "data": {"folder": "none", "resolution": side},
        "network": {"rank": 16, "alpha": 8},
        "training": {**training, "precision": precision, "steps": 10},
        **more,
    }
    return TrainConfig.from_dict(document)


def items(settings: TrainConfig) -> list[Item]:
    """Pictures of one bucket that need not exist, enough for a batch."""
    side = settings.data.resolution
    shape = fit(side, side, settings.data)
    names = [f"{n}.png" for n in range(settings.training.batch_size)]
    return [Item(Path(name), "concept", "zorp, red circle", 1, (side, side), shape) for name in names]


# ------------------------------------------------------------------ SD1.5
def sd15(tokenizer: Path, dtype: torch.dtype) -> LoadedModel:
    """SD1.5 without memory, on the meta device."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, projection_dim=768, **sizes))
    return LoadedModel(
        info=CheckpointInfo("none", "", "", SD1, "epsilon"),
        unet=unet.to(dtype).requires_grad_(False),
        text=TextEncoder(text.to(dtype).requires_grad_(False), load_tokenizer(tokenizer)),
        alphas_cumprod=torch.linspace(0.999, 0.005, 1000),
        encode=lambda pixels: pixels,
        vae_key="",
        device=torch.device("cpu"),
        clip_skip=1,
    )


def _one_step(settings: TrainConfig) -> tuple[Callable[[LoadedModel, str], Any], Callable[[Any], object]]:
    pictures = items(settings)
    plan = Plan(pictures, settings)
    step: Step = plan.step(1)
    return (
        lambda model, precision: preflight.trainer_on_noise(settings, pictures, plan, model, precision),
        lambda trainer: trainer.step(step),
    )


def sd15_footprint(model: LoadedModel, settings: TrainConfig) -> Footprint:
    """The trainer's own step on SD1.5."""
    return footprint.expected(model, settings.training.precision, *_one_step(settings))


# ------------------------------------------------------------------ SDXL
class SdxlStep:
    """Forward, backward and optimizer of SDXL's UNet with adapters."""

    def __init__(self, settings: TrainConfig, unet: Any, dtype: torch.dtype) -> None:
        self._unet, self._dtype = unet, dtype
        self._batch, self._side = settings.training.batch_size, settings.data.resolution // 8
        parts = {UNET_PREFIX: unet}
        self._adapters = add_adapters(parts, rank=settings.network.rank, alpha=settings.network.alpha)
        self.parameters = self._adapters.parameters()
        self.optimizer = build_optimizer(settings, [Group("unet", self.parameters, 1e-4)])
        unet.train()
        if settings.training.checkpointing:
            unet.enable_gradient_checkpointing()

    def step(self) -> None:
        """One step on noise."""
        batch, dtype = self._batch, self._dtype
        noise = torch.randn(batch, 4, self._side, self._side)
        added = {"text_embeds": torch.zeros(batch, 1280, dtype=dtype), "time_ids": torch.zeros(batch, 6)}
        states = torch.zeros(batch, 77, 2048, dtype=dtype)
        t = torch.zeros(batch, dtype=torch.long)
        with self._adapters.cast_once(dtype):
            output = self._unet(noise.to(dtype), t, states, added_cond_kwargs=added).sample
            torch.nn.functional.mse_loss(output.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def sdxl_footprint(settings: TrainConfig) -> Footprint:
    """A step of SDXL's UNet, weights and arithmetic in the same type."""
    dtype = TYPES[settings.training.precision]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL).to(dtype).requires_grad_(False)
    with footprint.fake_tensors():
        fake = footprint.fake_copy(unet, {})
        return footprint.track(lambda: SdxlStep(settings, fake, dtype), lambda trainer: trainer.step())


# ------------------------------------------------------------------ for real
def check(tokenizer: Path, checkpoint: Path, side: int) -> dict[str, float]:
    """Steps of full SD1.5 in fp32 on this machine against the arithmetic: bytes and ratios."""
    os.environ.setdefault("LORA_TRAIN_CLIP", str(tokenizer))
    settings = config(side, 1, False, False, "fp32", checkpoint=str(checkpoint))
    make, step = _one_step(settings)
    host = StandaloneHost(checkpoint.parent / "footprint")
    with host.session(settings) as session:
        expected = footprint.expected(session.model, "fp32", make, step).peak
        gc.collect()
        with _resident() as resident:  # before anything else has worn in the process's memory
            trainer = make(session.model, "fp32")
            for _ in range(2):
                step(trainer)
        del trainer
    with host.session(settings) as session:
        model = session.model
        tracked = footprint.track(lambda: make(model, "fp32"), step).peak
    return {
        "side": side,
        "expected": expected,
        "same operations on real tensors": tracked,
        "resident memory": resident[0],
        "resident / expected": round(resident[0] / expected, 3),
    }


@contextmanager
def _resident() -> Iterator[list[int]]:
    """The largest resident memory within, beyond what was there before."""
    import psutil

    process, ended, largest = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.005):
            largest[0] = max(largest[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield largest
    finally:
        ended.set()
        watcher.join()


# ------------------------------------------------------------------ the table
HEAD = f"{'model':22}{'type':6}{'batch':>6}  {'checkpointing':14}{'text':6}{'GB':>8}" + "".join(
    f"{name:>11}" for name in Footprint.__dataclass_fields__
)


def line(row: dict[str, Any]) -> str:
    """One line of the table; sizes in GB."""
    parts = "".join(f"{row['parts'][name] / 1e9:11.3f}" for name in Footprint.__dataclass_fields__)
    kind = f"{row['model']:22}{row['precision']:6}{row['batch']:6}  {'yes' if row['checkpointing'] else 'no':14}"
    return f"{kind}{'yes' if row['text'] else 'no':6}{row['peak'] / 1e9:8.2f}{parts}"


def rows(tokenizer: Path, models: list[str]) -> Iterator[dict[str, Any]]:
    """Every combination."""
    for model in models:
        side = 512 if model == "SD1.5" else 1024
        for precision in ("fp32", "bf16"):
            known = sd15(tokenizer, TYPES[precision]) if model == "SD1.5" else None
            for text in (False, True) if known else (False,):
                for batch in (1, 4):
                    for checkpointing in (False, True):
                        settings = config(side, batch, checkpointing, text, precision)
                        began = time.process_time()
                        found = sd15_footprint(known, settings) if known else sdxl_footprint(settings)
                        yield {
                            "model": f"{model} {side}²",
                            "precision": precision,
                            "batch": batch,
                            "checkpointing": checkpointing,
                            "text": text,
                            "peak": found.peak,
                            "parts": asdict(found),
                            "processor_seconds": round(time.process_time() - began, 1),
                        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["SD1.5", "SDXL"], choices=("SD1.5", "SDXL"))
    parser.add_argument("--check", type=int, default=0, metavar="SIDE", help="do steps of this size for real, too")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    args = parser.parse_args()
    material = prepare(64)
    print(HEAD, flush=True)
    found = []
    for row in rows(material.tokenizer, args.models):
        found.append(row)
        print(line(row), f"  {row['processor_seconds']} s", flush=True)
    real = check(material.tokenizer, material.checkpoint, args.check) if args.check else {}
    for name, value in real.items():
        print(f"{name:35}{value:>16,}")
    if args.save:
        print(report.save("footprint", {**report.machine(), "torch": torch.__version__, "rows": found, "check": real}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
