"""What the WebUI takes a word of a prompt for, where training reads it as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules import extensions, paths, sd_hijack, sd_models, shared

_SYNTAX = re.compile(r"<[^<>]+:[^<>]*>|\bAND\b|\bBREAK\b|[()\[\]\\]")
"""Tags, parts of prompts, emphasis and schedules (extra_networks.py:175, prompt_parser.py:205 and 350)."""
_WILDCARD = re.compile(r"__([\w/-]+?)__")
_EMBEDDINGS = (".pt", ".bin", ".safetensors")


def meanings(trigger: str) -> list[tuple[str, str]]:
    """What the words of a trigger mean in prompts, see :meth:`~lora_trainer.hosts.base.Host.words`."""
    found = [("embedding", name) for name in _embeddings(trigger)]
    names = {word.strip().lower() for word in (trigger, *trigger.split(","))}
    found += [("style", name) for name in shared.prompt_styles.styles if name.lower() in names]
    found += [("wildcard", f"__{name}__") for name in _WILDCARD.findall(trigger) if _is_wildcard(name)]
    found += [("syntax", part) for part in _SYNTAX.findall(trigger)[:1]]
    if "#" in trigger and shared.opts.data.get("enable_prompt_comments", True):
        found.append(("syntax", "#"))
    return found


def _embeddings(trigger: str) -> Iterator[str]:
    """Those that take the place of tokens; the host looks for them wherever they stand (textual_inversion.py:248)."""
    tokenize = getattr(getattr(sd_models.model_data.sd_model, "cond_stage_model", None), "tokenize", None)
    if tokenize is None:
        return
    database = sd_hijack.model_hijack.embedding_db
    tokens = tokenize([trigger])[0]
    known = [database.find_embedding_at_position(tokens, place)[0] for place in range(len(tokens))]
    yield from dict.fromkeys(embedding.name for embedding in known if embedding is not None)
    for name in _new_embeddings(database):  # read when the next picture is drawn
        ids = tokenize([name])[0]
        if ids and any(tokens[place : place + len(ids)] == ids for place in range(len(tokens))):
            yield name


def _new_embeddings(database: Any) -> Iterator[str]:
    seen = {*database.word_embeddings, *database.skipped_embeddings}
    for folder in database.embedding_dirs.values():
        if not folder.has_changed():
            continue
        for _, _, files in os.walk(folder.path, followlinks=True):
            names = (Path(file) for file in files)
            yield from (path.stem for path in names if path.suffix.lower() in _EMBEDDINGS and path.stem not in seen)


def _is_wildcard(name: str) -> bool:
    """Whether an extension for wildcards has such a file; they keep them in a folder of this name."""
    roots = [Path(paths.data_path), *(Path(extension.path) for extension in extensions.active())]
    folders = [root / "wildcards" for root in roots]
    folders += [Path(own) for own in (shared.opts.data.get("wildcard_dir"),) if own]
    return any((folder / f"{name}.txt").is_file() for folder in folders)
