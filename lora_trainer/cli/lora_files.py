"""``lora-trainer lora …`` and ``lora-trainer blocks …``: tools for LoRA files. Nothing is ever overwritten."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.console import can_print, print_json
from lora_trainer.cli.output import bar
from lora_trainer.cli.parser import Add, add_group, as_path, numbers
from lora_trainer.core.errors import InputError
from lora_trainer.core.plain_json import json_text
from lora_trainer.jobs.requests import (
    SV_METHODS,
    BakeDocument,
    ExtractDocument,
    MergeDocument,
    ResizeDocument,
    mix_options,
)

if TYPE_CHECKING:
    from lora_trainer.network.blocks.presets import Presets
    from lora_trainer.network.ops.files import Made


def add_lora_commands(add: Add, commands: Any) -> Any:
    """``lora (info|merge|resize|extract|mix)``, below the parser's ``commands``; returns where more can be added."""
    lora = add_group(commands, "lora", "work on LoRA files")
    info = add("info", _info, "show metadata, blocks, ranks and norms of a LoRA file", lora)
    info.add_argument("file", type=as_path, metavar="FILE", help="a LoRA file")

    merge = add("merge", _merge, "make one LoRA of several: exact, or at a rank", lora)
    merge.add_argument("files", type=as_path, nargs="+", metavar="FILE", help="the LoRA files")
    merge.add_list("--weights", numbers(float), metavar="WEIGHT", help="one for each file (default: 1)")
    merge.add_argument("--lbw", nargs="+", metavar="LIST", help="block weights, one list or preset for each file")
    merge.add_options(MergeDocument, "rank", "conv_rank", "precision", "output")

    resize = add("resize", _resize, "bring a LoRA to a smaller rank", lora)
    resize.add_options(ResizeDocument, "file", "rank")
    keep = resize.add_mutually_exclusive_group()
    for method, flag in SV_METHODS.items():
        keep.add_argument(f"--{method.replace('_', '-')}", type=float, metavar=flag.metavar, help=flag.help)
    resize.add_options(ResizeDocument, "conv_rank", "precision", "output")

    extract = add("extract", _extract, "make a LoRA of what distinguishes two SD1 checkpoints", lora)
    extract.add_options(ExtractDocument, "base", "tuned", "rank", "clamp_quantile", "text_threshold")
    extract.add_options(ExtractDocument, "conv_rank", "precision", "output")
    _add_mix(add, lora)
    return lora


def _add_mix(add: Add, lora: Any) -> None:
    mix = add("mix", _mix, "random mixes of several LoRAs as prompts; with --checkpoint they are drawn", lora)
    mix.add_argument(
        "loras", nargs="+", metavar="NAME:WEIGHT", help="a file or its name, its weight, and :block weights if wanted"
    )
    for item in mix_options():
        if item.path != "stack":
            mix.add_argument(
                f"--{item.path.replace('_', '-')}",
                type=item.type,
                choices=item.choices or None,
                metavar=None if item.choices else item.path.upper(),
                help=f"{item.title}. {item.help}".replace("%", "%%")
                + f" (default: {'none' if item.default == '' else item.default})",
            )
    mix.add_argument("--root", type=as_path, help="folder with models/Lora, and where mixes/ goes (default: here)")


def add_block_commands(add: Add, commands: Any) -> Any:
    """``blocks (show|bake)``, below the parser's ``commands``; returns where more can be added."""
    blocks = add_group(commands, "blocks", "layer block weights")
    show = add("show", _show, "show the blocks of a LoRA file and the presets for it", blocks)
    show.add_argument("file", type=as_path, metavar="FILE", help="a LoRA file")
    _add_presets(show)

    bake = add("bake", _bake, "write block weights into a new file", blocks)
    bake.add_options(BakeDocument, "file", "lbw", "lbwe", "weight", "te", "unet", "x", "seed", "checkpoint", "output")
    _add_presets(bake)
    return blocks


def _add_presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--presets", type=as_path, metavar="FILE", help="own presets, NAME:values a line")
    parser.add_argument("--element-presets", type=as_path, metavar="FILE", help="own NAME:blocks:elements:weight")


def _info(args: argparse.Namespace) -> int:
    from lora_trainer.network.ops.info import info

    found = info(args.file)
    if args.json:
        print_json(found)
        return 0
    metadata, blocks = found.pop("metadata"), found.pop("blocks", [])
    for key, value in found.items():
        print(f"{key}: {value}")
    _print_blocks(blocks)
    for key, value in metadata.items():
        print(f"  {key}: {json_text(value)[:200]}")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from lora_trainer.network.ops.files import Ingredient, merge_files

    weights = args.weights or [1.0] * len(args.files)
    lists = args.lbw or [""] * len(args.files)
    for option, values in (("--weights", weights), ("--lbw", lists)):
        if len(values) != len(args.files):
            raise InputError(
                "{option} has {given} values for {files} files; give one for each.",
                option=option,
                given=len(values),
                files=len(args.files),
            )
    ingredients = [
        Ingredient(path, weight, lbw=lbw) for path, weight, lbw in zip(args.files, weights, lists, strict=True)
    ]
    progress = bar("modules", args.json)
    return _done(args, merge_files(ingredients, args.output, args.rank, args.conv_rank, args.precision, progress))


