"""The same work in other programs, in turn with ours: diffusers with PEFT, which is always there, and sd-scripts."""

from __future__ import annotations

import copy
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import programs, report
from benchmarks.gpu import carried
from benchmarks.gpu.bench import WARM_UP, Bench, in_gb, peak, random_states, spread, steps_of, time_calls
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting
from benchmarks.gpu.speed import TYPES

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
ROUNDS = 2


def check(setting: Setting, notes: Notes) -> None:
    """Ours and the plain loop: fp16 at batch 1 and 4, bf16 at 4."""
    bench = Bench(setting)
    for precision, batch in [("fp32", 1)] if setting.cpu else [("fp16", 1), ("fp16", 4), ("bf16", 4)]:
        notes.part(f"batch {batch} {precision}", beside_diffusers, bench, precision, batch)


def beside_diffusers(bench: Bench, precision: str, batch: int) -> dict[str, Any]:
    """Both at the same work; they take turns, and memory is what each adds to the loaded fp16 weights."""
    warm_up, count = (1, 1) if bench.setting.cpu else (WARM_UP, 10)
    with peak(bench.device) as own:
        trainer, plan = bench.trainer(precision, {"training.batch_size": batch})
        time_calls(bench.device, steps_of(trainer, plan, 1, warm_up))
    with peak(bench.device) as other:
        loop, trained = plain_loop(bench, precision, batch)
        time_calls(bench.device, [loop] * warm_up)
    ours, theirs = [], []
    for turn in range(ROUNDS):
        ours += time_calls(bench.device, steps_of(trainer, plan, 1 + warm_up + turn * count, count))
        theirs += time_calls(bench.device, [loop] * count)
    ratio = statistics.median(theirs) / statistics.median(ours)
    own_trained = sum(p.numel() for p in trainer.parameters)
    return {
        "ours": {"seconds": spread(ours), "peak": own["bytes"], "trained": own_trained},
        "diffusers_peft": {"seconds": spread(theirs), "peak": other["bytes"], "trained": trained},
        "times_as_fast": ratio,
        "says": f"ours {statistics.median(ours) * 1000:.1f} ms, theirs {statistics.median(theirs) * 1000:.1f} ms: "
        f"{ratio:.2f} times as fast; peak {in_gb(own['bytes'])} against {in_gb(other['bytes'])}",
        "holds": {"both train as many parameters": own_trained == trained},
    }


def plain_loop(bench: Bench, precision: str, batch: int) -> tuple[Callable[[], float], int]:
    """A step as diffusers' ``train_text_to_image_lora.py`` has it, and its number of trained parameters.

    The weights are cast to the precision, the adapters are fp32 under autocast, fp16 has a scaler, and the loss is
    read in every step. Latents and text states are random and at hand, as ours are.
    """
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    device, dtype, model = bench.device, TYPES[precision], bench.model()
    unet = model.unet if model.unet.dtype == dtype else copy.deepcopy(model.unet).to(dtype)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=8, init_lora_weights="gaussian", target_modules=LAYERS))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    side = bench.setting.side // 8
    pictures = torch.randn(batch, 4, side, side)
    states = random_states(model).to(dtype).expand(batch, -1, -1)
    unet.train()

    def step() -> float:
        latents = pictures.to(device, dtype)
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (batch,), device=device)
        noisy = schedule.add_noise(latents, noise, t)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            predicted = unet(noisy, t, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.item()

    return step, sum(p.numel() for p in parameters)


# ------------------------------------------------------------------ sd-scripts
def check_sd_scripts(setting: Setting, notes: Notes) -> None:
    """Ours and sd-scripts in turn, each in a process of its own."""
    notes.part("sd-scripts", beside_sd_scripts, setting)


def beside_sd_scripts(setting: Setting) -> dict[str, Any]:
    """Median step, start and peak memory of both; skipped where sd-scripts is neither here nor carried."""
    environment = _peer_environment(setting)
    if not programs.peer_installed():
        return {"skipped": True, "says": "neither carried nor named by SD_SCRIPTS and SD_SCRIPTS_PYTHON"}
    if setting.cpu:
        return {"skipped": True, "says": f"{NOT_ON_A_CPU}; make bench does it there"}
    steps, discard = 30, 5
    work = programs.Work(setting.material(), setting.side, steps, "fp16", setting.place / "sd-scripts")
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(programs.run_ours(work, [programs.Press("train", steps)]))
        theirs.append(programs.run_peer(work, steps, environment))
    ours, other = ([*_times(results, discard)] for results in (mine, theirs))
    ratio = statistics.median(other) / statistics.median(ours)
    peaks = [max(result["device_peak"] for result in results) for results in (mine, theirs)]
    return {
        "ours": {"seconds": spread(ours), "peak_with_weights": peaks[0], "versions": mine[0]["versions"]},
        "sd_scripts": {
            "seconds": spread(other), "peak_with_weights": peaks[1], "versions": theirs[0]["versions"],
            "process_to_first_step": [result["runs"]["train"]["marks"]["first_step"] for result in theirs],
        },
        "trained": [results[0]["runs"]["train"]["trained"] for results in (mine, theirs)],
        "times_as_fast": ratio,
        "says": f"ours {statistics.median(ours) * 1000:.1f} ms, theirs {statistics.median(other) * 1000:.1f} ms: "
        f"{ratio:.2f} times as fast; peak with weights {in_gb(peaks[0])} against {in_gb(peaks[1])}",
    }  # fmt: skip


def _times(results: list[dict[str, Any]], discard: int) -> Iterator[float]:
    for result in results:
        yield from report.step_times(result["runs"]["train"], discard)


def _peer_environment(setting: Setting) -> dict[str, str]:
    """Name the carried sd-scripts, whose interpreter is this one with wheels of its own; otherwise nothing."""
    if not setting.peer:
        return {}
    place = Path(setting.peer)
    os.environ[programs.SD_SCRIPTS] = str(place / carried.SOURCE)
    os.environ[programs.SD_SCRIPTS_PYTHON] = sys.executable
    return {"PYTHONPATH": str(carried.install(place, setting.place) or "")}
