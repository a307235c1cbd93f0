"""File tools from file to file: what goes with a new file; their numerics are in test_bake, test_merge_resize …"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_trainer.core.errors import InputError
from lora_trainer.network.blocks.lora_tag import parse_tag
from lora_trainer.network.card import copy_card
from lora_trainer.network.lora_file import read_lora, read_metadata, save_lora
from lora_trainer.network.modules import group
from lora_trainer.network.ops.files import Baking, Ingredient, bake_file, baked_name, merge_files, resize_file
from lora_trainer.network.ops.provenance import RECORD
from lora_trainer.network.ops.resize import Rule
from tests.network.made import KEYS, delta, some_lora, tensors

CARD = {"activation text": "zorp", "preferred weight": 0.8, "notes": "汉服"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A LoRA with a card."""
    save_lora(tmp_path / "a.safetensors", some_lora(4, 2.0), {"ss_output_name": "a"}, "fp32")
    (tmp_path / "a.json").write_text(json.dumps(CARD, ensure_ascii=False), encoding="utf-8")
    return tmp_path / "a.safetensors"


def card(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_baking_takes_the_card_along_with_a_preferred_weight_that_means_the_same(file: Path) -> None:
    output = baked_name(file)
    made = bake_file(file, output, Baking(te=1.0, unet=0.8))
    assert (made.path, output.name) == (output, "a-baked.safetensors")
    assert card(output) == {**CARD, "preferred weight": 1.0}
    assert card(file) == CARD
    assert made.to_dict()["changed"] == sum(key.startswith("lora_unet") for key in KEYS)


def test_resizing_takes_the_card_along(file: Path) -> None:
    output = file.with_name("small.safetensors")
    made = resize_file(file, output, Rule(2))
    assert card(output) == CARD
    assert made.facts["ranks"] == [2]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", None])
def test_a_card_that_is_none_is_left_behind(file: Path, content: bytes | None) -> None:
    old = file.with_suffix(".json")
    old.unlink() if content is None else old.write_bytes(content)
    output = file.with_name("small.safetensors")
    resize_file(file, output, Rule(2))
    assert output.exists()
    assert not output.with_suffix(".json").exists()


def test_a_card_that_is_there_is_not_overwritten(file: Path) -> None:
    other = file.with_name("other.json")
    other.write_text("{}", encoding="utf-8")
    copy_card(file, file.with_name("other.safetensors"))
    assert other.read_text(encoding="utf-8") == "{}"


def test_merging_with_weights_of_text_encoder_and_unet_is_their_sum(file: Path) -> None:
    other = file.with_name("b.safetensors")
    save_lora(other, some_lora(3, 3.0, seed=9), {}, "fp32")
    output = file.with_name("sum.safetensors")
    tag = parse_tag("<lora:a:0.25:0.5:lbwe=NONE>")
    ingredients = [Ingredient(file, 0.5, te=0.25), Ingredient(other, -1.0)]
    made = merge_files(ingredients, output)
    one, two, both = (group(read_lora(path)) for path in (file, other, output))
    for key in KEYS:
        first = 0.25 if key.startswith("lora_te") else 0.5
        assert np.allclose(delta(both[key]), first * delta(one[key]) - delta(two[key]), atol=1e-5)
    (entry,) = json.loads(read_metadata(output)[RECORD])
    assert [source.get("te") for source in entry["sources"]] == [0.25, None]
    assert str(made.notices[0]).startswith("The weights sum up to 1.5")
    assert Ingredient.of(tag, file) == Ingredient(file, 0.5, 0.25, "", "NONE")


def test_nothing_is_overwritten_and_progress_can_stop(file: Path) -> None:
    before = file.read_bytes()
    for write in (
        lambda: bake_file(file, file, Baking()),
        lambda: resize_file(file, file, Rule(2)),
        lambda: merge_files([Ingredient(file)], file),
    ):
        with pytest.raises(InputError, match="never overwritten"):
            write()

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_files([Ingredient(file)], file.with_name("new.safetensors"), progress=stop)
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.json", "a.safetensors"]


REQUIRED = ("sai_model_spec", "architecture", "implementation", "title", "resolution")
"""Of modelspec 1.0.1 (github.com/Stability-AI/ModelSpec); sd-scripts' sai_model_spec.py has the same list."""


@pytest.mark.parametrize(
    ("told", "names", "architecture", "resolution"),
    [
        ({}, KEYS, "stable-diffusion-v1/lora", "512x512"),
        ({"ss_resolution": "(768, 512)"}, KEYS, "stable-diffusion-v1/lora", "768x512"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, KEYS, "stable-diffusion-xl-v1-base/lora", "1024x1024"),
        ({}, [KEYS[0].replace("_0_", "_20_"), *KEYS[1:]], "stable-diffusion-v2-512/lora", "512x512"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.resolution": "7x7"}, KEYS, None, "7x7"),
    ],
)
def test_every_written_file_has_what_modelspec_requires(
    tmp_path: Path, told: dict[str, str], names: list[str], architecture: str | None, resolution: str
) -> None:
    lora = dict(zip(names, group(some_lora()).values(), strict=True))
    source = tmp_path / "a.safetensors"
    save_lora(source, tensors(lora), told, "fp32")
    made = [
        bake_file(source, tmp_path / "baked.safetensors", Baking(unet=0.5)),
        merge_files([Ingredient(source, 0.5)], tmp_path / "merged.safetensors"),
        resize_file(source, tmp_path / "resized.safetensors", Rule(2)),
    ]
    for each in made:
        spec = {key.removeprefix("modelspec."): value for key, value in read_metadata(each.path).items()}
        assert all(spec.get(key) for key in REQUIRED)
        assert (spec["title"], spec["resolution"]) == (each.path.stem, resolution)
        assert spec["architecture"] == (architecture or told["modelspec.architecture"])
