"""The command line: ``lora-trainer`` or ``python -m lora_trainer``.

Exit codes: 0 done, 1 the work failed, 2 bad input (one line that says what, where and what to do).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lora_trainer import __version__
from lora_trainer.cli.blocks import add_analysis_commands
from lora_trainer.cli.console import one_line, prepare_streams, print_json, results_only
from lora_trainer.cli.lora_files import add_block_commands, add_lora_commands
from lora_trainer.cli.output import GridBar, ProgressBar, print_dataset, say
from lora_trainer.cli.parser import ROOT_HELP, Parser, add_group, as_path, epochs
from lora_trainer.config.schema import read_text
from lora_trainer.config.sweep import parse_sweep
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.ending import Ending, tell
from lora_trainer.core.errors import InputError, LoraTrainError, RunError
from lora_trainer.core.messages import Message
from lora_trainer.core.paths import exists, expand
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.manifest import DAMAGED
from lora_trainer.runs.run import Run
from lora_trainer.runs.store import Runs
from lora_trainer.training.advice import idle
from lora_trainer.validation.grid.options import grid_options

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    prepare_streams()
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # what is left is written here, where its errors can be caught
    except BrokenPipeError:  # the reader wants no more, as in “| head”
        _throw_output_away()
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(arguments)
        logging.basicConfig(level=logging.DEBUG if args.verbose else logging.WARNING, format="%(message)s")
        command: Command = args.command
        with results_only() if args.json else nullcontext():
            return command(args)
    except InputError as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        return 2
    except LoraTrainError as error:
        print(one_line(f"failed: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 1


def _throw_output_away() -> None:
    """Let Python's own flush at its end have somewhere to write to."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(prog="lora-trainer", description="Train a LoRA for Stable Diffusion.")
    parser.add_argument("--version", action="version", version=f"LoRA Train {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, help: str, within: Any = commands, *, results: bool = True) -> Parser:
        sub: Parser = within.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command, json=False)
        if results:
            sub.add_argument("--json", action="store_true", help="print machine-readable results")
        return sub

    demo = add("demo", _demo, "train the demo LoRA on the small checkpoint and make its grid")
    demo.add_argument("--output", type=as_path, default=Path("demo-output"), help="folder (default: demo-output)")

    train = add("train", _train, "train a LoRA as a TOML file says")
    train.add_argument("config", type=as_path, metavar="CONFIG.toml", help="settings of the run; see docs/options.md")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value, e.g. network.rank=8"
    )
    train.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B", help="a run for each value, e.g. network.rank=8,16"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run of this name from its last state")
    train.add_argument("--root", type=as_path, help=ROOT_HELP)

    runs = add("runs", _runs, "list the runs, or show one")
    runs.add_argument("name", nargs="?", metavar="RUN", help="only this one")
    runs.add_argument("--root", type=as_path, help=ROOT_HELP)

    grid = add("grid", _grid, "draw the epoch × weight grid of a run")
    grid.add_argument("name", metavar="RUN", help="name of a run, as lora-trainer runs lists it")
    known = grid_options()
    for name in ("weights", "prompts", "epochs", "seeds", "together", "numbers", "clip"):
        grid.add_option(known[name], epochs if name == "epochs" else None)
    grid.add_argument("--root", type=as_path, help=ROOT_HELP)

    dataset = add_group(commands, "dataset", "work on a folder of pictures")
    check = add("check", _dataset_check, "report every picture's bucket and crop, and what is wrong", dataset)
    check.add_argument("folder", help="folder of pictures with captions")
    check.add_argument("--resolution", type=int, default=512, help="of the training, in pixels (default: 512)")
    check.add_argument("--trigger", default="", metavar="WORD", help="trigger word, put before every caption")

    add_lora_commands(add, commands)
    add_analysis_commands(add, add_block_commands(add, commands))

    ui = add("ui", _ui, "open the LoRA Train page without a WebUI", results=False)
    ui.add_argument("--checkpoint", default="", help="checkpoint file to train on")
    ui.add_argument("--port", type=int, default=7862, help="of the page (default: 7862)")
    ui.add_argument("--root", type=as_path, help=ROOT_HELP)
    ui.add_argument("--language", choices=("en", "zh"), default="en", help="of the page (default: en)")
    return parser


def _demo(args: argparse.Namespace) -> int:
    from lora_trainer.demo.run import run_demo, summary

    if args.json:
        print_json(run_demo(args.output))
        return 0
    bars = ProgressBar(), GridBar()
    report = run_demo(args.output, lambda run: [bar(run) for bar in bars])
    print("", *summary(report, args.output), sep="\n")
    return 0


def _train(args: argparse.Namespace) -> int:
    if args.resume and args.sweep:
        raise InputError("--resume goes on with one run, --sweep starts several; give one of them.")
    config = beside(args.config, TrainConfig.from_toml(args.config).with_values(dict(_setting(s) for s in args.set)))
    jobs = Jobs(StandaloneHost(args.root), on_change=(lambda run: None) if args.json else ProgressBar())
    try:
        runs = [_resume(args, jobs, config)] if args.resume else _submit(args, jobs, config)
        with Ending() as ending:
            codes = [_wait(jobs, run, runs, ending, args.json) for run in runs]
    finally:
        jobs.shutdown()
    if args.json:
        print_json([run.manifest for run in runs] if args.sweep else runs[0].manifest)
    return max(codes)


