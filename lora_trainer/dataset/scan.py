"""Finding the pictures of a data set, and saying what is wrong with any that cannot be used."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lora_trainer.config import DataConfig
from lora_trainer.dataset import buckets
from lora_trainer.dataset.captions import base_caption, read_caption, tag_frequency
from lora_trainer.dataset.images import EXTENSIONS, PictureError, picture_size, read_picture
from lora_trainer.errors import InputError
from lora_trainer.paths import clean_path, exists, expand

_KOHYA_FOLDER = re.compile(r"(\d+)_(.*)")
MAX_REPEATS = 1000
_ENLARGED = 1.01
"""A picture that is scaled by more counts as enlarged; less is not seen."""


@dataclass(frozen=True)
class Item:
    """One picture that is trained on.

    Attributes:
        path: the file.
        concept: name of its folder.
        caption: its caption with the trigger word, before shuffling.
        repeats: how often it counts in an epoch.
        size: width and height in pixels as shown.
        fit: its bucket and crop.
    """

    path: Path
    concept: str
    caption: str
    repeats: int
    size: tuple[int, int]
    fit: buckets.Fit

    @property
    def key(self) -> str:
        """SHA-256 of the file's bytes."""
        return file_hash(self.path)


@dataclass
class Dataset:
    """What a folder holds: the items, and a sentence for each file that is left out."""

    folder: Path
    items: list[Item]
    problems: list[PictureError] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Pictures in an epoch, repeats counted."""
        return sum(item.repeats for item in self.items)

    def without(self, broken: dict[Path, PictureError]) -> Dataset:
        """The data set without pictures that turned out to be unreadable."""
        kept = [item for item in self.items if item.path not in broken]
        problems = [*self.problems, *broken.values()]
        return Dataset(self.folder, kept, problems, self.uncaptioned, self.ignored)

    def only(self, items: Iterable[Item]) -> Dataset:
        """The data set with these of its items."""
        kept = set(items)
        return replace(self, items=[item for item in self.items if item in kept])

    def enlarged(self) -> list[Item]:
        """Items that are smaller than their bucket, those that are enlarged most first."""
        small = [item for item in self.items if item.fit.scale > _ENLARGED]
        return sorted(small, key=lambda item: -item.fit.scale)

    def concepts(self) -> dict[str, list[Item]]:
        """Items by folder name, in order."""
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(item.concept, []).append(item)
        return groups

    def tag_frequency(self, separator: str = ",") -> dict[str, dict[str, int]]:
        """Tag counts of each folder, as ``ss_tag_frequency`` has them."""
        return {name: tag_frequency((i.caption for i in group), separator) for name, group in self.concepts().items()}

    def report(self) -> dict[str, Any]:
        """Everything a person wants to check before training, as plain values."""
        counts = buckets.bucket_counts((item.fit, item.repeats) for item in self.items)
        return {
            "folder": str(self.folder),
            "pictures": len(self.items),
            "images_per_epoch": self.images,
            "skipped": [str(problem) for problem in self.problems],
            "without_caption": [str(path) for path in self.uncaptioned],
            "outside_numbered_folders": [str(path) for path in self.ignored],
            "enlarged": [str(item.path) for item in self.enlarged()],
            "concepts": {
                name: {"pictures": len(group), "repeats": group[0].repeats} for name, group in self.concepts().items()
            },
            "buckets": {f"{w}x{h}": count for (w, h), count in counts.items()},
            "items": [
                {
                    "path": str(item.path),
                    "caption": item.caption,
                    "repeats": item.repeats,
                    "size": list(item.size),
                    "bucket": list(item.fit.bucket),
                    "scale": round(item.fit.scale, 4),
                    "crop": [round(v, 1) for v in item.fit.crop],
                    "cropped_away": round(item.fit.lost, 4),
                }
                for item in self.items
            ],
        }


def scan(data: DataConfig, check: Callable[[Path], object] = picture_size) -> Dataset:
    """Find the pictures of ``data.folder``: kohya folders (``10_name``) when there are any, else the folder itself.

    Args:
        data: the folder and how its pictures are to be used.
        check: called with every picture; :func:`read_picture` finds damaged ones too, but reads everything.

    Raises:
        InputError: no folder, no pictures, none readable, or none with a caption.
    """
    root = _folder(data)
    concepts = list(_concepts(root, data))
    folders = [folder for folder, *_ in concepts]
    dataset = Dataset(root, [], ignored=[p for p in _pictures(root) if not any(f in p.parents for f in folders)])
    sizes = buckets.bucket_sizes(data)
    for folder, concept, repeats, class_tokens in concepts:
        for path in _pictures(folder):
            try:
                checked = check(path)
                size = checked.size if isinstance(checked, Image.Image) else picture_size(path)
            except PictureError as problem:
                dataset.problems.append(problem)
                continue
            caption = read_caption(path)
            if not caption:
                dataset.uncaptioned.append(path)
            text = base_caption(caption or class_tokens, data)
            dataset.items.append(Item(path, concept, text, repeats, size, buckets.fit(size[0], size[1], data, sizes)))
    _require_usable(dataset, data)
    return dataset


def check_dataset(data: DataConfig) -> Dataset:
    """As :func:`scan`, decoding every picture."""
    return scan(data, check=read_picture)


def _folder(data: DataConfig) -> Path:
    text = clean_path(data.folder)
    if not text:
        raise InputError("data.folder: choose the folder that holds your pictures.", field="data.folder")
    root = next((path for path in _readings(text) if exists(path)), None)
    if root is None:
        raise InputError("data.folder: {folder} does not exist; check the path.", field="data.folder", folder=text)
    if not root.is_dir():
        raise InputError(
            "data.folder: {folder} is a file; give the folder that holds the pictures.",
            field="data.folder",
            folder=root,
        )
    return root


def _readings(text: str) -> Iterator[Path]:
    """A path as it stands, then with ``~`` and ``$NAME`` filled in."""
    yield Path(text)
    yield expand(os.path.expandvars(text))


def _concepts(root: Path, data: DataConfig) -> Iterator[tuple[Path, str, int, str]]:
    """Folder, name, repeats and class tokens of each concept."""
    kohya = [
        (folder, folder.name, min(int(match[1]), MAX_REPEATS), match[2].strip())
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        if (match := _KOHYA_FOLDER.fullmatch(folder.name))
    ]
    if kohya:
        yield from (concept for concept in kohya if concept[2] > 0)
    elif match := _KOHYA_FOLDER.fullmatch(root.name):  # one kohya folder was given instead of its parent
        yield root, root.name, max(1, min(int(match[1]), MAX_REPEATS)), match[2].strip()
    else:
        yield root, root.name, data.repeats, ""


def _pictures(folder: Path) -> list[Path]:
    """Pictures in ``folder`` and below, by name; hidden files and folders are left out."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(base, n) for n in names if Path(n).suffix.lower() in EXTENSIONS and not n.startswith(".")]
    return sorted(found)


