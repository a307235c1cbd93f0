"""What our parts share of the WebUI's built-in Lora extension, and the language that the WebUI is read in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from modules import extensions, paths, shared

from lora_trainer.core.errors import LoraTrainError
from lora_trainer.core.i18n import translator
from lora_trainer.model.block_lists import SD, SDXL, Architecture
from lora_trainer.network.blocks.presets import OWN_ELEMENTS, OWN_LISTS, Presets, load_presets


def data_folder() -> Path:
    """Where our runs, presets and caches are."""
    return Path(paths.data_path) / "lora-train"


def language() -> str:
    """``"zh"`` when the WebUI's localization is a Chinese one, else ``"en"``."""
    chosen = str(shared.opts.localization).lower()
    return "zh" if chosen.startswith(("zh", "chinese", "简", "繁")) else "en"


def sentence(error: LoraTrainError) -> str:
    """An error's sentence in the person's language."""
    return error.text(translator(language()))


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
