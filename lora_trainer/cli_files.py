"""``lora-trainer lora …`` and ``lora-trainer blocks …``: tools for LoRA files. Nothing is ever overwritten."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import InputError

if TYPE_CHECKING:
    import torch

    from lora_trainer.network.block_presets import Presets
    from lora_trainer.network.block_weights import BlockWeights
    from lora_trainer.network.merge import Source

Add = Callable[..., argparse.ArgumentParser]
PRECISIONS = ("fp16", "bf16", "fp32")


def add_lora_commands(add: Add, commands: Any) -> Any:
    """``lora (info|merge|resize|extract)``, below the parser's ``commands``; returns where more can be added."""
    lora = commands.add_parser("lora", help="work on LoRA files").add_subparsers(metavar="WHAT", required=True)
    info = add("info", _info, "show metadata, blocks, ranks and norms of a LoRA file", lora)
    info.add_argument("file", type=Path)

    merge = add("merge", _merge, "make one LoRA of several: exact, or at a rank", lora)
    merge.add_argument("files", type=Path, nargs="+", metavar="FILE")
    merge.add_argument("--weights", type=float, nargs="+", help="one for each file (default: 1)")
    merge.add_argument("--lbw", nargs="+", metavar="LIST", help="block weights, one list or preset for each file")
    merge.add_argument("--rank", type=int, help="rank of the result; without it the ranks add up and nothing is lost")
    _add_output(merge)

    resize = add("resize", _resize, "bring a LoRA to a smaller rank", lora)
    resize.add_argument("file", type=Path)
    resize.add_argument("--rank", type=int, help="the rank, or with --sv-… the largest one")
    keep = resize.add_mutually_exclusive_group()
    keep.add_argument("--sv-fro", type=float, metavar="SHARE", help="keep this share of the norm, e.g. 0.95")
    keep.add_argument(
        "--sv-cumulative", type=float, metavar="SHARE", help="keep this share of the singular values' sum"
    )
    keep.add_argument(
        "--sv-ratio", type=float, metavar="N", help="keep singular values down to the largest divided by N"
    )
    _add_output(resize)

    extract = add("extract", _extract, "make a LoRA of what distinguishes two SD1 checkpoints", lora)
    extract.add_argument("base", type=Path, help="the checkpoint that was tuned")
    extract.add_argument("tuned", type=Path, help="the tuned checkpoint")
    extract.add_argument("--rank", type=int, required=True)
    extract.add_argument("--clamp-quantile", type=float, default=1.0, help="cut off outliers (sd-scripts: 0.99)")
    extract.add_argument(
        "--text-threshold", type=float, default=0.0, help="smaller changes of the text encoder are none"
    )
    _add_output(extract)
    return lora


def add_block_commands(add: Add, commands: Any) -> Any:
    """``blocks (show|bake)``, below the parser's ``commands``; returns where more can be added."""
    blocks = commands.add_parser("blocks", help="layer block weights").add_subparsers(metavar="WHAT", required=True)
    show = add("show", _show, "show the blocks of a LoRA file and the presets for it", blocks)
    show.add_argument("file", type=Path)
    _add_presets(show)

    bake = add("bake", _bake, "write block weights into a new file", blocks)
    bake.add_argument("file", type=Path)
    bake.add_argument("--lbw", default="", metavar="LIST", help="preset, or values; R and U are random, X is --x")
    bake.add_argument("--lbwe", default="", metavar="RULES", help="element preset, or rules like IN05-OUT05:attn:0")
    bake.add_argument("--weight", type=float, default=1.0, help="of everything (default: 1)")
    bake.add_argument("--te", type=float, help="weight of the text encoders (default: --weight)")
    bake.add_argument("--unet", type=float, help="weight of the UNet (default: --weight)")
    bake.add_argument("--x", type=float, help="the number for X")
    bake.add_argument("--seed", type=int, default=0, help="of R and U")
    bake.add_argument(
        "--checkpoint", type=Path, help="the SD1 checkpoint, needed for DoRA at other values than 0 and 1"
    )
    bake.add_argument("--output", type=Path, help="the new file (default: beside the old one)")
    _add_presets(bake)
    return blocks


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conv-rank", type=int, help="rank of 3×3 convolutions")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the result (default: that of the files)")
    parser.add_argument("--output", type=Path, required=True, help="the new file")


def _add_presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--presets", type=Path, metavar="FILE", help="own presets, NAME:values a line")
    parser.add_argument("--element-presets", type=Path, metavar="FILE", help="own NAME:blocks:elements:weight")


