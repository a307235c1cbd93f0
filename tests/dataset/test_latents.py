from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import RunError
from lora_trainer.core.tensor_file import write_checked
from lora_trainer.dataset.images import read_picture
from lora_trainer.dataset.latents import LatentCache, crop_to_bucket, to_pixels
from lora_trainer.dataset.scan import Item, scan
from lora_trainer.model.families import SD1
from tests.helpers import data, temporary_files

SMALL = {"resolution": 64, "bucket_step": 32}


class Encoder:
    """Stands in for a VAE: the mean colour of each 8 × 8 square, in four channels."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        colours = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([colours, colours.mean(1, keepdim=True)], dim=1).to(torch.float16)


def items(folder: Path, **values: object) -> list[Item]:
    return scan(data(folder=str(folder), **{**SMALL, **values})).items


def filled(cache: Path, wanted: list[Item], flip: bool = False, vae: str = "vae") -> tuple[LatentCache, int]:
    """A cache with the latents of ``wanted``, and how many of them had to be encoded."""
    latents, encoder = LatentCache(cache, vae, SD1.latent), Encoder()
    assert latents.fill(latents.missing(wanted, flip), encoder) == {}
    return latents, encoder.calls


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_pictures_are_encoded_once_and_the_same_latents_come_back(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    first, encoded = filled(cache, wanted)
    again, encoded_again = filled(cache, wanted)
    assert (encoded, encoded_again) == (4, 0)
    for item in wanted:
        latent = first[item.path, False]
        width, height = item.fit.bucket
        assert (latent.shape, latent.dtype) == ((4, height // 8, width // 8), torch.float32)
        assert torch.equal(latent, again[item.path, False])
    assert not temporary_files(cache)


def test_latents_are_those_of_the_cropped_picture(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    latents, _ = filled(cache, wanted, flip=True)
    for item in wanted:
        for flip in (False, True):
            pixels = to_pixels(crop_to_bucket(read_picture(item.path), item), flip)
            assert torch.equal(latents[item.path, flip], Encoder()(pixels.unsqueeze(0))[0].float())


def test_mirrored_pictures_have_latents_of_their_own(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    assert filled(cache, wanted)[1] == 4
    latents, encoded = filled(cache, wanted, flip=True)
    assert encoded == 4
    path = wanted[0].path
    assert torch.equal(latents[path, True], latents[path, False].flip(-1))


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "other picture": (lambda folder: Image.new("RGB", (96, 96)).save(folder / "00.png"), {}, "vae"),
    "other size": (lambda folder: None, {"resolution": 96}, "vae"),
    "other VAE": (lambda folder: None, {}, "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_latent_makes_it_anew(picture_folder: Path, cache: Path, change: str) -> None:
    filled(cache, items(picture_folder)[:1])
    act, values, vae = CHANGES[change]
    act(picture_folder)
    assert filled(cache, items(picture_folder, **values)[:1], vae=vae)[1] == 1


def test_other_crop_of_the_same_bucket_is_made_anew(picture_folder: Path, cache: Path) -> None:
    (item, *_) = items(picture_folder)
    filled(cache, [item])
    moved = replace(item, fit=replace(item.fit, crop=(1.0, 0.0, 95.0, 94.0)))
    assert filled(cache, [moved])[1] == 1
    assert filled(cache, [item])[1] == 0


def test_names_captions_and_dates_do_not_matter(picture_folder: Path, cache: Path) -> None:
    filled(cache, items(picture_folder))
    shutil.copytree(picture_folder, picture_folder.parent / "3_other")
    for path in (picture_folder.parent / "3_other").iterdir():
        path.with_suffix(".txt").write_text("new caption")
        os.utime(path, (1, 1))
    (picture_folder.parent / "3_other" / "00.png").rename(picture_folder.parent / "3_other" / "汉服.png")
    assert filled(cache, items(picture_folder.parent / "3_other"))[1] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage of some length"),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: save_file({"other": torch.zeros(4, 8, 8)}, path),
        lambda path: save_file({"latent": torch.zeros(4, 4, 4)}, path),
        lambda path: save_file({"latent": torch.zeros(())}, path),
        lambda path: save_file({"latent": torch.full((4, 8, 8), torch.nan)}, path),
        lambda path: save_file({"latent": load_file(path)["latent"]}, path),
        lambda path: write_checked(path, {"latent": load_file(path)["latent"].half()}, {}),
        lambda path: write_checked(path, {"latent": load_file(path)["latent"][None]}, {}),
        lambda path: write_checked(path, {"latent": torch.zeros(4, 8, 7)}, {}),
        lambda path: write_checked(path, {"latent": torch.full((4, 8, 8), torch.inf)}, {}),
    ],
    ids=[
        *("empty", "garbage", "cut off", "other name", "other size", "no size", "NaN", "no checksum", "half"),
        *("one dimension more", "other width", "infinite"),
    ],
)
def test_damaged_file_is_made_again(
    picture_folder: Path, cache: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = items(picture_folder)[:1]
    before, _ = filled(cache, wanted)
    (path,) = (p for p in cache.rglob("*") if p.is_file())
    damage(path)
    after, encoded = filled(cache, wanted)
    assert encoded == 1
    assert torch.equal(before[wanted[0].path, False], after[wanted[0].path, False])
    assert torch.equal(load_file(path)["latent"], after[wanted[0].path, False])
    assert f"The cached latent {path} is damaged" in caplog.text


def test_every_flipped_bit_is_noticed(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)[:1]
    before, _ = filled(cache, wanted)
    (path,) = (p for p in cache.rglob("*") if p.is_file())
    content = path.read_bytes()
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        after, encoded = filled(cache, wanted)
        assert torch.equal(before[wanted[0].path, False], after[wanted[0].path, False])
        assert encoded == 1 or load_file(path).keys() == {"latent"}  # a blank of the header


def test_folder_of_a_latents_name_is_left_alone_and_the_run_goes_on(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)[:1]
    before, _ = filled(cache, wanted)
    (path,) = (p for p in cache.rglob("*") if p.is_file())
    path.unlink()
    (path / "mine").mkdir(parents=True)
    after, encoded = filled(cache, wanted)
    assert encoded == 1
    assert torch.equal(before[wanted[0].path, False], after[wanted[0].path, False])
    assert (path / "mine").is_dir()


@pytest.mark.parametrize("channels", [0, 3, 8])
def test_latents_of_other_channels_are_made_again(picture_folder: Path, cache: Path, channels: int) -> None:
    wanted = items(picture_folder)[:1]
    before, _ = filled(cache, wanted)
    path = next(cache.rglob("*.safetensors"))
    latent = before[wanted[0].path, False]
    write_checked(path, {"latent": latent[:1].expand(channels, *latent.shape[1:])}, {})
    after, encoded = filled(cache, wanted)
    assert encoded == 1
    assert torch.equal(latent, after[wanted[0].path, False])


def test_latents_under_the_name_of_another_are_made_again(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    before, _ = filled(cache, wanted)
    first, second, *_ = cache.rglob("*.safetensors")
    first.unlink()
    first.symlink_to(second)
    after, encoded = filled(cache, wanted)
    assert encoded == 1
    for item in wanted:
        assert torch.equal(before[item.path, False], after[item.path, False])


def test_a_file_where_a_folder_of_the_cache_should_be_ends_nothing(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)[:1]
    before, _ = filled(cache, wanted)
    folder = next(cache.rglob("*.safetensors")).parent
    for make in (lambda: folder.write_text("mine"), lambda: folder.symlink_to("nowhere")):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        make()
        after, encoded = filled(cache, wanted)
        assert encoded == 1
        assert torch.equal(before[wanted[0].path, False], after[wanted[0].path, False])


# ------------------------------------------------------------------ pictures that change meanwhile
def test_picture_that_changes_while_it_is_prepared_does_not_spoil_the_cache(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)[:1]
    path = wanted[0].path
    first, latents = path.read_bytes(), LatentCache(cache, "vae", SD1.latent)
    missing = latents.missing(wanted, False)
    Image.new("RGB", wanted[0].size, (9, 99, 199)).save(path)  # an editor saves, a synchronisation comes in between
    assert latents.fill(missing, Encoder()) == {}
    assert latents[path, False][0].std() == 0  # what was encoded is what is there now
    path.write_bytes(first)
    again, encoded = filled(cache, wanted)
    assert encoded == 1
    assert again[path, False][0].std() > 0


def test_picture_that_gets_another_size_meanwhile_is_named_and_left_out(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    latents = LatentCache(cache, "vae", SD1.latent)
    missing = latents.missing(wanted, False)
    Image.new("RGB", (40, 30)).save(wanted[2].path)
    broken = latents.fill(missing, Encoder())
    assert list(broken) == [wanted[2].path]
    assert "02.png was changed while it was being prepared" in str(broken[wanted[2].path])
    assert len([p for p in cache.rglob("*") if p.is_file()]) == 3


# ------------------------------------------------------------------ whatever the host's model gives
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda latent: latent.contiguous(memory_format=torch.channels_last),
    "turned": lambda latent: latent.transpose(2, 3).contiguous().transpose(2, 3),
    "a view of more": lambda latent: torch.cat([latent, latent], dim=1)[:, :4],
    "every second": lambda latent: latent.repeat_interleave(2, dim=3)[..., ::2],
    "with a gradient": lambda latent: latent.clone().requires_grad_(),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_are_written_plain_whatever_the_vae_gives(
    picture_folder: Path, cache: Path, layout: str, dtype: torch.dtype
) -> None:
    wanted = items(picture_folder)[:2]
    latents = LatentCache(cache, "vae", SD1.latent)
    latents.fill(latents.missing(wanted, False), lambda pixels: LAYOUTS[layout](Encoder()(pixels).to(dtype)))
    again, encoded = filled(cache, wanted)
    assert encoded == 0
    for item in wanted:
        for kept in (latents[item.path, False], again[item.path, False]):
            assert (kept.dtype, kept.device.type, kept.requires_grad) == (torch.float32, "cpu", False)
            assert kept.is_contiguous()
        assert torch.equal(latents[item.path, False], again[item.path, False])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_vae_in_channels_last(picture_folder: Path, cache: Path, dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    ).to(dtype=dtype, memory_format=torch.channels_last)
    wanted, latents = items(picture_folder), LatentCache(cache, "vae", SD1.latent)
    with torch.no_grad():
        latents.fill(
            latents.missing(wanted, True), lambda pixels: vae.encode(pixels.to(dtype)).latent_dist.mean * 0.18215
        )
    again, encoded = filled(cache, wanted, flip=True)
    assert encoded == 0
    for item in wanted:
        for flip in (False, True):
            assert again[item.path, flip].is_contiguous()
            assert again[item.path, flip].dtype == torch.float32
            assert torch.equal(again[item.path, flip], latents[item.path, flip])


def test_vae_of_another_size_is_one_sentence(picture_folder: Path, cache: Path) -> None:
    latents = LatentCache(cache, "vae", SD1.latent)
    missing = latents.missing(items(picture_folder)[:1], False)
    with pytest.raises(RunError, match=r"The VAE gives a latent of the shape \[4, 4, 4\] for .*00\.png"):
        latents.fill(missing, lambda pixels: torch.zeros(1, 4, 4, 4))
    assert not [p for p in cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_latent_that_is_no_number_is_an_error_and_not_kept(picture_folder: Path, cache: Path, value: float) -> None:
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        latent = Encoder()(pixels)
        latent[0, 1, 2, 3] = value
        return latent

    latents = LatentCache(cache, "vae", SD1.latent)
    wanted = latents.missing(items(picture_folder)[:1], False)
    with pytest.raises(RunError, match=r"The VAE gives NaN for .*00\.png; start the WebUI with --no-half-vae"):
        latents.fill(wanted, encode)
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_broken_pictures_are_returned_and_the_others_encoded(picture_folder: Path, cache: Path) -> None:
    wanted = items(picture_folder)
    wanted[1].path.write_bytes(wanted[1].path.read_bytes()[:-200])
    latents, encoder = LatentCache(cache, "vae", SD1.latent), Encoder()
    broken = latents.fill(latents.missing(wanted, True), encoder)
    assert list(broken) == [wanted[1].path]
    assert "01.png is damaged" in str(broken[wanted[1].path])
    assert encoder.calls == 6


def test_pixels_run_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (4, 2), (0, 0, 255))
    image.putpixel((0, 1), (255, 255, 255))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 2, 4)
    assert pixels[:, 0, 0].tolist() == [-1, -1, 1]
    assert pixels[:, 1, 0].tolist() == [1, 1, 1]
    assert torch.equal(to_pixels(image, flip=True), pixels.flip(-1))


@pytest.mark.parametrize("size", [(98, 512), (103, 103), (300, 200), (64, 64), (1, 700), (33, 97)])
def test_every_size_of_picture_is_brought_to_its_bucket(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "a.png")
    (item,) = items(tmp_path, trigger="x")
    image = crop_to_bucket(read_picture(item.path), item)
    assert image.size == item.fit.bucket
    assert image.getpixel((0, 0)) == (10, 20, 30)


def test_middle_of_the_picture_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    image.save(tmp_path / "a.png")
    (item,) = items(tmp_path, trigger="x", buckets=False)
    pixels = to_pixels(crop_to_bucket(read_picture(item.path), item))
    assert item.fit.crop == pytest.approx((100, 0, 200, 100))
    assert pixels[2].min() > 0.8
    assert pixels[0].max() < -0.8
