"""Latents on disk: a picture is encoded once for each bucket and VAE, and re-used by every later run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora_trainer.dataset.images import PictureError, read_picture
from lora_trainer.dataset.scan import Dataset, Item
from lora_trainer.errors import InputError, RunError
from lora_trainer.files import replace_atomically

log = logging.getLogger(__name__)

Encode = Callable[[torch.Tensor], torch.Tensor]
"""(B, 3, H, W) pixels in −1…1 → (B, C, H/8, W/8) scaled latents: the posterior's mean, in fp32."""


@dataclass(frozen=True)
class Wanted:
    """A latent that a run needs."""

    item: Item
    flip: bool
    path: Path


class LatentCache:
    """Latents of a run, in memory as fp32 CPU tensors, backed by one file each.

    Args:
        folder: where the files are; shared by all runs.
        vae: fingerprint of the VAE's weights, part of every key.
    """

    def __init__(self, folder: Path, vae: str) -> None:
        self._folder = folder
        self._vae = vae
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
                    wanted.append(Wanted(item, mirrored, path))
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
                pixels = to_pixels(crop_to_bucket(read_picture(item.path), item), entry.flip)
            except PictureError as problem:
                broken[item.path] = problem
                continue
            latent = encode(pixels.unsqueeze(0))[0].float().cpu().contiguous()
            if not torch.isfinite(latent).all():
                raise RunError(
                    "The VAE gives NaN for {path}; start the WebUI with --no-half-vae or choose another VAE.",
                    path=item.path,
                )
            self._latents[item.path, entry.flip] = latent
            self._write(entry.path, latent)
        return broken

    @staticmethod
    def _write(path: Path, latent: torch.Tensor) -> None:
        replace_atomically(path, lambda temporary: save_file({"latent": latent}, temporary), durable=False)

    def _path(self, content: str, item: Item, mirrored: bool) -> Path:
        parts = (content, item.fit.bucket, [round(v, 3) for v in item.fit.crop], mirrored, self._vae, "mean 1")
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.safetensors"

    @staticmethod
    def _load(path: Path, item: Item) -> torch.Tensor | None:
        if not path.is_file():
            return None
        try:
            latent = load_file(path)["latent"]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("The cached latent %s is damaged (%s); it is made again.", path, error)
            return None
        width, height = item.fit.bucket
        fits = latent.shape[-2:] == (height // 8, width // 8) and bool(torch.isfinite(latent).all())
        return latent if fits else None


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