def _resize(args: argparse.Namespace) -> int:
    from lora_trainer.network.ops.files import resize_file
    from lora_trainer.network.ops.resize import METHODS, Rule

    given = {method: getattr(args, method) for method in METHODS if getattr(args, method) is not None}
    method, value = next(iter(given.items()), ("", 0.0))
    rule = Rule(args.rank, args.conv_rank, method, value)
    return _done(args, resize_file(args.file, args.output, rule, args.precision, bar("modules", args.json)))


def _extract(args: argparse.Namespace) -> int:
    from lora_trainer.network.ops.files import extract_file

    made = extract_file(
        args.base,
        args.tuned,
        args.output,
        args.rank,
        conv_rank=args.conv_rank,
        clamp_quantile=args.clamp_quantile,
        text_threshold=args.text_threshold,
        precision=args.precision,
        progress=bar("layers", args.json),
    )
    return _done(args, made)


def _mix(args: argparse.Namespace) -> int:
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.jobs.service import Jobs

    jobs = Jobs(StandaloneHost(args.root))
    given = {item.path: getattr(args, item.path) for item in mix_options() if item.path != "stack"}
    plan, model = jobs.tools.mix_plan({**given, "stack": "\n".join(args.loras)}, outside=True)
    notices = [str(notice) for notice in plan.stack.notices()]
    document: Mapping[str, Any] = plan.document()
    if args.checkpoint:
        show = bar("pictures", args.json)
        document = jobs.tools.draw_mixes_now(plan, model, lambda done, of, mixed: show(done, of)).to_dict()
    if args.json:
        print_json({**document, "notices": notices})
        return 0
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    for mix in document["mixes"]:
        print(mix["picture"] or mix["prompt"])
    if args.checkpoint:
        print(document["folder"])
    return 0


def _show(args: argparse.Namespace) -> int:
    from lora_trainer.network.blocks.block_map import architecture_of
    from lora_trainer.network.lora_file import read_lora, read_metadata
    from lora_trainer.network.modules import group
    from lora_trainer.network.ops.info import block_infos

    tensors = read_lora(args.file)
    architecture = architecture_of(group(tensors), read_metadata(args.file))
    blocks = [vars(block) for block in block_infos(tensors)]
    presets = _presets(args)
    found = {
        "path": str(args.file),
        "architecture": architecture.name,
        "lists": {str(count): list(names) for count, names in architecture.lists.items()},
        "blocks": blocks,
        "presets": {name: presets.find(name, architecture) for name in presets.names(architecture)},
        "elements": dict(presets.elements),
    }
    if args.json:
        print_json(found)
        return 0
    print(f"{args.file.name}: {architecture.name}")
    _print_blocks(blocks)
    for count, names in architecture.lists.items():
        print(f"lbw with {count} values: {' '.join(names)}")
    print(f"presets: {' '.join(presets.names(architecture))}")
    print(f"element presets: {' '.join(presets.elements)}")
    return 0


def _bake(args: argparse.Namespace) -> int:
    from lora_trainer.network.ops.files import Baking, bake_file, baked_name

    te, unet = (args.weight if value is None else value for value in (args.te, args.unet))
    baking = Baking(te, unet, args.lbw, args.lbwe, args.x, args.seed, args.checkpoint)
    return _done(args, bake_file(args.file, args.output or baked_name(args.file), baking, _presets(args)))


def _presets(args: argparse.Namespace) -> Presets:
    from lora_trainer.network.blocks.presets import chosen_presets

    return chosen_presets(args.presets, args.element_presets)


def _done(args: argparse.Namespace, made: Made) -> int:
    """Print what was written."""
    if args.json:
        print_json(made.to_dict())
        return 0
    for notice in made.notices:
        print(f"note: {notice}", file=sys.stderr)
    for key, value in made.facts.items():
        shown = f"{value:.3%}" if key in ("error", "covered") else value
        if value != "":
            print(f"{'difference' if key == 'error' else key}: {shown}")
    print(made.path)
    return 0


def _print_blocks(blocks: Sequence[Mapping[str, Any]]) -> None:
    letter = "█" if can_print("█") else "#"
    largest = max((block["norm"] for block in blocks), default=0.0) or 1.0
    for block in blocks:
        bar = letter * round(20 * block["norm"] / largest)
        rank = "/".join(map(str, block["ranks"])) or "-"
        unknown = f" (+{block['unknown']} unknown)" if block["unknown"] else ""
        print(
            f"{block['block']:6} {block['modules']:4} modules  rank {rank:8} ‖ΔW‖ {block['norm']:9.4f}{unknown} {bar}"
        )
