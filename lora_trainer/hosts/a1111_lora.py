"""What our parts share of the WebUI's built-in Lora extension, and the language that the WebUI is read in."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from modules import extensions, paths, shared

from lora_trainer.errors import InputError, LoraTrainError
from lora_trainer.i18n import error_sentence, translator
from lora_trainer.network.block_presets import OWN_ELEMENTS, OWN_LISTS, Presets, load_presets
from lora_trainer.network.blocks import SD, SDXL, Architecture


def lora_networks() -> Any:
    """The built-in Lora extension's ``networks`` module; ``None`` when the extension is off."""
    module = sys.modules.get("networks")
    return module if hasattr(module, "network_apply_weights") else None


def data_folder() -> Path:
    """Where our runs, presets and caches are."""
    return Path(paths.data_path) / "lora-train"


def language() -> str:
    """``"zh"`` when the WebUI's localization is a Chinese one, else ``"en"``."""
    chosen = str(shared.opts.localization).lower()
    return "zh" if chosen.startswith(("zh", "chinese", "简", "繁")) else "en"


def sentence(error: LoraTrainError) -> str:
    """An error's sentence in the person's language."""
    return error_sentence(error, translator(language()))


def architecture() -> Architecture | None:
    """The blocks of the loaded checkpoint; ``None`` for kinds without blocks that are known here."""
    model = shared.sd_model
    if getattr(model, "is_sdxl", False):
        return SDXL
    return SD if getattr(model, "is_sd1", False) or getattr(model, "is_sd2", False) else None


def person_presets() -> Presets:
    """The shipped block presets with the person's own: those in ``lora-train/presets``, else those that the extension
    sd-webui-lora-block-weight keeps, also when it is switched off.

    Raises:
        InputError: a file cannot be read.
    """
    return _presets(*(_stamped(name) for name in (OWN_LISTS, OWN_ELEMENTS)))


def reachable(name: str, path: Path | None = None) -> str:
    """The name, when a prompt with it loads the file of that name (and not one with it as its alias).

    Args:
        name: of a file, without folder and extension.
        path: the file that is meant; any when ``None``.

    Raises:
        InputError: there is no such file, or another one of that name hides it.
    """
    networks = lora_networks()
    if networks is None:
        raise InputError("The WebUI's Lora extension is switched off; switch it on to use LoRA files.")
    if not _is_known(networks, name, path):
        networks.update_available_networks_by_names([name])  # also when only an alias was known
    known = networks.available_networks.get(name)
    if known is None or not Path(known.filename).is_file():
        raise InputError("There is no LoRA file named {name}; names of files count, not aliases.", name=name[:200])
    if path is not None and not Path(known.filename).samefile(path):
        raise InputError(
            "{path} cannot be used in a prompt: {other} has the same name; rename one of them.",
            path=path,
            other=known.filename,
        )
    return name


def _is_known(networks: Any, name: str, path: Path | None) -> bool:
    """Does the host load this very file for the name (networks.py:315)?"""
    known = networks.available_networks.get(name)
    forbidden = name.lower() in networks.forbidden_network_aliases
    if known is None or not (forbidden or networks.available_network_aliases.get(name) is known):
        return False
    return Path(known.filename).is_file() and (path is None or Path(known.filename) == path)


def _stamped(name: str) -> tuple[Path, int] | None:
    """The first file of that name with its time, so that a change is read and nothing else."""
    theirs = [Path(extension.path) / "scripts" for extension in extensions.extensions]
    for folder in (data_folder() / "presets", *theirs):
        try:
            return folder / name, (folder / name).stat().st_mtime_ns
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def _presets(lists: tuple[Path, int] | None, elements: tuple[Path, int] | None) -> Presets:
    return load_presets(lists[0] if lists else None, elements[0] if elements else None)
