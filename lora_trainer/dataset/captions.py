"""Caption files, and what is made of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.config import DataConfig

CAPTION_EXTENSIONS = (".txt", ".caption")
MAX_CAPTION_BYTES = 100_000
_HALF_WIDTH_KANA = re.compile("[\uff61-\uff9f]")


def read_caption(picture: Path) -> str | None:
    """The text beside ``picture`` (``.txt`` or ``.caption``) as one line, or ``None`` when there is none.

    UTF-8 with or without a BOM, UTF-16 with one, else the encodings of Chinese and Japanese Windows.
    """
    for extension in CAPTION_EXTENSIONS:
        for path in (picture.with_suffix(extension), picture.with_name(picture.name + extension)):
            if path.is_file():
                with path.open("rb") as file:
                    return " ".join(decode(file.read(MAX_CAPTION_BYTES)).split())
    return None


def decode(raw: bytes) -> str:
    """Text of an unknown encoding; undecodable bytes become �."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    japanese = _decoded(raw, "cp932")
    if japanese is not None and _HALF_WIDTH_KANA.search(japanese):  # what Chinese bytes look like there
        japanese = None
    for text in (_decoded(raw, "utf-8-sig"), japanese, _decoded(raw, "gb18030"), _decoded(raw, "cp932")):
        if text is not None:
            return text
    return raw.decode("utf-8", errors="replace")


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, trimmed, without empty ones."""
    parts = caption.split(separator) if separator.strip() else [caption]
    return [tag.strip() for tag in parts if tag.strip()]


def base_caption(caption: str, data: DataConfig) -> str:
    """The caption with the trigger (a tag, or several) in front, once."""
    triggers = split_tags(data.trigger, data.separator)
    known = {trigger.lower() for trigger in triggers}
    tags = [tag for tag in split_tags(caption, data.separator) if tag.lower() not in known]
    return join_tags([*triggers, *tags], data.separator)


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
