"""Caption files, and what is made of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.config.train import DataConfig
from lora_trainer.dataset.encodings import Decoded, decode_all

CAPTION_EXTENSIONS = (".txt", ".caption")
_SPELLINGS = (".txt", ".TXT", ".caption", ".CAPTION")
MAX_CAPTION_BYTES = 100_000
_COMMAS = ",，、﹐﹑､،"
_TAG_ENDS = re.compile(f"[{_COMMAS}\n]")
_COMMA = re.compile(f"[{_COMMAS}]")
_WIDE_STOP = re.compile("[。！？]")
_LAST_STOP = re.compile(r"[^\W\d_][.]\s*$")


@dataclass(frozen=True)
class CaptionFile:
    """A caption beside a picture.

    Attributes:
        path: its file.
        text: its lines, trimmed; ``""`` when it cannot be read.
        decoded: the whole of it and its encoding.
        error: why it cannot be read, or ``""``.
    """

    path: Path
    text: str
    decoded: Decoded
    error: str = ""


def caption_path(picture: Path, is_there: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The caption file of a picture: ``a.txt`` or ``a.png.txt``, then ``.caption``; ``None`` when there is none.

    Args:
        picture: its path.
        is_there: asks for a file; another question than the file system's where the files are listed already.
    """
    for extension in _SPELLINGS:
        for path in (picture.with_suffix(extension), picture.with_name(picture.name + extension)):
            if is_there(path):
                return path
    return None


def read_captions(paths: Sequence[Path]) -> list[CaptionFile]:
    """The caption files of one folder, read together: an encoding that has to be guessed is guessed for all of them."""
    raws: list[bytes] = []
    errors: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                raws.append(file.read(MAX_CAPTION_BYTES))
            errors.append("")
        except OSError as error:
            raws.append(b"")
            errors.append(str(error.strerror or error))
    found = zip(paths, decode_all(raws), errors, strict=True)
    return [CaptionFile(path, _lines(decoded.text), decoded, error) for path, decoded, error in found]


def _lines(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, trimmed, without empty ones.

    Where the separator is the usual comma, those of Chinese, Japanese and Arabic and the ends of lines separate too,
    but not within sentences: a caption with 。！ or ？ is split at ASCII commas alone, and the lines of one that ends
    with a full stop are one text.
    """
    if separator.strip() == ",":
        parts = _ends_of_tags(caption).split(caption)
    else:
        parts = caption.split(separator) if separator.strip() else [caption]
    return [" ".join(tag.split()) for tag in parts if tag.strip()]


def _ends_of_tags(caption: str) -> re.Pattern[str]:
    if _WIDE_STOP.search(caption):
        return re.compile(",")
    return _COMMA if _LAST_STOP.search(caption) else _TAG_ENDS


def base_caption(caption: str, data: DataConfig) -> str:
    """The caption with the trigger (a tag, or several) in front, once."""
    triggers = split_tags(data.trigger, data.separator)
    if data.separator.strip() == ",":
        caption = _without_leading(triggers, caption)
    known = {trigger.lower() for trigger in triggers}
    tags = [tag for tag in split_tags(caption, data.separator) if tag.lower() not in known]
    return join_tags([*triggers, *tags], data.separator)


def _without_leading(triggers: list[str], caption: str) -> str:
    """The caption without triggers at its start, which any comma may separate from a sentence."""
    known = "|".join(re.escape(trigger) for trigger in sorted(triggers, key=len, reverse=True))
    return re.sub(rf"^(?:\s*(?:{known})\s*[{_COMMAS}\n])+", "", caption, flags=re.IGNORECASE) if known else caption


def join_tags(tags: list[str], separator: str) -> str:
    """Tags as one text; a comma is written with a space behind it."""
    return f"{separator.strip()} ".join(tags)


def shuffled(caption: str, data: DataConfig, rng: random.Random) -> str:
    """The caption with the tags after the kept ones in a random order."""
    if not data.shuffle:
        return caption
    tags = split_tags(caption, data.separator)
    keep = max(data.keep_tokens, len(split_tags(data.trigger, data.separator)))
    rest = tags[keep:]
    rng.shuffle(rest)
    return join_tags(tags[:keep] + rest, data.separator)


def tag_frequency(captions: Iterable[str], separator: str = ",") -> dict[str, int]:
    """How often each tag occurs, most frequent first (``ss_tag_frequency`` of one folder)."""
    counts = Counter(tag for caption in captions for tag in split_tags(caption, separator))
    return dict(counts.most_common())
