"""``python -m benchmarks.gpu``: named checks on a graphics card, each in a process of its own, into one JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu import carried, table
from benchmarks.gpu.checks import CHECKS, MATERIAL
from benchmarks.gpu.runner import Check, run_check
from benchmarks.gpu.setting import Setting

RESULTS = Path(__file__).resolve().parent.parent / "results"
NO_CARD = "This machine has no graphics card that torch can use; --cpu runs the same code small, on the processor."


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lora-train-gpu-"))
        site = carried.install(args.carried, Path(folder)) if args.carried else None
        setting = Setting(folder, args.cpu, carried.peer(args.carried))
        environment = {**carried.environment(site), **({"CUDA_VISIBLE_DEVICES": ""} if args.cpu else {})}
        sitting = Sitting(setting, environment, began, 60 * args.minutes, _document(args))
        about = sitting.begin(MATERIAL)
        if not args.cpu and about.get("parts", {}).get("machine", {}).get("card") is None:
            print("\n".join(about.get("error", [])) or NO_CARD, file=sys.stderr)
            return 2
        path = _result_path(args.out)
        for check in CHECKS:
            if check.name in args.only:
                sitting.take(check)
                path.write_text(json.dumps(sitting.document, indent=1) + "\n", encoding="utf-8")
    print(table.table(sitting.document))
    print(f"\n{path}")
    return 0 if table.all_well(sitting.document) else 1


class Sitting:
    """The checks of one call, one after the other, within its time.

    Args:
        setting: what each check is given.
        environment: variables of their processes.
        began: when the call began, by :func:`time.monotonic`.
        seconds: that all of it may take.
        document: the result, which is filled.
    """

    def __init__(
        self, setting: Setting, environment: Mapping[str, str], began: float, seconds: float, document: dict[str, Any]
    ) -> None:
        self._setting = setting
        self._environment = environment
        self._end = began + seconds
        self.document = document

    def begin(self, check: Check) -> dict[str, Any]:
        """The first, without which there are no others."""
        self.take(check)
        found = self.document["checks"][check.name]
        self.document["machine"] = found["parts"].get("machine", {})
        return found

    def take(self, check: Check) -> None:
        """Carry a check out, or note that there was no time for it."""
        left = self._end - time.monotonic()
        if left < (1 if self._setting.cpu else max(1.0, check.needs)):
            outcome: dict[str, Any] = {
                "state": "not reached",
                "error": [f"{max(0, left):.0f} s were left"],
                "parts": {},
            }
        else:
            print(f"{check.name} …", flush=True)
            outcome = run_check(check, self._setting, min(check.limit, left), self._environment)
        self.document["checks"][check.name] = {"title": check.title, **outcome}


def _document(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": args.minutes,
        "left_out": [check.name for check in CHECKS if check.name not in args.only],
        "machine": {},
        "checks": {},
    }


def _result_path(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{time.strftime('%Y-%m-%d-%H%M%S')}-gpu.json"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="for everything together (default: 8)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON (default: benchmarks/results)")
    parser.add_argument("--cpu", action="store_true", help="the same code with small shapes, without a card")
    parser.add_argument("--carried", type=Path, help="folder that benchmarks.gpu.carry has filled")
    args = parser.parse_args(arguments)
    if args.carried and not args.carried.is_dir():
        parser.error(f"{args.carried} is no folder; fill one with python -m benchmarks.gpu.carry")
    return args


if __name__ == "__main__":
    sys.exit(main())
