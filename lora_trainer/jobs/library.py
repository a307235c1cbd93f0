"""Which files people may read and write through a page or REST: those of the LoRA folder, and what the host allows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lora_trainer.config.schema import field_error
from lora_trainer.config.train import name_problem
from lora_trainer.core.errors import NotFound, concerning
from lora_trainer.core.paths import clean_path, expand, free_name
from lora_trainer.core.reach import reach_problem
from lora_trainer.hosts.base import Host

if TYPE_CHECKING:
    from lora_trainer.model.block_lists import Architecture

SUFFIX = ".safetensors"


def require_local(field: str, name: str) -> None:
    """Nothing outside of this computer is asked for a file, and no file call is made here (core/reach).

    Raises:
        InputError: a network path, an address or a device.
    """
    if problem := reach_problem(name):
        raise field_error(field, problem, text=name[:200])


def require_readable(host: Host, field: str, name: str) -> None:
    """Whoever reaches a public WebUI may not look around on its disk.

    Raises:
        InputError: ``name`` is a path that the host does not let others read, or one of a network or device.
    """
    require_local(field, name)
    allowed = host.readable
    if not name or allowed is None:
        return
    path = expand(name).resolve()
    if not any(folder.resolve() in (path, *path.parents) for folder in allowed):
        raise field_error(
            field,
            "{place} may not be read by a WebUI that others can reach; put it below {folder}, or start the WebUI "
            "with --enable-insecure-extension-access.",
            place=path,
            folder=allowed[0],
        )


class LoraFolder:
    """A host's LoRA files by name: the path below the LoRA folder with ``/`` and without the extension.

    Args:
        host: whose folder it is.
    """

    SUFFIXES = (SUFFIX, ".pt", ".ckpt")
    """Of all files that the WebUI takes for LoRAs; ours read and write the first kind only."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def root(self) -> Path:
        """The folder."""
        return self._host.folders.loras

    def names(self) -> list[str]:
        """All LoRA files in it and its subfolders, linked ones too, as the WebUI finds them."""
        found = (path.relative_to(self.root).with_suffix("").as_posix() for path in _walk(self.root))
        return sorted(found, key=str.lower)

    def all_files(self) -> Iterator[Path]:
        """All LoRA files that a prompt may mean, of every kind."""
        yield from _walk(self.root, self.SUFFIXES)

    def entries(self) -> list[dict[str, Any]]:
        """The same with path and size in bytes, ready for JSON."""
        found = []
        for name in self.names():
            path = self.root / f"{name}{SUFFIX}"
            with suppress(OSError):  # deleted just now
                found.append({"name": name, "path": str(path), "bytes": path.stat().st_size})
        return found

    def find(self, name: str, field: str = "file", *, outside: bool = False) -> Path:
        """The file of a name: below the folder, or only the last part of it where no other file has the same.

        Args:
            name: with or without the extension.
            field: which the sentence is about.
            outside: a path to somewhere else is allowed too, where the host lets people read.

        Raises:
            NotFound: there is no such file.
            InputError: several are meant, or it may not be read.
        """
        name = clean_path(name)
        if not name:
            raise field_error(field, "choose a LoRA file.")
        require_local(field, name)
        wanted = name.replace("\\", "/")
        path = PurePosixPath(wanted)
        if not path.is_absolute() and ".." not in path.parts and ":" not in wanted:
            here = self._within(wanted)
            if here is not None:
                return here
            known = [each for each in self.names() if PurePosixPath(each).name == _without_suffix(wanted)]
            if len(known) > 1:
                raise field_error(
                    field,
                    "several files are called {name}: {known}; name the folder.",
                    name=wanted,
                    known=", ".join(known),
                )
            if known:
                return self.root / f"{known[0]}{SUFFIX}"
        if outside:
            require_readable(self._host, field, name)
            elsewhere = expand(name)
            if _is_file(elsewhere):
                return elsewhere
        raise NotFound(
            "{path}: there is no LoRA file {name} in {folder}.",
            field=field,
            path=field,
            name=name[:200],
            folder=self.root,
        )

    def new(self, name: str, default: Path, awaited: Iterable[str] = (), field: str = "output") -> Path:
        """A path for a new file.

        Args:
            name: as the person gave it, with ``/`` for a subfolder; empty: as ``default``, with a number where taken.
            default: where it goes without a name.
            awaited: names of files that are being made.
            field: which the sentence is about.

        Raises:
            InputError: no name for a file in the folder, or one that a file there has already: of two LoRAs of one
                name, in whatever subfolders, a prompt reaches one only.
        """
        name = clean_path(name)
        require_local(field, name)
        taken = {PurePosixPath(each).name.lower() for each in (*self.names(), *awaited)}
        if not name:
            return _free(default, taken)
        parts = _without_suffix(name.replace("\\", "/")).split("/")
        if any(name_problem(part) or "=" in part for part in parts):
            raise field_error(
                field,
                "“{name}” cannot be the name of a new file in the LoRA folder; write e.g. {example}.",
                name=name[:200],
                example="my-lora",
            )
        path = self.root.joinpath(*parts[:-1], parts[-1] + SUFFIX)
        if parts[-1].lower() in taken:
            raise field_error(
                field,
                "there is a LoRA named {name} already, and nothing is overwritten; {free} is free.",
                name=parts[-1],
                free=_free(path, taken).stem,
            )
        return path

    def _within(self, wanted: str) -> Path | None:
        path = self.root / f"{_without_suffix(wanted)}{SUFFIX}"
        return path if _is_file(path) else None


def _without_suffix(name: str) -> str:
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def _is_file(path: Path) -> bool:
    try:
        return path.suffix == SUFFIX and path.is_file()
    except (OSError, ValueError):  # too long, or with characters that no file name may have
        return False


def _free(path: Path, taken: set[str]) -> Path:
    return path.with_name(free_name(path.stem, lambda name: name.lower() in taken) + path.suffix)


def _walk(root: Path, suffixes: tuple[str, ...] = (SUFFIX,)) -> Iterator[Path]:
    """Files in a folder and below; links are followed, but never in a circle."""
    seen: set[str] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith(suffixes) and not name.startswith("."))


def check_blocks(host: Host, place: str, file: Path, lbw: str, **values: Any) -> None:
    """See that block weights can be used with a file, of which only the header is read.

    Args:
        host: whose presets count.
        place: the field that the sentence is about.
        file: the LoRA file.
        lbw: as for :func:`lora_trainer.network.blocks.weights.resolve`.
        **values: the same.

    Raises:
        InputError: the sentence of ``resolve``, or the file cannot be read.
    """
    from lora_trainer.network.blocks.weights import resolve

    if lbw or values.get("lbwe"):
        architecture = architecture_at(file)
        with concerning(place):
            resolve(lbw, architecture, host.block_presets(), **values)


def architecture_at(file: Path) -> Architecture:
    """What a LoRA file is for; raises :class:`InputError`."""
    from lora_trainer.network.blocks.block_map import architecture_of
    from lora_trainer.network.lora_file import read_metadata, read_names

    return architecture_of((name.partition(".")[0] for name in read_names(file)), read_metadata(file))
