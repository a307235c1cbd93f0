"""How long a step takes, what it holds in memory, and what keeps the card waiting."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import WARM_UP, Bench, in_gb, peak, spread, steps_of, time_calls
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.runner import ROOT
from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting

PICTURE = 1.75e12
"""Operations of forward and backward of one picture of 512², with the LoRA, without checkpointing."""
CHECKPOINTED = 1.47
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KERNELS, _OPERATIONS = ("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",)


def check(setting: Setting, notes: Notes) -> None:
    """The rates, each kind of step, then one kind looked at closely."""
    bench = Bench(setting)
    precisions = ("fp32",) if setting.cpu else ("fp16", "bf16")
    rates: dict[str, float] = {}
    for precision in precisions:
        found = notes.part(f"matrix rate {precision}", matrix_rate, bench, precision)
        rates[precision] = found.get("rate", 0.0)
    for batch, checkpointing, precision in _kinds(setting, precisions):
        name = f"batch {batch}{' checkpointed' if checkpointing else ''} {precision}"
        notes.part(name, partial(steps, bench, precision, batch, checkpointing, rates[precision]))
    notes.part("time from Train", first_step, bench)
    for batch in (1,) if setting.cpu else (1, 4):
        notes.part(f"gaps, batch {batch}", gaps, bench, precisions[0], batch)
    notes.part("synchronisations", synchronisations, bench, precisions[0])


def _kinds(setting: Setting, precisions: Sequence[str]) -> Iterable[tuple[int, bool, str]]:
    """The most telling first, in case the time is over."""
    return itertools.product((2,) if setting.cpu else (1, 4, 8), (False, True), precisions)


def matrix_rate(bench: Bench, precision: str) -> dict[str, Any]:
    """Operations a second of a large product of random matrices, which no step can exceed."""
    size = 256 if bench.setting.cpu else 8192
    left, right = (torch.randn(size, size, device=bench.device).to(TYPES[precision]) for _ in range(2))
    seconds = time_calls(bench.device, [lambda: left @ right] * (WARM_UP + 10))[WARM_UP:]
    rate = 2 * size**3 / statistics.median(seconds)
    return {"rate": rate, "size": size, "seconds": spread(seconds), "says": f"{rate / 1e12:.3g} TFLOP/s"}


def steps(bench: Bench, precision: str, batch: int, checkpointing: bool, rate: float) -> dict[str, Any]:
    """Time and memory of steps of one kind; memory is above that of the loaded weights."""
    count = 2 if bench.setting.cpu else 12
    warm_up = 1 if bench.setting.cpu else WARM_UP
    with peak(bench.device) as memory:
        trainer, plan = bench.trainer(
            precision, {"training.batch_size": batch, "training.checkpointing": checkpointing}
        )
        seconds = time_calls(bench.device, steps_of(trainer, plan, 1, warm_up + count))[warm_up:]
    usual = statistics.median(seconds)
    work = batch * PICTURE * (CHECKPOINTED if checkpointing else 1)
    share: float | str = NOT_ON_A_CPU if bench.setting.cpu else work / usual / rate if rate else "rate unknown"
    of_rate = f", {share:.0%} of the rate" if isinstance(share, float) else ""
    return {
        "seconds": spread(seconds),
        "pictures_a_second": batch / usual,
        "peak": memory["bytes"],
        "share_of_rate": share,
        "says": f"{usual * 1000:.1f} ms ({min(seconds) * 1000:.1f} … {max(seconds) * 1000:.1f}), "
        f"peak {in_gb(memory['bytes'])}{of_rate}",
    }


# ------------------------------------------------------------------ what the card does and waits for
def gaps(bench: Bench, precision: str, batch: int) -> dict[str, Any]:
    """Kernels of one step and the time between them; beside a step without the profiler, which slows launches down."""
    trainer, plan = bench.trainer(precision, {"training.batch_size": batch})
    time_calls(bench.device, steps_of(trainer, plan, 1, 1 if bench.setting.cpu else WARM_UP))
    usual = statistics.median(time_calls(bench.device, steps_of(trainer, plan, 5, 2 if bench.setting.cpu else 5)))
    events = profiled(lambda: float(trainer.step(plan.step(11))))
    found = timeline(events, _KERNELS if bench.device.type == "cuda" else _OPERATIONS)
    waits = max(0.0, 1 - found["busy"] / usual)
    what = "kernels" if bench.device.type == "cuda" else "operations of the processor"
    return {
        **found,
        "of": what,
        "step": usual,
        "idle_share": waits,
        "says": f"{found['count']} {what}, busy {found['busy'] * 1000:.1f} of {usual * 1000:.1f} ms a step, idle "
        f"{waits:.0%}; in the profile gaps of {found['gaps'] * 1000:.1f} ms, {found['gap_share']:.0%}",
    }


def profiled(work: Callable[[], object]) -> list[dict[str, Any]]:
    """The events of a piece of work, as torch's profiler writes them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def timeline(events: Iterable[Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, Any]:
    """Number of events of some kinds, seconds in which any of them goes on, and in which none does, between them."""
    spans = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e.get("cat") in kinds)
    if not spans:
        return {"count": 0, "busy": 0.0, "gaps": 0.0, "gap_share": 0.0, "longest_gap": 0.0}
    between, end = [], spans[0][1]
    for start, stop in spans:
        between.append(max(0.0, start - end))
        end = max(end, stop)
    whole, idle = end - spans[0][0], sum(between)
    return {
        "count": len(spans),
        "busy": (whole - idle) / 1e6,
        "gaps": idle / 1e6,
        "gap_share": idle / whole if whole else 0.0,
        "longest_gap": max(between) / 1e6,
    }


