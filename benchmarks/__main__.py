"""``python -m benchmarks``: step time, start and memory of a run at SD1.5's full size, ours and sd-scripts' in turn."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import operations, programs, report
from benchmarks.material import prepare
from benchmarks.programs import Press, ProgramFailed, Work


def main() -> int:
    args = _arguments()
    material = prepare(args.resolution)
    work = Work(material, args.resolution, args.steps, args.precision, material.folder / f"work-{args.resolution}")
    with_peer = programs.peer_installed()
    if not with_peer:
        _say_that_the_peer_is_missing()
    about = report.machine()
    try:
        mine, theirs = _rounds(work, args.rounds, with_peer)
    except ProgramFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    counts = operations.measure(material)
    own = report.ours(mine, args.discard)
    other = report.peer(theirs, args.discard) if theirs else None
    print(f"\nSD1.5 at full size, {args.resolution} px, batch 1, rank {programs.RANK}, {args.precision}, UNet only")
    print(report.table(own, other))
    print(f"\n{operations.table(counts)}")
    document = {
        "machine": about,
        "device": mine[0]["device"],
        "threads": mine[0]["threads"],
        "versions": {"ours": mine[0]["versions"], "sd-scripts": theirs[0]["versions"] if theirs else None},
        "sd_scripts_commit": report.commit(Path(os.environ[programs.SD_SCRIPTS])) if theirs else None,
        "settings": {"resolution": args.resolution, "precision": args.precision, "rounds": args.rounds,
                     "steps": args.steps, "discarded": args.discard, "pictures": 20, "rank": programs.RANK},
        "operations": counts,
        "ratios": report.ratios(own, other) if other else None,
        "ours": own,
        "sd-scripts": other,
    }  # fmt: skip
    if args.save:
        print(f"\n{report.save(f'step-{args.resolution}-{args.precision}', document)}")
    return 0


def _rounds(work: Work, rounds: int, with_peer: bool) -> tuple[list[dict], list[dict]]:
    """Warm the caches of both, then let them take turns."""
    print("Warming the caches …", flush=True)
    programs.run_ours(work, [Press("warm", 1)])
    if with_peer:
        programs.run_peer(work, 1)
    mine, theirs = [], []
    for number in range(1, rounds + 1):
        print(f"Round {number} of {rounds}: ours …", flush=True)
        mine.append(programs.run_ours(work, programs.presses(work.steps)))
        if with_peer:
            print(f"Round {number} of {rounds}: sd-scripts …", flush=True)
            theirs.append(programs.run_peer(work, work.steps))
    return mine, theirs


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--resolution", type=int, default=256, help="side of the pictures (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each program is started (default: 3)")
    parser.add_argument("--steps", type=int, default=8, help="steps of each start (default: 8)")
    parser.add_argument("--discard", type=int, default=2, help="first steps that are not counted (default: 2)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--no-save", dest="save", action="store_false", help="write no file into benchmarks/results")
    args = parser.parse_args()
    if not 1 <= args.discard < args.steps:
        parser.error("--discard must be at least 1 and less than --steps")
    return args


def _say_that_the_peer_is_missing() -> None:
    line = "*" * 88
    print(
        f"{line}\nsd-scripts is NOT measured: name its folder in {programs.SD_SCRIPTS} and its interpreter in "
        f"{programs.SD_SCRIPTS_PYTHON}\n(see benchmarks/README.md). Without it there are no ratios.\n{line}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