def _info(args: argparse.Namespace) -> int:
    from lora_trainer.network.info import info

    found = info(args.file)
    if args.json:
        return _print_json(found)
    metadata, blocks = found.pop("metadata"), found.pop("blocks", [])
    for key, value in found.items():
        print(f"{key}: {value}")
    _print_blocks(blocks)
    for key, value in metadata.items():
        print(f"  {key}: {json.dumps(value, ensure_ascii=False)[:200]}")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from lora_trainer.network import derived
    from lora_trainer.network.lora_file import read_metadata
    from lora_trainer.network.merge import merge

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
    derived.check_output(args.output, args.files)
    sources = [_source(path, weight, lbw) for path, weight, lbw in zip(args.files, weights, lists, strict=True)]
    merged = merge(sources, args.rank, args.conv_rank, args.precision, _bar("modules", args.json))
    headers = [read_metadata(path) for path in args.files]
    record = {
        "made": "merged",
        "rank": args.rank,
        "error": merged.error,
        "sources": [
            {**derived.source_record(path, header), "weight": weight, "lbw": lbw}
            for path, header, weight, lbw in zip(args.files, headers, weights, lists, strict=True)
        ],
    }
    header = derived.derived_metadata(headers[0], args.output, record)
    header |= derived.network_entries(merged.ranks, merged.alphas)
    digest = derived.write_derived(args.output, merged.stored, header)
    notices = [str(notice) for notice in merged.notices]
    return _done(args, digest, ranks=_ranks(merged.ranks), error=merged.error, notices=notices)


def _source(path: Path, weight: float, lbw: str) -> Source:
    from lora_trainer.network.block_weights import factors, resolve
    from lora_trainer.network.blocks import architecture_of
    from lora_trainer.network.lora_file import read_lora, read_metadata
    from lora_trainer.network.merge import Source
    from lora_trainer.network.modules import group

    tensors = read_lora(path)
    if not lbw:
        return Source(path.name, tensors, weight)
    keys = group(tensors)
    blocks = resolve(lbw, architecture_of(keys, read_metadata(path)), name=path.stem)
    return Source(path.name, tensors, weight, factors(keys, blocks, weight, weight))


def _resize(args: argparse.Namespace) -> int:
    from lora_trainer.network import derived
    from lora_trainer.network.lora_file import read_lora, read_metadata
    from lora_trainer.network.resize import METHODS, Rule, resize

    given = {method: getattr(args, method) for method in METHODS if getattr(args, method) is not None}
    method, value = next(iter(given.items()), ("", 0.0))
    rule = Rule(args.rank, args.conv_rank, method, value)
    derived.check_output(args.output, [args.file])
    metadata = read_metadata(args.file)
    resized = resize(read_lora(args.file), rule, args.precision, _bar("modules", args.json))
    record = {
        "made": "resized",
        "rank": args.rank,
        "conv_rank": args.conv_rank,
        **given,
        "error": resized.error,
        "sources": [derived.source_record(args.file, metadata)],
    }
    header = derived.derived_metadata(metadata, args.output, record)
    header |= derived.network_entries(resized.ranks, resized.alphas)
    digest = derived.write_derived(args.output, resized.stored, header)
    return _done(args, digest, ranks=_ranks(resized.ranks), error=resized.error)


def _extract(args: argparse.Namespace) -> int:
    from lora_trainer.network import derived
    from lora_trainer.network.checkpoint_weights import open_checkpoint
    from lora_trainer.network.extract import extract, metadata

    derived.check_output(args.output, [args.base, args.tuned])
    with open_checkpoint(args.base) as base, open_checkpoint(args.tuned) as tuned:
        found = extract(
            base,
            tuned,
            args.rank,
            conv_rank=args.conv_rank,
            clamp_quantile=args.clamp_quantile,
            text_threshold=args.text_threshold,
            precision=args.precision or "fp16",
            progress=_bar("layers", args.json),
        )
    record = {
        "made": "extracted",
        "base": args.base.name,
        "tuned": args.tuned.name,
        "clamp_quantile": args.clamp_quantile,
        "error": found.error,
    }
    header = derived.derived_metadata(metadata(args.rank, args.conv_rank), args.output, record)
    digest = derived.write_derived(args.output, found.modules, header)
    return _done(args, digest, error=found.error, covered=found.covered, unchanged=found.unchanged)