def _submit(args: argparse.Namespace, jobs: Jobs, config: TrainConfig) -> list[Run]:
    values = parse_sweep("\n".join(args.sweep))
    if both := sorted({key for key, _ in map(_setting, args.set)} & values.keys()):
        raise InputError("{key} is given with --set and with --sweep; give one of them.", key=both[0])
    for remark in idle(config):
        say(args, f"note: {remark.field}: {remark}")
    return jobs.sweep(config, values) if values else [jobs.submit(config)]


def _resume(args: argparse.Namespace, jobs: Jobs, config: TrainConfig) -> Run:
    """Go on with the run of the configuration's name, with what may have changed since."""
    from lora_trainer.training.resuming import changes

    before = jobs.settled(config.name).config().to_dict()
    run = jobs.resume(config.name, config)
    if changed := changes(before, config):
        say(args, f"note: the run goes on with changed settings: {', '.join(changed)}")
    return run


def _wait(jobs: Jobs, run: Run, runs: Sequence[Run], ending: Ending, quiet: bool) -> int:
    """Wait for one of the runs; what is learned is kept whatever ends the program."""
    while not jobs.wait(run, 0.5):
        if not (asked := ending.next()):
            continue
        stopped = [_stopped(jobs, each, StopRequest(asked)) for each in runs]
        if any(stopped):
            tell("\nStopping after this step; what is learned is kept.")
        else:
            tell("\nWhat is learned is being saved; please wait.")
    if not quiet:
        _print_end(run)
    return 0 if run.state == "done" else 1


def _stopped(jobs: Jobs, run: Run, request: StopRequest) -> bool:
    """Whether this is the first time that a run is asked to stop; one that is over is left alone."""
    if not jobs.can_be_asked(run):
        return False
    with contextlib.suppress(LoraTrainError):  # it has just ended, or its manifest cannot be written
        jobs.stop(run.name, request)
    return True


def beside(path: Path, config: TrainConfig) -> TrainConfig:
    """Relative paths that do not exist here, but do beside the configuration, are taken from there."""
    values = {}
    for key in ("checkpoint", "data.folder", "network.continue_from"):
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        if value and not exists(expand(value)) and exists(path.parent / value):
            values[key] = str(path.parent / value)
    return config.with_values(values)


def _print_end(run: Run) -> None:
    if run.state == "failed":
        print(one_line(f"failed: {run.manifest['message']}"), file=sys.stderr)
    else:
        for entry in run.manifest["files"]:
            print(entry["path"])
        print(f"{run.state}: {run.manifest['message'] or run.folder}")


def _setting(text: str) -> tuple[str, Any]:
    """``key=value``, the value read by the key's type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError("--set {text}: write it as key=value, e.g. network.rank=8.", text=text)
    item = next((item for item in options() if item.path == key.strip()), None)
    return key.strip(), read_text(item, value) if item else value


def _runs(args: argparse.Namespace) -> int:
    runs = Runs(StandaloneHost(args.root).folders.runs)
    found = [runs.get(args.name)] if args.name else runs.list()
    if args.json:
        manifests = [run.manifest for run in found]
        print_json(manifests[0] if args.name else manifests)
        return 0
    if not found:
        print(f"There are no runs in {runs.root}.")
    for run in found:
        m = run.manifest
        if run.state == DAMAGED:
            print(f"{run.name:30} {run.state:8} {m['message']}")
            continue
        print(f"{run.name:30} {run.state:8} step {m['step']}/{m['steps']} files {len(m['files'])} {m['message']}")
    return 0


def _grid(args: argparse.Namespace) -> int:
    jobs = Jobs(StandaloneHost(args.root), on_change=(lambda run: None) if args.json else GridBar())
    wishes = {
        "weights": args.weights, "prompts": args.prompt, "epochs": ",".join(args.epochs) or "all",
        "seeds": args.seeds, "together": args.together, "numbers": not args.no_numbers, "clip": str(args.clip or ""),
    }  # fmt: skip
    run = jobs.grids.draw(args.name, **wishes)
    try:
        jobs.wait(run)
    except KeyboardInterrupt:
        jobs.grids.stop(args.name)
        jobs.wait(run)
    grid = run.manifest["grid"]
    if grid["state"] != "done":
        raise RunError(grid["message"])
    document = jobs.grids.document(args.name)
    if args.json:
        print_json({"grid": grid["path"], **document})
        return 0
    for sentence in (document["verdict"] or {}).get("sentences", []):
        print(Message.from_dict(sentence))
    for path in (*document["sheets"], document["csv"]):
        if path:
            print(path)
    return 0


def _dataset_check(args: argparse.Namespace) -> int:
    from lora_trainer.dataset.scan import check_dataset

    data = TrainConfig.from_dict(
        {"name": "check", "data": {"folder": args.folder, "resolution": args.resolution, "trigger": args.trigger}}
    ).data
    report = check_dataset(data).report()
    if args.json:
        print_json(report)
        return 0
    print_dataset(report, data)
    return 0


def _ui(args: argparse.Namespace) -> int:
    from lora_trainer.ui.standalone import serve

    host = StandaloneHost(args.root, args.checkpoint, args.language)
    if args.checkpoint:
        host.check(ModelRequest(work="ui"))
    serve(host, args.port)
    return 0
