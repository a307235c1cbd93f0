"""Every file of a picture folder, sorted by what becomes of it; nothing is left out without being named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.core.messages import Message
from lora_trainer.dataset.captions import CAPTION_EXTENSIONS, caption_path
from lora_trainer.dataset.images import EXTENSIONS

NAMED = 10
"""Files that a remark's sentence names; the others are in its paths."""
PICTURE_KINDS = {
    *(".heic", ".heif", ".hif", ".heics", ".avifs", ".jxl", ".jxr", ".wdp", ".jpx", ".j2k", ".j2c", ".jpf", ".jpm"),
    *(".psd", ".psb", ".xcf", ".kra", ".ora", ".clip", ".procreate", ".sai", ".sai2", ".afphoto", ".afdesign", ".mdp"),
    *(".svg", ".svgz", ".eps", ".ai", ".ps", ".pdf", ".cdr", ".wmf", ".emf", ".ico", ".cur", ".icns", ".dds", ".ktx"),
    *(".exr", ".hdr", ".pcx", ".sgi", ".rgb", ".rgba", ".qoi", ".flif", ".bpg", ".webp2", ".pfm", ".xpm", ".xbm"),
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef"),
    *(".srw", ".x3f", ".3fr", ".fff", ".iiq", ".mrw", ".kdc", ".dcr", ".erf", ".gpr", ".livp"),
}
"""Pictures that other programs make and that are not read here."""
_SIDE_FILES = {
    *(".npz", ".npy", ".safetensors", ".pt", ".ckpt", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv", ".md"),
    *(".db", ".ini", ".xmp", ".aae", ".log", ".lnk", ".url", ".py", ".sh", ".bat", ".cache", ".sqlite", ".parquet"),
}
"""What trainers, taggers and systems put beside pictures: caches, tables, settings, notes."""
_TABLE = re.compile(r"(metadata|meta_(cap|clean|lat)|captions?)\.(json|csv|tsv|parquet)|.*\.jsonl", re.IGNORECASE)
"""What holds the captions of a whole folder elsewhere."""
_SIDE_NAMES = {"readme", "readme.txt", "license", "license.txt", "thumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
_HIDDEN_CACHES = {".thumbnails", ".thumbs", ".ipynb_checkpoints", ".git", ".cache", ".trash", ".trashes", ".spotlight"}
_REGULARIZATION = {
    *("reg", "regs", "reg_images", "reg_data", "reg_data_dir", "regularization", "regularisation"),
    *("regularization_images", "regularisation_images", "class_images"),
}
_SAMPLES = {"sample", "samples"}
_LEFT_OUT = {
    "unread": "Left out, since pictures of this kind are not read ({count}): {names}. Save them as PNG or JPEG.",
    "hidden": "Left out, since hidden or in a hidden folder ({count}): {names}. Rename what is to be learned.",
    "links": (
        "Left out with what is in them, since links to folders are not followed ({count}): {names}. Give the folder "
        "itself, or copy it here."
    ),
    "regularization": (
        "Left out, since in a folder for regularization pictures ({count}): {names}. Rename the folder if they are to "
        "be learned."
    ),
    "samples": (
        "Left out, since in a folder of samples without captions, as trainings draw them ({count}): {names}. Rename "
        "the folder if they are to be learned."
    ),
    "tables": (
        "Captions are not read from files such as these ({count}): {names}. Write each into a .txt file beside its "
        "picture."
    ),
    "second": "Captions that are not used, since their picture has another one ({count}): {names}.",
    "others": "Files that are not used ({count}): {names}.",
    "captions": "Captions without a picture beside them ({count}): {names}.",
}


@dataclass(frozen=True)
class Remark:
    """What a person should know about a folder, and the files that it is about."""

    message: Message
    paths: tuple[Path, ...] = ()


@dataclass
class Listing:
    """What lies in a folder and below.

    Attributes:
        root: the folder.
        pictures: files that are to be read, by path.
        captions: text files.
        folders: all folders that were gone into, the root first.
        unread: pictures of kinds that are not read.
        others: files that are neither pictures nor what usually lies beside them.
        tables: lists with the captions of many pictures, as of Hugging Face's data sets and kohya's scripts.
        hidden: pictures that are hidden, or in hidden folders.
        links: folders that are links, which are not followed.
        regularization: pictures in kohya's folders of regularization pictures.
        samples: pictures that a training has drawn.
        closed: folders that cannot be read, and why.
    """

    root: Path
    pictures: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    regularization: list[Path] = field(default_factory=list)
    samples: list[Path] = field(default_factory=list)
    closed: list[tuple[Path, str]] = field(default_factory=list)

    def remarks(self) -> Iterator[Remark]:
        """A sentence for each group of files that is left out."""
        groups = {
            "unread": self.unread,
            "hidden": self.hidden,
            "links": self.links,
            "regularization": self.regularization,
            "samples": self.samples,
            "others": self.others,
            "tables": self.tables,
            "second": self._second(),
            "captions": self._alone(),
        }
        for kind, paths in groups.items():
            if paths:
                yield remark(_LEFT_OUT[kind], paths, self.root)
        for folder, error in self.closed:
            values = {"name": _name(folder, self.root), "error": error}
            said = Message("The folder {name} cannot be read ({error}), so what is in it is left out.", values)
            yield Remark(said, (folder,))

    def holding(self) -> set[Path]:
        """Folders with pictures in them or below."""
        return {parent for picture in self.pictures for parent in picture.parents}

    def _second(self) -> list[Path]:
        """Captions beside a picture that has another one, which is taken."""
        listed = set(self.captions)  # thousands of pictures would be eight questions each to the file system
        used = {caption_path(picture, listed.__contains__) for picture in self.pictures}
        beside = {path.with_suffix("") for path in self.pictures} | set(self.pictures)
        return [path for path in self.captions if path not in used and path.with_suffix("") in beside]

    def _alone(self) -> list[Path]:
        """Captions without a picture, of whatever kind."""
        pictures = [*self.pictures, *self.unread, *self.regularization, *self.samples, *self.others]
        beside = {path.with_suffix("") for path in pictures} | set(pictures)
        return [path for path in self.captions if path.with_suffix("") not in beside]


def remark(template: str, paths: Iterable[Path], root: Path, **values: Any) -> Remark:
    """A remark on files; their count and names are among the values."""
    paths = tuple(paths)
    return Remark(Message(template, {"count": len(paths), "names": _names(paths, root), **values}), paths)


def _names(paths: tuple[Path, ...], root: Path) -> str:
    shown = ", ".join(_name(path, root) for path in paths[:NAMED])
    return shown + (", …" if len(paths) > NAMED else "")


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root and root in path.parents else path.name or str(path)


def list_folder(root: Path, followed: Callable[[Path], bool] = lambda link: False) -> Listing:
    """Go through a folder.

    Args:
        root: the folder.
        followed: whether a folder that is a link, right in the root, is gone into.
    """
    listing = Listing(root)
    _go_through(root, root, listing, followed)
    for kind in (listing.pictures, listing.captions, listing.unread, listing.others, listing.hidden):
        kind.sort()
    return listing


def _go_through(top: Path, root: Path, listing: Listing, followed: Callable[[Path], bool]) -> None:
    def fail(error: OSError) -> None:
        listing.closed.append((Path(error.filename or top), error.strerror or str(error)))

    for base, folders, names in os.walk(top, onerror=fail):
        here = Path(base)
        listing.folders.append(here)
        folders[:] = sorted(name for name in folders if name.lower() not in _SYSTEM_FOLDERS | _HIDDEN_CACHES)
        links = [here / name for name in folders if _is_link(here / name) and not name.startswith(".")]
        folders[:] = [name for name in folders if not _is_link(here / name)]  # Python 3.11 would follow junctions
        listing.links += [path for path in links if not (here == root and followed(path))]
        for path in links:
            if here == root and followed(path):
                _go_through(path, root, listing, lambda link: False)
        _sort_files(here, sorted(names), root, listing)


def _is_link(folder: Path) -> bool:
    is_junction = getattr(os.path, "isjunction", lambda path: False)  # a link of Windows; asked from Python 3.12 on
    return folder.is_symlink() or is_junction(folder)


def _sort_files(folder: Path, names: list[str], root: Path, listing: Listing) -> None:
    within = [part.lower() for part in folder.relative_to(root).parts]
    hidden = any(part.startswith(".") for part in within)
    pictures = listing.pictures
    if hidden:
        pictures = listing.hidden
    elif _REGULARIZATION & set(within):
        pictures = listing.regularization
    elif _SAMPLES & set(within) and not any(_is_caption(name) for name in names):
        pictures = listing.samples
    for name in names:
        path, suffix = folder / name, Path(name).suffix.lower()
        if name.startswith("._") or name.lower() in _SIDE_NAMES:  # a system's own
            continue
        if suffix in EXTENSIONS:
            _add_picture(path, listing.hidden if name.startswith(".") else pictures, listing)
        elif hidden or name.startswith("."):
            continue
        elif _is_caption(name):
            listing.captions.append(path)
        elif suffix in PICTURE_KINDS:
            listing.unread.append(path)
        elif _TABLE.fullmatch(name):
            listing.tables.append(path)
        elif suffix not in _SIDE_FILES:
            listing.others.append(path)


def _add_picture(path: Path, pictures: list[Path], listing: Listing) -> None:
    """A pipe or a device named like a picture would be waited for without end; a dead link is told as unreadable."""
    (pictures if path.is_file() or path.is_symlink() else listing.others).append(path)


def _is_caption(name: str) -> bool:
    return Path(name).suffix.lower() in CAPTION_EXTENSIONS
