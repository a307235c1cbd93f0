"""The embedded host: what it finds in a checkpoint file, its tokenizer, and its drawing."""

from __future__ import annotations

import copy
import gzip
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.hosts.base import DrawRequest, LoraUse
from lora_trainer.hosts.standalone import checkpoint, tokenizer
from lora_trainer.hosts.standalone import host as module
from lora_trainer.hosts.standalone.checkpoint import checkpoint_config
from lora_trainer.hosts.standalone.drawing import SAMPLERS
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.hosts.standalone.session import StandaloneSession
from lora_trainer.hosts.standalone.tokenizer import load_tokenizer
from lora_trainer.network.adapters import TEXT_PREFIX, UNET_PREFIX, add_adapters
from lora_trainer.network.lora_file import save_lora
from tests.helpers import CHECKPOINT, config
from tests.network.plain import randomise

YAML = CHECKPOINT.with_suffix(".yaml")
UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"


SD1_KEYS = (UNET_INPUT, "cond_stage_model.transformer.text_model.x", "first_stage_model.x")


def make_checkpoint(path: Path, *keys: str, channels: int = 4) -> str:
    """A file with these keys (those of SD1 when none are named), good for looking into only."""
    keys = keys or SD1_KEYS
    tensors = {key: torch.zeros(1, channels, 1, 1) if key == UNET_INPUT else torch.zeros(1) for key in keys}
    save_file(tensors, path)
    return str(path)


def look(root: Path, checkpoint: str | Path) -> Any:
    return StandaloneHost(root).check(config(checkpoint=str(checkpoint)))


# ------------------------------------------------------------------ looking into the file
def test_a_checkpoint_is_known_by_its_content_without_being_loaded(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path, str(CHECKPOINT))
    info = host.check(TrainConfig(name="test"))
    assert (info.name, info.family.name, info.prediction, info.vae) == (CHECKPOINT.name, "SD1", "epsilon", "")
    assert info.sha256 == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert host._loaded is None


def test_the_hash_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    first = look(tmp_path, make_checkpoint(path)).sha256
    assert look(tmp_path, path).sha256 == first
    make_checkpoint(path, *SD1_KEYS, "more")
    os.utime(path, (1, 1))
    assert look(tmp_path, path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_the_configs_checkpoint_goes_before_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"other\.safetensors does not exist"):
        StandaloneHost(tmp_path, str(CHECKPOINT)).check(config(checkpoint="other.safetensors"))


def test_a_path_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_checkpoint(tmp_path / "model.safetensors")
    assert look(tmp_path, "~/model.safetensors").name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("", b"", "name the checkpoint file"),
        ("gone.safetensors", None, "does not exist"),
        (".", None, "does not exist"),
        ("model.ckpt", b"\x80", "only these are loaded"),
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"<html>not found</html>", "is a web page"),
        ("model.safetensors", b"\xff" * 100, "is damaged"),
        ("model.safetensors", "cut", "is incomplete or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | str | None, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name and content is not None:
        whole = CHECKPOINT.read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=part) as caught:
        look(tmp_path, name)
    assert caught.value.field == "checkpoint"


@pytest.mark.parametrize(
    ("keys", "channels", "part"),
    [
        ([UNET_INPUT, "conditioner.embedders.1.x"], 4, "SDXL"),
        ([UNET_INPUT, "cond_stage_model.model.x"], 4, "SD2"),
        ([UNET_INPUT, "cond_stage_model.transformer.text_model.x"], 9, "Inpainting"),
        ([UNET_INPUT, "first_stage_model.x"], 4, "no CLIP text encoder"),
        (["first_stage_model.x"], None, r"model\.safetensors is not a checkpoint: it has no Stable Diffusion UNet"),
        (["lora_unet_down.weight"], None, r"model\.safetensors is a LoRA, not a checkpoint"),
    ],
)
def test_other_kinds_of_checkpoint_are_refused_by_name(
    tmp_path: Path, keys: list[str], channels: int, part: str
) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", *keys, channels=channels)
    with pytest.raises(InputError, match=part):
        look(tmp_path, path)


