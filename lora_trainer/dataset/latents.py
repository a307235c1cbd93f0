"""Latents on disk: a picture is encoded once for each bucket and VAE, and re-used by every later run."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.core.tensor_file import read_checked, write_checked
from lora_trainer.dataset.images import PictureError, decode_picture, read_bytes
from lora_trainer.dataset.scan import Dataset, Item
from lora_trainer.model.family import LatentSpace

log = logging.getLogger(__name__)

Encode = Callable[[torch.Tensor], torch.Tensor]
"""(B, 3, H, W) pixels in −1…1 → (B, C, H/8, W/8) scaled latents: the posterior's mean, in fp32."""


@dataclass(frozen=True)
class Wanted:
    """A latent that a run needs."""

    item: Item
    flip: bool


class LatentCache:
    """Latents of a run, in memory as fp32 CPU tensors, backed by one file each.

    Args:
        folder: where the files are; shared by all runs.
        vae: fingerprint of the VAE's weights, part of every key.
        space: the family's; a latent of another shape is refused.
    """

    def __init__(self, folder: Path, vae: str, space: LatentSpace) -> None:
        self._folder = folder
        self._vae = vae
        self._space = space
        self._latents: dict[tuple[Path, bool], torch.Tensor] = {}

    def __getitem__(self, key: tuple[Path, bool]) -> torch.Tensor:
        """The latent (C, H/8, W/8) of (picture path, mirrored)."""
        return self._latents[key]

    def missing(self, items: Iterable[Item], flip: bool) -> list[Wanted]:
        """Load what is on disk; what is not is returned, to be given to :meth:`fill`."""
        wanted: list[Wanted] = []
        for item in items:
            content = item.key
            for mirrored in (False, True) if flip else (False,):
                path = self._path(content, item, mirrored)
                latent = self._load(path, item)
                if latent is None:
                    wanted.append(Wanted(item, mirrored))
                else:
                    self._latents[item.path, mirrored] = latent
        return wanted

    def fill(self, wanted: Sequence[Wanted], encode: Encode) -> dict[Path, PictureError]:
        """Encode some latents and write them; returns the pictures that could not be read.

        Raises:
            RunError: the VAE gave NaN or Inf (half precision), or the disk is full.
        """
        broken: dict[Path, PictureError] = {}
        for entry in wanted:
            item = entry.item
            if item.path in broken:
                continue
            try:
                content, pixels = _read(item, entry.flip)
            except PictureError as problem:
                broken[item.path] = problem
                continue
            latent = encode(pixels.unsqueeze(0))[0].detach().float().cpu().contiguous()
            self._require_usable(latent, item)
            self._latents[item.path, entry.flip] = latent
            self._write(self._path(content, item, entry.flip), latent)
        return broken

    @staticmethod
    def _write(path: Path, latent: torch.Tensor) -> None:
        if path.is_dir():
            log.warning("The latent %s is not kept, since there is a folder of that name.", path)
        elif os.path.lexists(path.parent) and not path.parent.is_dir():
            log.warning("The latent %s is not kept, since %s is no folder; delete it.", path, path.parent)
        else:
            write_checked(path, {"latent": latent}, {"name": path.stem}, durable=False)

    def _path(self, content: str, item: Item, mirrored: bool) -> Path:
        parts = (content, item.fit.bucket, [round(v, 3) for v in item.fit.crop], mirrored, self._vae, "mean 2")
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.safetensors"

    def _load(self, path: Path, item: Item) -> torch.Tensor | None:
        if not path.is_file():
            return None
        try:
            tensors, texts = read_checked(path)
            latent = tensors["latent"]
            if texts.get("name", path.stem) != path.stem:
                raise ValueError("it is that of another picture")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("The cached latent %s is damaged (%s); it is made again.", path, error)
            return None
        if latent.dtype == torch.float32 and self._has_shape(latent, item) and bool(torch.isfinite(latent).all()):
            return latent
        log.warning(
            "The cached latent %s is damaged (%s, shape %s); it is made again.",
            *(path, str(latent.dtype).removeprefix("torch."), list(latent.shape)),
        )
        return None

    def _has_shape(self, latent: torch.Tensor, item: Item) -> bool:
        return latent.shape == self._space.shape(*item.fit.bucket)

    def _require_usable(self, latent: torch.Tensor, item: Item) -> None:
        if not torch.isfinite(latent).all():
            raise RunError(
                "The VAE gives NaN for {path}; start the WebUI with --no-half-vae or choose another VAE.",
                path=item.path,
            )
        if not self._has_shape(latent, item):
            raise RunError(
                "The VAE gives a latent of the shape {shape} for {path}; choose another VAE.",
                shape=list(latent.shape),
                path=item.path,
            )


def _read(item: Item, flip: bool) -> tuple[str, torch.Tensor]:
    """SHA-256 of a picture's bytes, and its (3, H, W) pixels in its bucket, made from these same bytes.

    Hashed and decoded in two readings, a picture that changes in between would be kept under the other's name.
    """
    content = read_bytes(item.path)
    image = decode_picture(content, item.path)
    if image.size != item.size:
        raise PictureError("{path} was changed while it was being prepared; start the run again.", path=item.path)
    return hashlib.sha256(content).hexdigest(), to_pixels(crop_to_bucket(image, item), flip)


def encode_each(
    dataset: Dataset,
    wanted: Sequence[Wanted],
    latents: LatentCache,
    encode: Encode,
    turn: Callable[[], AbstractContextManager[object]],
    on_each: Callable[[int, int], object] = lambda done, of: None,
) -> Dataset:
    """Encode what is missing, each picture in a turn of its own.

    Args:
        dataset: all pictures.
        wanted: what :meth:`LatentCache.missing` returned for them.
        latents: gets them.
        encode: the model's.
        turn: makes the model ours for a moment.
        on_each: called before each picture with how many are done, and of how many; what it raises ends the work.

    Returns:
        The data set without the pictures that cannot be read.

    Raises:
        InputError: none can be read.
        RunError: the VAE gave NaN or Inf, or the disk is full.
    """
    broken: dict[Path, PictureError] = {}
    for done, entry in enumerate(wanted):
        on_each(done, len(wanted))
        with turn():
            broken |= latents.fill([entry], encode)
    dataset = dataset.without(broken)
    if not dataset.items:
        raise InputError(
            "data.folder: no picture can be read; the first: {first}",
            field="data.folder",
            first=next(iter(broken.values())),
        )
    return dataset


def crop_to_bucket(image: Image.Image, item: Item) -> Image.Image:
    """Resize and crop a picture to its bucket in one resampling (Lanczos, which averages when shrinking)."""
    return image.resize(item.fit.bucket, Image.Resampling.LANCZOS, box=item.fit.crop)


def to_pixels(image: Image.Image, flip: bool = False) -> torch.Tensor:
    """An RGB picture as a (3, H, W) tensor in −1…1."""
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1
