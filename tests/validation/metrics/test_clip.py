"""CLIP from a local folder; the model here is tiny and random, so only the way of the numbers is tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import InputError
from lora_trainer.validation.grid.numbers import add_picture_numbers
from lora_trainer.validation.metrics.clip import ClipScorer
from tests.helpers import CHECKPOINT

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two small layers, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    made = tmp_path_factory.mktemp("clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(CHECKPOINT.parent / "clip" / name, made)
    words = len(json.loads((made / "vocab.json").read_text(encoding="utf-8")))
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1},
        vision_config={**layers, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(3)
    CLIPModel(config).save_pretrained(made, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(made)
    return made


def picture(seed: int = 1, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@torch.no_grad()
def plain_score(folder: Path, image: Image.Image, prompt: str) -> float:
    """With the picture's values normalised by hand (its size is the model's)."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    ids = CLIPTokenizer.from_pretrained(folder)([prompt], return_tensors="pt", truncation=True, max_length=77)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    values = ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)
    pixels = torch.from_numpy(values[None]).float()
    text = model.text_projection(model.text_model(**ids).pooler_output)[0].double()
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].double()
    return float(text @ seen / text.norm() / seen.norm())


@pytest.mark.parametrize("prompt", ["a red circle", "", "zorp " * 100])
def test_score_is_the_cosine_of_the_features(folder: Path, prompt: str) -> None:
    scorer = ClipScorer(folder)
    assert scorer.score(picture(), prompt) == pytest.approx(plain_score(folder, picture(), prompt), abs=1e-5)
    assert scorer.score(picture(2), prompt) == pytest.approx(plain_score(folder, picture(2), prompt), abs=1e-5)


def test_tags_are_no_part_of_the_prompt(folder: Path) -> None:
    scorer = ClipScorer(folder)
    plain = scorer.score(picture(), "a red circle")
    assert scorer.score(picture(), "a red circle<lora:zorp-000001:0.8:lbw=ALL>") == plain
    assert scorer.score(picture(), "a blue star") != plain


def test_any_size_of_picture_can_be_scored(folder: Path) -> None:
    assert -1 <= ClipScorer(folder).score(picture(size=(90, 40)), "a red circle") <= 1


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_pickled_weights_are_read_without_running_them(folder: Path, tmp_path: Path) -> None:
    made = copied(folder, tmp_path)
    torch.save(load_file(made / "model.safetensors"), made / "pytorch_model.bin")
    (made / "model.safetensors").unlink()
    prompt = "a red circle"
    assert ClipScorer(made).score(picture(), prompt) == ClipScorer(folder).score(picture(), prompt)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of the file was run",))


def damage(name: str, made: Path) -> None:
    weights = made / "model.safetensors"
    if name == "code":
        weights.unlink()
        torch.save({"logit_scale": Trap()}, made / "pytorch_model.bin")
    elif name == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "weights missing":
        tensors = load_file(weights)
        save_file({n: t for n, t in tensors.items() if "visual_projection" not in n}, weights)
    elif name == "another shape":
        tensors = load_file(weights)
        save_file({**tensors, "visual_projection.weight": torch.zeros(3, 3)}, weights)
    elif name == "another model":
        (made / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    elif name == "no JSON":
        (made / "config.json").write_text("{", encoding="utf-8")
    elif name == "a list":
        (made / "config.json").write_text("[]", encoding="utf-8")
    else:
        (made / name).unlink()


@pytest.mark.parametrize(
    "name",
    [
        *("code", "cut off", "weights missing", "another shape", "another model", "no JSON", "a list"),
        *("vocab.json", "preprocessor_config.json"),
    ],
)
def test_a_broken_folder_is_one_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    made = copied(folder, tmp_path)
    damage(name, made)
    with pytest.raises(InputError, match=r"CLIP model in .* cannot be used") as caught:
        ClipScorer(made).score(picture(), "a red circle")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", ""])
def test_a_folder_without_a_model_is_one_sentence(folder: Path, tmp_path: Path, missing: str) -> None:
    made = copied(folder, tmp_path)
    if missing:
        (made / missing).unlink()
    else:
        shutil.rmtree(made)
    with pytest.raises(InputError, match="no folder of a CLIP model"):
        ClipScorer(made)


def test_a_grid_gets_it_beside_the_other_numbers(folder: Path, tmp_path: Path) -> None:
    cells = []
    for seed in range(2):
        picture(seed).save(tmp_path / f"{seed}.png")
        place = {"column": 0, "weight": 0.0, "prompt": 0, "seed": seed}
        cells.append({**place, "picture": str(tmp_path / f"{seed}.png")})
    groups = [{"column": 0, "weight": 0.0, "numbers": {}}]
    grid = {"prompts": [{"text": "a hat", "trigger": True}], "cells": cells, "groups": groups}
    add_picture_numbers(grid, [], clip=folder, cache=tmp_path / "cache.json")
    scores = [plain_score(folder, picture(seed), "a hat") for seed in range(2)]
    assert [cell["numbers"] for cell in cells] == [{"clip": pytest.approx(score, abs=1e-5)} for score in scores]
    numbers = groups[0]["numbers"]
    assert numbers["clip"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert numbers["clip_sd"] == pytest.approx(np.std(scores, ddof=1), abs=1e-5)
    add_picture_numbers(grid, [], cache=tmp_path / "cache.json")
    assert numbers == {}