def _show(args: argparse.Namespace) -> int:
    from lora_trainer.network.blocks import architecture_of
    from lora_trainer.network.info import block_infos
    from lora_trainer.network.lora_file import read_lora, read_metadata
    from lora_trainer.network.modules import group

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
        return _print_json(found)
    print(f"{args.file.name}: {architecture.name}")
    _print_blocks(blocks)
    for count, names in architecture.lists.items():
        print(f"lbw with {count} values: {' '.join(names)}")
    print(f"presets: {' '.join(presets.names(architecture))}")
    print(f"element presets: {' '.join(presets.elements)}")
    return 0


def _bake(args: argparse.Namespace) -> int:
    from lora_trainer.network import derived
    from lora_trainer.network.bake import record
    from lora_trainer.network.block_weights import resolve
    from lora_trainer.network.blocks import architecture_of
    from lora_trainer.network.lora_file import read_lora, read_metadata
    from lora_trainer.network.modules import group

    output = args.output or derived.free_name(args.file.with_name(f"{args.file.stem}-baked.safetensors"))
    derived.check_output(output, [args.file])
    tensors, metadata = read_lora(args.file), read_metadata(args.file)
    te, unet = (args.weight if value is None else value for value in (args.te, args.unet))
    architecture = architecture_of(group(tensors), metadata)
    named: dict[str, Any] = {"lbwe": args.lbwe, "x": args.x, "seed": args.seed, "name": args.file.stem}
    blocks = resolve(args.lbw, architecture, _presets(args), **named)
    baked = _baked(tensors, blocks, te, unet, args.checkpoint)
    rules = ",".join(map(str, blocks.rules))
    source = derived.source_record(args.file, metadata)
    entry = record(blocks.text, rules, te, unet, baked, seed=args.seed, sources=[source])
    digest = derived.write_derived(output, baked.modules, derived.derived_metadata(metadata, output, entry))
    args.output = output
    unlisted = blocks.unlisted(group(tensors))
    notices = [str(notice) for notice in _unlisted_notice(len(unlisted), len(blocks.blocks))]
    return _done(args, digest, lbw=blocks.text, lbwe=rules, te=te, unet=unet, **baked.counts(), notices=notices)


def _baked(
    tensors: Mapping[str, torch.Tensor], blocks: BlockWeights, te: float, unet: float, checkpoint: Path | None
) -> Any:
    from lora_trainer.network.bake import bake
    from lora_trainer.network.block_weights import factors
    from lora_trainer.network.modules import group

    ratios = factors(group(tensors), blocks, te, unet)
    if checkpoint is None:
        return bake(tensors, ratios)
    from lora_trainer.network.checkpoint_weights import open_checkpoint

    with open_checkpoint(checkpoint) as weights:
        return bake(tensors, ratios, weights)


def _unlisted_notice(modules: int, values: int) -> Iterable[Any]:
    from lora_trainer.network.derived import Notice

    if modules:
        yield Notice(
            "A list of {values} values leaves {modules} convolution modules of this LoRA at 0; use the longer list to "
            "keep them.",
            {"values": values, "modules": modules},
        )


def _presets(args: argparse.Namespace) -> Presets:
    from lora_trainer.network.block_presets import load_presets

    return load_presets(args.presets, args.element_presets)


def _ranks(ranks: Sequence[int]) -> list[int]:
    return sorted(set(ranks))


def _done(args: argparse.Namespace, digest: str, **values: Any) -> int:
    """Print what was written."""
    if args.json:
        return _print_json({"path": str(args.output), "sha256": digest, **values})
    for notice in values.pop("notices", []):
        print(f"note: {notice}", file=sys.stderr)
    for key, value in values.items():
        shown = f"{value:.3%}" if key in ("error", "covered") else value
        if value != "":
            print(f"{key}: {shown}")
    print(args.output)
    return 0


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=1, ensure_ascii=False))
    return 0


def _print_blocks(blocks: Sequence[Mapping[str, Any]]) -> None:
    largest = max((block["norm"] for block in blocks), default=0.0) or 1.0
    for block in blocks:
        bar = "█" * round(20 * block["norm"] / largest)
        rank = "/".join(map(str, block["ranks"])) or "-"
        unknown = f" (+{block['unknown']} unknown)" if block["unknown"] else ""
        print(
            f"{block['block']:6} {block['modules']:4} modules  rank {rank:8} ‖ΔW‖ {block['norm']:9.4f}{unknown} {bar}"
        )


def _bar(unit: str, quiet: bool) -> Callable[[int, int], None]:
    """A progress bar on standard error for work that takes long."""
    from tqdm import tqdm

    bar = tqdm(desc=unit, disable=quiet, delay=1.0)

    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return show
