"""Where the time of our step goes: ``python -m benchmarks.step_profile``, by operator and by part of the UNet."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

from benchmarks.material import Material, prepare
from lora_trainer.model.families import SD1


def trainer_on(
    material: Material, resolution: int, precision: str, weights: torch.dtype | None = None
) -> tuple[Any, Any]:
    """Our trainer on the full-size checkpoint with 20 random latents, and its plan.

    Args:
        material: with checkpoint and pictures.
        resolution: side of the pictures.
        precision: of the run.
        weights: type of the checkpoint's weights; as the host loads them when it is ``None``.
    """
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.dataset.latents import LatentCache
    from lora_trainer.dataset.plan import Plan
    from lora_trainer.dataset.scan import scan
    from lora_trainer.dataset.step_captions import Captions
    from lora_trainer.diffusion.conditioning import FrozenConditioning
    from lora_trainer.hosts.base import ModelRequest
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.model.conditioning import Conditioning
    from lora_trainer.training.trainer import Trainer

    os.environ.setdefault("LORA_TRAIN_CLIP", str(material.tokenizer))
    config = TrainConfig.from_dict(
        {
            "name": "profile",
            "checkpoint": str(material.checkpoint),
            "data": {"folder": str(material.pictures), "resolution": resolution, "shuffle": False},
            "training": {"steps": 100, "text_lr": 0.0, "precision": precision, "min_snr_gamma": 0.0},
        }
    )
    host = StandaloneHost(material.folder / "profile")
    with host.session(ModelRequest.of(config)) as session:
        model = session.model
    if weights is not None:
        model.unet.to(weights)
    items = scan(config.data).items
    torch.manual_seed(0)
    latents = LatentCache(material.folder / "none", "", SD1.latent)
    side = resolution // 8
    for item in items:
        latents._latents[item.path, False] = torch.randn(4, side, side)
    states = torch.randn(1, 77, 768)
    conditioning = FrozenConditioning(
        lambda captions: Conditioning(states).repeated(len(captions)), model.device, states.dtype
    )
    captions = Captions(items, config.data, 1, 1)
    plan = Plan(items, config)
    return Trainer(config, model, items, plan, latents, captions, conditioning, precision), plan


def time_steps(trainer: Any, plan: Any, count: int, first: int = 1) -> list[tuple[float, float]]:
    """(seconds, processor seconds) of each step."""
    times = []
    for number in range(first, first + count):
        wall, cpu = time.perf_counter(), time.process_time()
        float(trainer.step(plan.step(number)))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--rows", type=int, default=25)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    trainer, plan = trainer_on(prepare(args.resolution), args.resolution, args.precision)
    times = time_steps(trainer, plan, args.steps)[1:]
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{wall:.2f} s a step, {cpu:.2f} processor seconds, {torch.get_num_threads()} threads")
    with torch.profiler.profile(record_shapes=True) as profile:
        trainer.step(plan.step(args.steps + 1))
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=args.rows))
    print(profile.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=args.rows))


if __name__ == "__main__":
    main()