def synchronisations(bench: Bench, precision: str) -> dict[str, Any]:
    """Where a step waits for the card, by torch's own warnings: the line of ours that asked for it."""
    trainer, plan = bench.trainer(precision, {})
    time_calls(bench.device, steps_of(trainer, plan, 1, 2))
    if bench.device.type != "cuda":
        return {"lines": NOT_ON_A_CPU, "says": NOT_ON_A_CPU}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with collected("synchronizing") as lines:
            trainer.step(plan.step(3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = "; ".join(f"{count} × {line}" for line, count in lines.most_common(4))
    return {"lines": dict(lines.most_common()), "says": f"{sum(lines.values())} in a step: {places or 'none'}"}


@contextmanager
def collected(word: str) -> Any:
    """Within, count warnings with a word in them by the innermost line of this repository that made them."""
    lines: Counter[str] = Counter()

    def keep(message: object, *_: object, **__: object) -> None:
        if word in str(message):
            lines[_own_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = keep  # type: ignore[assignment]
        yield lines


def _own_line() -> str:
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT / "lora_trainer"))]
    if not frames:
        return "outside the trainer"
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}"


# ------------------------------------------------------------------ the start
def first_step(bench: Bench) -> dict[str, Any]:
    """Seconds from Train, with the checkpoint loaded and the pictures cached, to the first call of the UNet."""
    import os

    from benchmarks import clock
    from lora_trainer.jobs.service import Jobs

    os.environ.setdefault(clock.STARTED, "0")
    jobs, watch = Jobs(bench.host), clock.Clock()
    seconds = {}
    for name in ("warm", "cached", "again"):
        watch.watch()
        watch.mark("pressed")
        run = jobs.submit(bench.config.with_values({"name": name, "training.steps": 1}))
        jobs.wait(run)
        if run.state != "done":
            raise RuntimeError(f"The run ended as {run.state}: {run.manifest['message']}")
        seconds[name] = watch.marks["first_step"] - watch.marks["pressed"]
    says = f"{seconds['again']:.2f} s; {seconds['warm']:.2f} s with pictures to encode"
    return {"seconds": seconds, "says": says}
