"""Finding the pictures of a data set, and saying what is wrong with any that cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lora_trainer.config.train import DataConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.files import file_hash
from lora_trainer.core.paths import clean_path, exists, expand
from lora_trainer.core.reach import reach_problem
from lora_trainer.dataset import buckets
from lora_trainer.dataset.captions import CaptionFile, base_caption, caption_path, read_captions, tag_frequency
from lora_trainer.dataset.images import PictureError, picture_size, read_picture
from lora_trainer.dataset.listing import NAMED, Listing, Remark, list_folder, remark

_KOHYA_FOLDER = re.compile(r"(\d+)_(.*)")
_LIKE_KOHYA = re.compile(r"[\W_]*(x?)\s*(\d+)(?:[.,]\d+)?(?:\s*[x×](?![^\W_]))?([^\W\d_])?.*", re.IGNORECASE)
"""A name that begins with a number, as kohya's do, but in another spelling."""
MAX_REPEATS = 1000
_MANY_REPEATS = 100
"""From here on a number is more often a year or a size than a wish."""
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
    """What a folder holds: the items, and sentences for what is left out or was read by guessing."""

    folder: Path
    items: list[Item]
    problems: list[PictureError] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Pictures in an epoch, repeats counted."""
        return sum(item.repeats for item in self.items)

    def without(self, broken: dict[Path, PictureError]) -> Dataset:
        """The data set without pictures that turned out to be unreadable."""
        kept = [item for item in self.items if item.path not in broken]
        problems = [*self.problems, *broken.values()]
        return replace(self, items=kept, problems=problems)

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
            "remarks": [{"sentence": str(r.message), "paths": [str(path) for path in r.paths]} for r in self.remarks],
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
    listing = list_folder(root, followed=lambda link: _KOHYA_FOLDER.fullmatch(link.name) is not None)
    concepts = _concepts(listing, data)
    dataset = Dataset(root, [], remarks=[*listing.remarks(), *_about_repeats(listing, concepts)])
    found = [(concept, path) for concept in concepts for path in listing.pictures if concept.folder in path.parents]
    used = {path for _, path in found}
    dataset.ignored = [path for path in listing.pictures if path not in used]
    captions = _captions([path for _, path in found], dataset)
    sizes = buckets.bucket_sizes(data)
    for concept, path in found:
        try:
            checked = check(path)
            size = checked.size if isinstance(checked, Image.Image) else picture_size(path)
        except PictureError as problem:
            dataset.problems.append(problem)
            continue
        caption = captions.get(path, "")
        if not caption:
            dataset.uncaptioned.append(path)
        text = base_caption(caption or concept.class_tokens, data)
        fit = buckets.fit(size[0], size[1], data, sizes)
        dataset.items.append(Item(path, concept.name, text, concept.repeats, size, fit))
    _require_usable(dataset, data, listing)
    return dataset


def _captions(pictures: list[Path], dataset: Dataset) -> dict[Path, str]:
    """The captions of pictures; what was guessed of them goes to the remarks."""
    beside = {path: caption for path in pictures if (caption := caption_path(path)) is not None}
    files = {file.path: file for file in read_captions(sorted(set(beside.values())))}
    dataset.remarks += _about_captions(list(files.values()), dataset.folder)
    return {path: files[caption].text for path, caption in beside.items()}


def _about_captions(files: list[CaptionFile], root: Path) -> Iterator[Remark]:
    guessed: dict[str, list[Path]] = {}
    for file in files:
        if file.decoded.guessed and file.decoded.encoding != "utf-8":
            guessed.setdefault(file.decoded.encoding, []).append(file.path)
    for encoding, paths in guessed.items():
        yield remark(
            "Captions that are not UTF-8, read as {encoding} by guessing ({count}): {names}. Look at their words, or "
            "save them as UTF-8.",
            paths,
            root,
            encoding=encoding,
        )
    if damaged := [file.path for file in files if file.decoded.damaged]:
        yield remark(
            "Captions with damaged bytes, shown as � ({count}): {names}. Write these words anew.", damaged, root
        )
    for file in files:
        if file.error:
            yield remark("The caption {names} cannot be read: {error}.", [file.path], root, error=file.error)


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
    """A path as it stands, then with ``~`` and ``$NAME`` filled in, which may name another computer."""
    filled = os.path.expandvars(text)
    if not reach_problem(text):
        yield Path(text)
    if not reach_problem(filled):
        yield expand(filled)


@dataclass(frozen=True)
class _Concept:
    """A folder of pictures that count alike; ``number`` is what its name says, before it is bounded."""

    folder: Path
    repeats: int
    class_tokens: str = ""
    number: int | None = None

    @property
    def name(self) -> str:
        return self.folder.name


def _numbered(folder: Path, least: int = 0) -> _Concept | None:
    """A folder as kohya's scripts read its name: repeats, then the words of pictures without a caption."""
    match = _KOHYA_FOLDER.fullmatch(folder.name)
    if match is None:
        return None
    number = int(match[1])
    return _Concept(folder, max(least, min(number, MAX_REPEATS)), match[2].strip(), number)