def test_a_pruned_checkpoint_without_a_vae_is_one_sentence(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", *SD1_KEYS[:2])
    with pytest.raises(InputError, match="has no VAE in it") as caught:
        look(tmp_path, path)
    assert caught.value.field == "checkpoint"


def test_a_vae_that_is_not_whole_or_of_another_shape_is_one_sentence(tmp_path: Path) -> None:
    tensors = load_file(CHECKPOINT)
    described = checkpoint_config(CHECKPOINT)
    part = {name: value for name, value in tensors.items() if name.startswith("first_stage_model.decoder")}
    other = copy.deepcopy(described)
    other["model"]["params"]["first_stage_config"]["params"]["ddconfig"]["ch"] = 64
    for state, yaml in ((part, described), (tensors, other)):
        with pytest.raises(RunError, match=r"do not fit its \.yaml") as caught:
            checkpoint._load_vae(state, yaml, torch.device("cpu"))
        assert len(str(caught.value)) < 300


# ------------------------------------------------------------------ the yaml beside it
def test_the_yaml_beside_the_checkpoint_is_read_even_from_windows_editors(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint_config(Path(path))["model"]["params"]["unet_config"]["params"]["model_channels"] == 320
    assert StandaloneHost(tmp_path, path).native_resolution(TrainConfig()) == 512
    text = YAML.read_text(encoding="utf-8").replace(
        "  params:\n    linear_start", "  params:\n    parameterization: v\n    linear_start", 1
    )
    path_of_yaml = tmp_path / "model.yaml"
    path_of_yaml.write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    assert checkpoint_config(Path(path))["model"]["params"]["unet_config"]["params"]["model_channels"] == 32
    assert look(tmp_path, path).prediction == "v_prediction"
    assert StandaloneHost(tmp_path, path).native_resolution(TrainConfig()) == 128


@pytest.mark.parametrize(
    "text", ["", "model:", "- 1", "{", "model: {params: {unet_config: 3}}", "\x00", "model: !!python/name:os"]
)
def test_a_yaml_that_describes_no_model_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.yaml beside the checkpoint cannot be used"):
        look(tmp_path, path)
    assert StandaloneHost(tmp_path, path).native_resolution(TrainConfig()) == 512


# ------------------------------------------------------------------ the tokenizer
def test_the_tokenizers_folder_is_found_beside_the_yaml_by_its_path_or_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(version: str) -> dict[str, Any]:
        return {"model": {"params": {"cond_stage_config": {"params": {"version": version}}}}}

    clip = tmp_path / "clip"
    shutil.copytree(CHECKPOINT.parent / "clip", clip)
    checkpoint = tmp_path / "model.safetensors"
    assert tokenizer.clip_folder(checkpoint, named("clip")) == clip
    assert tokenizer.clip_folder(tmp_path / "elsewhere" / "model.safetensors", named(str(clip))) == clip
    monkeypatch.delenv("LORA_TRAIN_CLIP", raising=False)
    empty: list[dict[str, Any]] = [{}, {"cond_stage_config": None}, {"cond_stage_config": {"params": None}}]
    unnamed = [{"model": {"params": params}} for params in empty]
    for missing in (named("openai/clip-vit-large-patch14"), named(""), *unnamed):
        assert tokenizer.clip_folder(checkpoint, missing) is None
        with monkeypatch.context() as env:
            env.setenv("LORA_TRAIN_CLIP", str(clip))
            assert tokenizer.clip_folder(checkpoint, missing) == clip


def test_the_tokenizers_words_come_from_a_folder_or_a_sentence_says_what_is_wrong(tmp_path: Path) -> None:
    assert load_tokenizer(CHECKPOINT.parent / "clip").model_max_length == 77
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path / "gone")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where open_clip and clip are looked for; neither is there yet."""

    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        if not (tmp_path / name).is_dir():
            return None
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return tmp_path


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_the_tokenizer_is_made_from_the_word_list_of_clip_packages(packages: Path, package: str) -> None:
    words = packages / package / "bpe_simple_vocab_16e6.txt.gz"
    words.parent.mkdir()
    words.write_bytes(gzip.compress(b"version\nz o\nzo r\nzor p</w>\nr e\nre d</w>"))
    tokenizer = load_tokenizer(None)
    numbers = tokenizer(["zorp, RED z"], add_special_tokens=True)["input_ids"][0]
    letters = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
        *(n for n in range(256) if n < 33 or 126 < n < 161),
        173,
    ]
    byte = {chr(code): index for index, code in enumerate(letters)}
    first_merge = 512  # 256 bytes, and the same as ends of words
    zorp, red, end_of_word = first_merge + 2, first_merge + 4, 256
    ends = (first_merge + 5, first_merge + 6)
    assert numbers == [ends[0], zorp, byte[","] + end_of_word, red, byte["z"] + end_of_word, ends[1]]
    assert tokenizer.pad_token_id == ends[1]
    assert tokenizer.model_max_length == 77


def test_without_any_word_list_a_sentence_says_what_to_install(packages: Path) -> None:
    (packages / "clip").mkdir()  # a package of that name without the list
    with pytest.raises(InputError, match="pip install clip-anytorch"):
        load_tokenizer(None)


# ------------------------------------------------------------------ the loaded checkpoint
def test_the_checkpoint_is_loaded_once_and_again_when_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr(module, "Checkpoint", lambda path: loaded.append(path) or object())
    path = tmp_path / "model.safetensors"
    shutil.copy(CHECKPOINT, path)
    host = StandaloneHost(tmp_path, str(path))
    for _ in range(3):
        with host.session(TrainConfig(name="test")):
            pass
    assert loaded == [path]
    os.utime(path, (1, 1))
    with host.session(TrainConfig(name="test")):
        pass
    assert loaded == [path, path]


def test_a_word_is_common_when_the_tokenizer_has_it_whole(standalone: StandaloneHost, tmp_path: Path) -> None:
    with standalone.session(TrainConfig(name="test")):
        pass
    assert standalone.is_common_word("red")
    assert not standalone.is_common_word("zorpzorp_xx")
    assert not StandaloneHost(tmp_path, str(CHECKPOINT)).is_common_word("red")  # nothing is loaded for the question


def test_encoding_gives_the_posteriors_mean_scaled(standalone: StandaloneHost) -> None:
    with standalone.session(TrainConfig(name="test")) as session:
        pixels = torch.linspace(-1, 1, 3 * 32 * 64).reshape(1, 3, 32, 64)
        found = session.model.encode(pixels)
        vae = standalone._loaded[1].vae  # type: ignore[index]
        with torch.no_grad():
            mean = vae.quant_conv(vae.encoder(pixels))[:, :4]
        assert found.shape == (1, 4, 4, 8)
        torch.testing.assert_close(found, mean * 0.18215)
        assert torch.equal(found, session.model.encode(pixels))


def test_sessions_of_one_host_take_turns_with_each_other(standalone: StandaloneHost, tmp_path: Path) -> None:
    settings = TrainConfig(name="test")
    with standalone.session(settings) as one, standalone.session(settings) as other:
        with one.turn():
            assert one._turns._held
            assert not other.wanted()
            assert other._turns is one._turns
        assert not one._turns._held
        assert one.interrupted() is False
    assert StandaloneHost(tmp_path)._turns is not standalone._turns


# ------------------------------------------------------------------ drawing
@pytest.fixture
def session(standalone: StandaloneHost) -> Iterator[StandaloneSession]:
    with standalone.session(TrainConfig(name="test")) as held:
        yield held


@pytest.fixture(scope="module")
def loras(standalone: StandaloneHost, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files that change the picture: one of UNet and text encoder, one of the UNet alone with another rank."""
    folder = tmp_path_factory.mktemp("loras")
    paths = [folder / "one.safetensors", folder / "two.safetensors"]
    for rank, path in enumerate(paths, start=1):
        with standalone.session(TrainConfig(name="test")) as held:
            text = held.model.text.model if rank == 1 else None
            adapters = add_adapters({UNET_PREFIX: held.model.unet, TEXT_PREFIX: text}, rank=rank, alpha=rank)
            save_lora(path, randomise(adapters, 0.2), {}, "fp32")
    return paths


def picture(session: StandaloneSession, lora: LoraUse | None = None, **changes: Any) -> bytes:
    request = DrawRequest(
        **{"prompt": "red circle", "width": 64, "height": 48, "steps": 2, "sampler": "Euler", **changes}
    )
    with session.turn():
        (image,) = session.draw([request], lora)
    assert (image.size, image.mode) == ((request.width, request.height), "RGB")
    return image.tobytes()


def test_a_picture_depends_on_its_request_and_nothing_else(session: StandaloneSession) -> None:
    usual = picture(session)
    torch.manual_seed(1)
    assert picture(session) == usual
    for change in ({"seed": 2}, {"prompt": "blue star"}, {"negative": "red"}, {"cfg": 2.0}, {"steps": 3}):
        assert picture(session, **change) != usual, change
    assert picture(session) == usual


def test_a_lora_changes_the_picture_by_its_weight_and_is_gone_after(
    session: StandaloneSession, loras: list[Path]
) -> None:
    plain = picture(session)
    one, two = (LoraUse(path, 1.0) for path in loras)
    drawn = [picture(session, use) for use in (one, two, LoraUse(loras[0], 0.5))]
    assert len({plain, *drawn}) == 4
    assert picture(session, one) == drawn[0]
    assert picture(session, LoraUse(loras[0], 0.5)) == drawn[2]
    assert picture(session, LoraUse(loras[0], 0.0)) == plain
    assert picture(session) == plain


def test_drawing_leaves_weights_and_the_view_that_is_trained_as_they_are(
    session: StandaloneSession, loras: list[Path]
) -> None:
    adapters = add_adapters({UNET_PREFIX: session.model.unet}, rank=1, alpha=1)
    randomise(adapters)
    before = {key: value.clone() for key, value in session.model.unet.state_dict().items()}
    keys = set(before)
    first = picture(session)
    picture(session, LoraUse(loras[0]))
    after = session.model.unet.state_dict()
    assert after.keys() == keys
    assert all(torch.equal(before[key], after[key]) for key in keys)
    assert picture(session) == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_draws_a_picture_of_its_own(session: StandaloneSession, sampler: str) -> None:
    assert sampler in StandaloneHost(Path()).samplers()
    drawn = picture(session, sampler=sampler, steps=4)
    assert picture(session, sampler=sampler, steps=4) == drawn
    assert len(set(drawn)) > 16  # not a blank sheet


def test_a_sampler_of_another_host_is_replaced_by_the_usual_one(session: StandaloneSession) -> None:
    assert picture(session, sampler="Restart") == picture(session, sampler="Euler a")


def test_a_file_that_is_gone_or_of_another_kind_is_one_sentence(session: StandaloneSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"), session.turn():
        session.draw([DrawRequest("a")], LoraUse(tmp_path / "gone.safetensors"))
    path = tmp_path / "xl.safetensors"
    zeros = {f"lora_te2_x.{part}": torch.zeros(1, 1) for part in ("lora_down.weight", "lora_up.weight")}
    save_file(zeros, path)
    with pytest.raises(InputError, match="another kind of checkpoint"), session.turn():
        session.draw([DrawRequest("a")], LoraUse(path))
    picture(session)
