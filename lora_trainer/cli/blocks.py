"""``lora-trainer blocks (analyze|tune)``: which blocks of a LoRA do what, and which weights suit them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.console import print_json
from lora_trainer.cli.output import bar, say
from lora_trainer.cli.parser import ROOT_HELP, Add, as_path
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import write_json, write_text
from lora_trainer.core.messages import Message
from lora_trainer.core.paths import clean_path
from lora_trainer.hosts.standalone.drawing import SAMPLERS
from lora_trainer.jobs.requests import AnalysisDocument, TuningDocument, read

if TYPE_CHECKING:
    from lora_trainer.jobs.block_work import Subject
    from lora_trainer.jobs.service import Jobs


def add_analysis_commands(add: Add, blocks: Any) -> None:
    """``blocks (analyze|tune)``, below the ``blocks`` that :func:`add_block_commands` returns."""
    analyze = add("analyze", _analyze, "show how strong each block is, and with prompts what it does", blocks)
    _add_subject(analyze)
    analyze.add_options(AnalysisDocument, "prompts", "seeds")
    analyze.add_argument("--trigger", help="the word that asks for the LoRA's subject (default: the run's)")
    analyze.add_argument("--negative", help="negative prompt")
    analyze.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the pictures")
    analyze.add_argument("--steps", type=int, help="sampling steps")
    analyze.add_argument("--cfg", type=float, help="CFG scale")
    analyze.add_argument("--sampler", choices=list(SAMPLERS), help="as in txt2img (default: that of the samples)")
    analyze.add_options(AnalysisDocument, "together")
    analyze.add_argument("--output", type=as_path, help="folder for pictures, numbers and CSV")

    tune = add("tune", _tune, "learn one weight a block on pictures that the LoRA was not trained on", blocks)
    _add_subject(tune)
    tune.add_options(TuningDocument, "pictures")
    tune.add_argument("--trigger", help="word that is put before every caption of --pictures (default: the run's)")
    tune.add_argument("--resolution", type=int, help="at which --pictures are looked at (default: the run's, or 512)")
    tune.add_options(TuningDocument, "steps", "pull", "seed")
    tune.add_argument("--presets", type=as_path, metavar="FILE", help="own presets to try too, NAME:values a line")
    tune.add_argument("--output", type=as_path, help="file for the result as JSON")
    tune.add_argument("--bake", type=as_path, metavar="NEW.safetensors", help="write the found weights into a new file")


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="RUN|FILE", help="name of a run, or a .safetensors file")
    parser.add_argument("--epoch", type=int, help="which file of the run (default: the last)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the LoRA (default: 1)")
    parser.add_argument("--checkpoint", help="checkpoint to draw and measure with (default: the run's)")
    parser.add_argument("--root", type=as_path, help=ROOT_HELP)


def _subject(args: argparse.Namespace, jobs: Jobs) -> Subject:
    """The run or file that is named, with the checkpoint that is."""
    if not clean_path(args.subject).lower().endswith(".safetensors"):
        return jobs.blocks.subject_of_run(args.subject, args.epoch).changed(checkpoint=args.checkpoint or None)
    try:
        file = as_path(args.subject)
    except argparse.ArgumentTypeError as error:
        raise InputError(str(error)) from error
    if args.epoch is not None:
        raise InputError("--epoch is for a run; {file} is a file.", file=file)
    return jobs.blocks.subject_of_file(file).changed(checkpoint=args.checkpoint or None)


def _analyze(args: argparse.Namespace) -> int:
    jobs = _jobs(args)
    subject = _subject(args, jobs)
    found = _by_pictures(args, jobs, subject) if args.prompt else _from_files(args, subject)
    if args.json:
        print_json(found)
        return 0
    if args.prompt:
        _print_analysis(found)
    else:
        _print_heat(found)
    return 0


def _jobs(args: argparse.Namespace) -> Jobs:
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.jobs.service import Jobs

    return Jobs(StandaloneHost(args.root))


def _from_files(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
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


def _by_pictures(args: argparse.Namespace, jobs: Jobs, subject: Subject) -> dict[str, Any]:
    wanted = read(AnalysisDocument, {"together": args.together, "seeds": args.seed, "prompts": args.prompt})
    wanted = replace(wanted, weight=args.weight)
    width, height = args.size or (None, None)
    subject = subject.changed(
        samples__negative=args.negative, samples__steps=args.steps, samples__cfg=args.cfg,
        samples__sampler=args.sampler, samples__width=width, samples__height=height,
    )  # fmt: skip
    plan = jobs.blocks.plan(subject, wanted, args.trigger)
    say(
        args,
        f"Drawing {len(plan.cells())} pictures: {len(plan.requests)} without the LoRA and as many with it, then with "
        f"each of {len(plan.lists)} blocks alone and left out. Those that are there already are not drawn again.",
    )
    return jobs.blocks.analyze_now(
        subject, plan, args.output or subject.folder, wanted.together, bar("pictures", args.json)
    )


def _tune(args: argparse.Namespace) -> int:
    from lora_trainer.network.blocks.presets import chosen_presets
    from lora_trainer.network.ops.provenance import check_output

    jobs = _jobs(args)
    subject = _subject(args, jobs).changed(data__trigger=args.trigger, data__resolution=args.resolution)
    if subject.run is None and args.pictures is None:
        raise InputError(
            "{file} is not in the list of any run in {runs}; name pictures to learn from with --pictures, or the "
            "folder of its run with --root.",
            file=subject.file,
            runs=jobs.host.folders.runs,
        )
    if args.bake:
        check_output(args.bake, [subject.file])
    wanted = TuningDocument(
        weight=args.weight, pictures=str(args.pictures or ""), steps=args.steps, pull=args.pull, seed=args.seed
    )
    found = jobs.blocks.tune_now(
        subject,
        wanted,
        bar("pictures", args.json),
        presets=chosen_presets(args.presets) if args.presets else None,
        output=args.output,
        on_pictures=lambda pictures: say(
            args,
            f"Learning a weight for each block on {len(pictures.items)} pictures ({pictures.kind}): {wanted.steps} "
            "steps on either half and on all, then measuring presets and one weight for all blocks.",
        ),
    )
    if args.bake:
        found["baked"] = _bake(subject.file, args.bake, found)
    if args.json:
        print_json(found)
        return 0
    _print_tuning(found)
    return 0


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
