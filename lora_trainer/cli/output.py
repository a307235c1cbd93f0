"""What the command line prints while it works."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from lora_trainer.config.train import DataConfig
from lora_trainer.runs.run import Run


def say(args: argparse.Namespace, text: str) -> None:
    """Tell what is going to be done, on standard error; nothing with ``--json``."""
    if not args.json:
        print(text, file=sys.stderr)


def bar(unit: str, quiet: bool) -> Callable[[int, int], None]:
    """A progress bar on standard error for work that takes long."""
    from tqdm import tqdm

    bar = tqdm(desc=unit, disable=quiet, delay=1.0)

    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return show


def print_dataset(report: dict[str, Any], data: DataConfig) -> None:
    """The report in lines."""
    from lora_trainer.dataset.listing import NAMED

    print(f"{report['pictures']} pictures, {report['images_per_epoch']} in an epoch, at {data.resolution} px")
    for name, concept in report["concepts"].items():
        print(f"  folder {name}: {concept['pictures']} pictures, {concept['repeats']}× each")
    for size, count in report["buckets"].items():
        print(f"  bucket {size}: {count}")
    for item in report["items"]:
        width, height = item["bucket"]
        print(f"{item['path']}: {width}x{height}, {item['cropped_away']:.0%} cropped away, “{item['caption']}”")
    for sentence in report["skipped"]:
        print(f"skipped: {sentence}")
    for path in report["without_caption"]:
        print(f"no caption: {path}")
    if report["enlarged"]:
        most = next(item for item in report["items"] if item["path"] == report["enlarged"][0])
        print(
            f"warning: {len(report['enlarged'])} pictures are smaller than their bucket and are enlarged, "
            f"{most['path']} most ({most['scale']:.2f}×); use larger ones, lower the resolution, or set "
            "data.upscale = false"
        )
    for path in report["outside_numbered_folders"]:
        print(f"outside the numbered folders, not used: {path}")
    for remark in report["remarks"]:
        print(f"warning: {remark['sentence']}")
        for path in remark["paths"] if len(remark["paths"]) > NAMED else ():
            print(f"  {path}")


class ProgressBar:
    """tqdm bars for a run's phases."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = ""

    def __call__(self, run: Run) -> None:
        """Show the manifest as it is now."""
        from tqdm import tqdm

        manifest = run.manifest
        phase = manifest.get("phase") or ""
        training = phase == "training"
        if phase != self._phase:
            if self._bar is not None:
                self._bar.close()
            self._phase = phase
            total = manifest["steps"] if training else manifest.get("phase_total", 0)
            self._bar = (
                tqdm(total=total, desc=phase, initial=manifest["step"] if training else 0) if phase and total else None
            )
        if self._bar is None:
            return
        self._bar.n = manifest["step"] if training else manifest.get("phase_done", 0)
        if training and manifest.get("loss") is not None:
            self._bar.set_postfix(epoch=manifest["epoch"], loss=f"{manifest['loss_average']:.4f}", refresh=False)
        self._bar.refresh()


class GridBar:
    """tqdm bars for the phases of a grid: pictures, then numbers."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = ""

    def __call__(self, run: Run) -> None:
        """Show the manifest as it is now."""
        from tqdm import tqdm

        grid = run.manifest.get("grid", {})
        phase = str(grid.get("phase", ""))
        if phase != self._phase:
            if self._bar is not None:
                self._bar.close()
            self._phase = phase
            self._bar = tqdm(desc=phase) if phase else None
        if self._bar is not None:
            self._bar.total, self._bar.n = grid["of"], grid["done"]
            self._bar.refresh()
