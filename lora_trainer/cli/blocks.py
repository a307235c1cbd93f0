"""``lora-trainer blocks (analyze|tune)``: which blocks of a LoRA do what, and which weights suit them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.console import print_json
from lora_trainer.cli.output import bar, say
from lora_trainer.cli.parser import ROOT_HELP, Add, as_path, numbers
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import write_json, write_text
from lora_trainer.core.messages import Message
from lora_trainer.core.paths import clean_path, is_file
from lora_trainer.hosts.standalone.drawing import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.hosts.base import Session
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.runs.run import Run
    from lora_trainer.runs.saved_files import SavedFile
    from lora_trainer.runs.store import Runs
    from lora_trainer.validation.metrics.evaluation_set import Pictures


def add_analysis_commands(add: Add, blocks: Any) -> None:
    """``blocks (analyze|tune)``, below the ``blocks`` that :func:`add_block_commands` returns."""
    analyze = add("analyze", _analyze, "show how strong each block is, and with prompts what it does", blocks)
    _add_subject(analyze)
    analyze.add_argument(
        "--prompt", action="append", default=[], help="draw pictures with each block alone and without each; repeatable"
    )
    analyze.add_list("--seed", numbers(int), metavar="SEED", help="of the pictures (default: that of the samples)")
    analyze.add_argument("--trigger", help="the word that asks for the LoRA's subject (default: the run's)")
    analyze.add_argument("--negative", help="negative prompt")
    analyze.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the pictures")
    analyze.add_argument("--steps", type=int, help="sampling steps")
    analyze.add_argument("--cfg", type=float, help="CFG scale")
    analyze.add_argument("--sampler", choices=list(SAMPLERS), help="as in txt2img (default: that of the samples)")
    analyze.add_argument("--together", type=int, default=4, help="pictures drawn at once (default: 4)")
    analyze.add_argument("--output", type=as_path, help="folder for pictures, numbers and CSV")

    tune = add("tune", _tune, "learn one weight a block on pictures that the LoRA was not trained on", blocks)
    _add_subject(tune)
    tune.add_argument(
        "--pictures", type=as_path, help="folder of pictures with captions (default: the run's held-out ones)"
    )
    tune.add_argument("--trigger", help="word that is put before every caption of --pictures (default: the run's)")
    tune.add_argument("--resolution", type=int, help="at which --pictures are looked at (default: the run's, or 512)")
    tune.add_argument("--steps", type=int, default=48, help="of the optimizer (default: 48)")
    tune.add_argument("--pull", type=float, help="towards 1; higher changes fewer blocks")
    tune.add_argument("--seed", type=int, default=0, help="of noise and halves")
    tune.add_argument("--presets", type=as_path, metavar="FILE", help="own presets to try too, NAME:values a line")
    tune.add_argument("--output", type=as_path, help="file for the result as JSON")
    tune.add_argument("--bake", type=as_path, metavar="NEW.safetensors", help="write the found weights into a new file")


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="RUN|FILE", help="name of a run, or a .safetensors file")
    parser.add_argument("--epoch", type=int, help="which file of the run (default: the last)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the LoRA (default: 1)")
    parser.add_argument("--checkpoint", help="checkpoint to draw and measure with (default: the run's)")
    parser.add_argument("--root", type=as_path, help=ROOT_HELP)


@dataclass(frozen=True)
class _Subject:
    """What is looked at: a run's file, or a file by itself.

    Attributes:
        name: of run or file.
        run: that it is, or that has the file.
        file: the LoRA.
        files: all that the heat map has.
        config: checkpoint, size, sampler, pictures.
        folder: where results go.
    """

    name: str
    run: Run | None
    file: Path
    files: Sequence[SavedFile]
    config: TrainConfig
    folder: Path


def _subject(args: argparse.Namespace, host: StandaloneHost) -> _Subject:
    from lora_trainer.jobs.blocks import blocks_folder
    from lora_trainer.runs.saved_files import find_file, run_files
    from lora_trainer.runs.store import Runs

    runs = Runs(host.folders.runs)
    if clean_path(args.subject).lower().endswith(".safetensors"):
        return _subject_of_file(args, host, runs)
    run = runs.get(args.subject)
    file = find_file(run, epoch=args.epoch)
    files = run_files(run) if args.epoch is None else [file]
    return _Subject(run.name, run, file.path, files, run.config().with_values(_changes(args)), blocks_folder(run))


def _subject_of_file(args: argparse.Namespace, host: StandaloneHost, runs: Runs) -> _Subject:
    """A file by its path; when a run has written it, its pictures and settings count."""
    from lora_trainer.config.train import TrainConfig
    from lora_trainer.jobs.blocks import blocks_folder
    from lora_trainer.runs.saved_files import SavedFile, run_of

    try:
        file = as_path(args.subject)
    except argparse.ArgumentTypeError as error:
        raise InputError(str(error)) from error
    if args.epoch is not None:
        raise InputError("--epoch is for a run; {file} is a file.", file=file)
    if not is_file(file):
        raise InputError("{path} does not exist; check the path.", path=file)
    run = run_of(file, runs.list())
    config = run.config() if run else TrainConfig(name="blocks")
    folder = blocks_folder(run) if run else host.folders.runs.parent / "blocks"
    return _Subject(file.stem, run, file, [SavedFile(file, file.stem)], config.with_values(_changes(args)), folder)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    return {"checkpoint": args.checkpoint} if args.checkpoint else {}


def _analyze(args: argparse.Namespace) -> int:
    from lora_trainer.hosts.standalone.host import StandaloneHost

    host = StandaloneHost(args.root)
    subject = _subject(args, host)
    found = _by_pictures(args, host, subject) if args.prompt else _from_files(args, subject)
    if args.json:
        print_json(found)
        return 0
    if args.prompt:
        _print_analysis(found)
    else:
        _print_heat(found)
    return 0


def _from_files(args: argparse.Namespace, subject: _Subject) -> dict[str, Any]:
    """The heat map; no checkpoint is needed for it."""
    from lora_trainer.validation.blocks.norms import heat_csv, heat_map

    heat = heat_map(subject.name, subject.files)
    problems = [row["problem"] for row in heat["rows"] if row["problem"]]
    if len(problems) == len(heat["rows"]):
        raise InputError.of(Message.from_dict(problems[0]))
    if args.output:
        write_json(args.output / "heat.json", heat)
        write_text(args.output / "heat.csv", heat_csv(heat))
        heat["csv"] = str(args.output / "heat.csv")
    return heat


def _by_pictures(args: argparse.Namespace, host: StandaloneHost, subject: _Subject) -> dict[str, Any]:
    from lora_trainer.hosts.base import draw_request
    from lora_trainer.jobs.requests import AnalysisDocument, read, read_seeds
    from lora_trainer.validation.blocks.ablation import analyze, plan_analysis
    from lora_trainer.validation.grid.plan import trigger_of

    wanted = read(AnalysisDocument, {"together": args.together})
    width, height = args.size or (None, None)
    given = {
        "negative": args.negative, "steps": args.steps, "cfg": args.cfg, "sampler": args.sampler,
        "width": width, "height": height,
    }  # fmt: skip
    config = subject.config.with_values({f"samples.{k}": value for k, value in given.items() if value is not None})
    like = draw_request(config.samples, "", config.data.resolution if subject.run else host.native_resolution(config))
    plan = plan_analysis(
        subject.file,
        args.prompt,
        read_seeds(args.seed) or [config.samples.seed],
        like,
        weight=args.weight,
        trigger=trigger_of(config, args.prompt) if args.trigger is None else args.trigger,
    ).on(host.check(config))
    pictures = len(plan.cells())
    say(
        args,
        f"Drawing {pictures} pictures: {len(plan.requests)} without the LoRA and as many with it, then with each of "
        f"{len(plan.lists)} blocks alone and left out. Those that are there already are not drawn again.",
    )
    with host.session(config) as session:
        return analyze(
            plan.on(host.check(config), session.draw_settings()),
            session,
            args.output or subject.folder,
            together=wanted.together,
            on_cells=bar("pictures", args.json),
        )


def _tune(args: argparse.Namespace) -> int:
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.network.blocks.presets import chosen_presets
    from lora_trainer.network.ops.provenance import check_output
    from lora_trainer.validation.blocks.report import tune
    from lora_trainer.validation.blocks.tuner import Effort

    host = StandaloneHost(args.root)
    subject = _subject(args, host)
    given = {"data.trigger": args.trigger, "data.resolution": args.resolution}
    config = subject.config.with_values({key: value for key, value in given.items() if value is not None})
    if subject.run is None and args.pictures is None:
        raise InputError(
            "{file} is not in the list of any run in {runs}; name pictures to learn from with --pictures, or the "
            "folder of its run with --root.",
            file=subject.file,
            runs=host.folders.runs,
        )
    presets = chosen_presets(args.presets) if args.presets else host.block_presets()
    if args.bake:
        check_output(args.bake, [subject.file])
    effort = Effort(steps=args.steps, seed=args.seed, **({} if args.pull is None else {"pull": args.pull}))
    host.check(config)
    with host.session(config) as session:
        pictures = _pictures(args, host, session, subject, config)
        say(
            args,
            f"Learning a weight for each block on {len(pictures.items)} pictures ({pictures.kind}): {effort.steps} "
            "steps on either half and on all, then measuring presets and one weight for all blocks.",
        )
        found = tune(
            session,
            subject.file,
            pictures,
            precision=config.training.precision,
            weight=args.weight,
            effort=effort,
            presets=presets,
            output=args.output or subject.folder / subject.file.stem / "tuning.json",
            on_part=bar("pictures", args.json),
        )
    if args.bake:
        found["baked"] = _bake(subject.file, args.bake, found)
    if args.json:
        print_json(found)
        return 0
    _print_tuning(found)
    return 0


def _pictures(
    args: argparse.Namespace, host: StandaloneHost, session: Session, subject: _Subject, config: TrainConfig
) -> Pictures:
    from lora_trainer.validation.metrics.evaluation_set import find_pictures

    fingerprint = subject.run.fingerprint if subject.run else ""
    return find_pictures(host, session, config, str(args.pictures or ""), fingerprint=fingerprint, seed=args.seed)


def _bake(file: Path, output: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    from lora_trainer.network.ops.files import Baking, bake_file

    weight = found["weight"]
    return bake_file(file, output, Baking(weight, weight, found["lbw"])).to_dict()


# ------------------------------------------------------------------ in lines
def _print_heat(heat: Mapping[str, Any]) -> None:
    print(f"‖ΔW‖ of {heat['name']} ({heat['architecture']})")
    width = max(len(row["label"]) for row in heat["rows"])
    print(" " * width, *(f"{block:>6}" for block in heat["blocks"]))
    for row in heat["rows"]:
        if row["problem"]:
            print(f"{row['label']:{width}} {Message.from_dict(row['problem'])}")
        else:
            print(f"{row['label']:{width}}", *(f"{'-' if n is None else f'{n:.3f}':>6}" for n in row["norms"]))
    if "csv" in heat:
        print(heat["csv"])


def _print_analysis(found: Mapping[str, Any]) -> None:
    leaks = found["all_leak"] is not None
    print(f"{'block':6} {'effect':>7} {'alone':>15} {'left out':>15}" + (f" {'leak':>7}" if leaks else ""))
    for entry in found["blocks"]:
        only, without = entry["only"], entry["without"]
        leak = f" {(entry['leak']['only']['rms'] + entry['leak']['without']['rms']) / 2:7.4f}" if leaks else ""
        print(
            f"{entry['block']:6} {entry['effect']:7.4f} {only['rms']:7.4f} ±{only['rms_sd']:6.4f} "
            f"{without['rms']:7.4f} ±{without['rms_sd']:6.4f}{leak}"
        )
    _print_sentences(found["notes"])
    print(found["csv"])
    for sheet in found["sheets"]:
        print(sheet)


def _print_tuning(found: Mapping[str, Any]) -> None:
    losses, tuned = found["losses"], found["tuned"]
    print(f"pictures: {found['pictures']['count']} ({found['pictures']['kind']})")
    print(
        f"loss without the LoRA {losses['base']:.5f}, with it {losses['before']:.5f}, "
        f"with the weights {losses['fitted']:.5f}"
    )
    print(f"on pictures that they were not fitted to: {tuned['before']:.5f} → {tuned['after']:.5f}")
    for kind in ("tuned", "single", "preset"):
        name = f" ({found[kind]['name']})" if kind != "tuned" else ""
        print(f"  {kind + name:18} {found[kind]['relative']:+.2%} ± {found[kind]['error'] / found[kind]['before']:.2%}")
    _print_sentences(found["sentences"])
    print(f"lbw={found['lbw']}")
    if "baked" in found:
        if found["recommended"] != "tuned":
            print("note: the learned weights were baked, as asked; they are not what is recommended.")
        print(found["baked"]["path"])


def _print_sentences(sentences: list[dict[str, Any]]) -> None:
    for sentence in sentences:
        print(Message.from_dict(sentence))
