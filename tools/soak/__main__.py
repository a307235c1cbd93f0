"""``python -m tools.soak WHAT``: one of the long tests; its figures are printed as JSON."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the random events")
    parser.add_argument("--folder", type=Path, help="kept afterwards (default: a temporary one)")
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    kills = commands.add_parser("kills", help="kill a run at random instants and resume it")
    kills.add_argument("--count", type=int, default=100)
    kills.add_argument("--webui", action="store_true", help="kill the real WebUI instead of the embedded host")
    commands.add_parser("aimed", help="kill a small run before each of its file operations and resume it")
    fuzz = commands.add_parser("fuzz", help="send random REST bodies, names and documents")
    fuzz.add_argument("--count", type=int, default=10_000)
    documents = commands.add_parser("documents", help="damage every key of a run's documents and look at the run")
    documents.add_argument("--count", type=int, default=0, help="of damaged documents (default: all)")
    beside = commands.add_parser("beside", help="draw pictures of all kinds beside a run in the real WebUI")
    beside.add_argument("--count", type=int, default=200)
    many = commands.add_parser("many", help="many runs in one WebUI: what stays in memory")
    many.add_argument("--count", type=int, default=20)
    events = commands.add_parser("events", help="random events in the real WebUI")
    events.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lora-train-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "kills": _kills,
        "aimed": _aimed,
        "fuzz": _fuzz,
        "documents": _documents,
        "beside": _beside,
        "many": _many,
        "events": _events,
    }[args.what](args, folder)
    print(json.dumps({"what": args.what, "seed": args.seed, **figures}, indent=1))
    if args.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _kills(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.kills import Kills
    from tools.soak.webui_kills import kill_webui

    if args.webui:
        return kill_webui(folder, args.seed, args.count)
    return Kills(folder, args.seed).go(args.count)


def _aimed(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.aimed import Aimed

    aimed = Aimed(folder)
    return aimed.go([(label, nth) for label, count in aimed.operations().items() for nth in {1, min(2, count), count}])


def _fuzz(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.fuzz import Fuzz

    return Fuzz(folder, args.seed).go(args.count)


def _documents(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.documents import Documents

    return Documents(folder, args.seed).go(args.count)


def _beside(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.webui import Beside

    return Beside(folder).go(args.count)


def _many(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.webui import many_runs

    return many_runs(folder, args.count)


def _events(args: argparse.Namespace, folder: Path) -> dict:
    from tools.soak.events import Events

    return Events(folder, args.seed).go(args.minutes)


if __name__ == "__main__":
    sys.exit(main())