def _require_usable(dataset: Dataset, data: DataConfig) -> None:
    if not dataset.items and dataset.problems:
        raise InputError(
            "data.folder: none of the {count} pictures in {folder} can be read; the first: {first}",
            field="data.folder",
            count=len(dataset.problems),
            folder=dataset.folder,
            first=dataset.problems[0],
        )
    if not dataset.items and dataset.ignored:
        raise InputError(
            "data.folder: the numbered folders in {folder} hold no pictures to use; fill them or rename them.",
            field="data.folder",
            folder=dataset.folder,
        )
    if not dataset.items:
        raise InputError(
            "data.folder: there are no pictures in {folder}; put PNG, JPEG or WebP files there.",
            field="data.folder",
            folder=dataset.folder,
        )
    if not any(item.caption for item in dataset.items):
        raise InputError(
            "data.folder: no picture in {folder} has a caption; add .txt files beside them or set a trigger word.",
            field="data.folder",
            folder=dataset.folder,
        )


def duplicates(items: list[Item]) -> list[list[Path]]:
    """Groups of files with the same bytes."""
    keys = {item.path: item.key for item in items}
    repeated = [key for key, count in Counter(keys.values()).items() if count > 1]
    return [[path for path, k in keys.items() if k == key] for key in repeated]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