def _concepts(listing: Listing, data: DataConfig) -> list[_Concept]:
    """The numbered folders right in the root, else the root itself, which may be one of them."""
    root = listing.root
    kohya = [concept for folder in sorted(_children(listing)) if (concept := _numbered(folder)) is not None]
    if kohya:
        return [concept for concept in kohya if concept.repeats]
    return [_numbered(root, least=1) or _Concept(root, data.repeats)]


def _children(listing: Listing) -> list[Path]:
    return [folder for folder in listing.folders if folder.parent == listing.root and folder != listing.root]


def _about_repeats(listing: Listing, concepts: list[_Concept]) -> Iterator[Remark]:
    """What folder names were read as repeats where that may surprise, and what looks as if it were meant as such."""
    root, holding = listing.root, listing.holding()
    for concept in concepts:
        if concept.number is not None and (concept.folder == root or concept.number >= _MANY_REPEATS):
            yield remark(
                "The name {names} is read as {number} repeats: each picture in it counts {repeats}× in an epoch (at "
                "most {most}×). Rename the folder if the number means something else.",
                [concept.folder],
                root,
                number=concept.number,
                repeats=concept.repeats,
                most=MAX_REPEATS,
            )
    off = [f for f in _children(listing) if f in holding and (c := _numbered(f)) is not None and not c.number]
    if off:
        yield remark("{names}: 0 repeats, so what is in there is not used.", off, root)
    taken = {concept.folder for concept in concepts}
    others = [folder for folder in listing.folders if folder in holding and folder not in {*taken, *off, root}]
    if deeper := [folder for folder in others if _numbered(folder) is not None]:
        yield remark(
            "{names}: the number is not read as repeats, since only folders right in the chosen one are looked at. "
            "Choose the folder in which they lie.",
            deeper,
            root,
        )
    if alike := [folder for folder in (*others, *taken) if _is_alike(folder.name)]:
        yield remark(
            "{names}: the number is not read as repeats, since only names such as 10_name are. Rename the folders if "
            "it is meant as such.",
            alike,
            root,
        )


def _is_alike(name: str) -> bool:
    """Whether a name looks as if its number were meant as repeats; 1girl, 3d, 512x768 and dates do not."""
    match = _LIKE_KOHYA.fullmatch(name)
    if match is None or _KOHYA_FOLDER.fullmatch(name) or re.match(r"\d+\s*[x×]\s*\d", name, re.IGNORECASE):
        return False
    return (3 if match[1] or match[3] else 0) < int(match[2]) <= MAX_REPEATS


def _require_usable(dataset: Dataset, data: DataConfig, listing: Listing) -> None:
    if not dataset.items and dataset.problems:
        raise InputError(
            "data.folder: none of the {count} pictures in {folder} can be read; the first: {first}",
            field="data.folder",
            count=len(dataset.problems),
            folder=dataset.folder,
            first=dataset.problems[0],
        )
    numbered = [concept for folder in _children(listing) if (concept := _numbered(folder)) is not None]
    if not dataset.items and numbered and not any(concept.repeats for concept in numbered):
        raise InputError(
            "data.folder: all numbered folders in {folder} say 0 repeats ({names}), so nothing is learned; rename "
            "them, for example to 10_name.",
            field="data.folder",
            folder=dataset.folder,
            names=", ".join(concept.name for concept in numbered[:NAMED]),
        )
    if not dataset.items and dataset.ignored:
        raise InputError(
            "data.folder: the numbered folders in {folder} hold no pictures to use; fill them or rename them.",
            field="data.folder",
            folder=dataset.folder,
        )
    if not dataset.items and (left_out := next(listing.remarks(), None)):
        raise InputError(
            "data.folder: there is no picture in {folder} that can be used. {first}",
            field="data.folder",
            folder=dataset.folder,
            first=left_out.message,
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
