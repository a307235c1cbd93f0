from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_trainer.model.families import SD1, CheckpointInfo, is_same_checkpoint
from lora_trainer.model.fingerprint import sampled_fingerprint

SHAPES = {"conv": (8, 6, 3, 3), "linear": (70, 33), "bias": (33,), "scale": (), "one": (1, 1), "long": (50_000,)}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}


def test_it_is_the_same_in_any_type_layout_and_order() -> None:
    made = weights()
    expected = sampled_fingerprint(made)
    assert sampled_fingerprint(dict(reversed(list(made.items())))) == expected
    assert sampled_fingerprint({name: tensor.half() for name, tensor in made.items()}) == expected
    assert sampled_fingerprint({name: tensor.half().float() for name, tensor in made.items()}) == expected
    other = dict(made, conv=made["conv"].to(memory_format=torch.channels_last), linear=made["linear"].T.contiguous().T)
    assert not other["linear"].is_contiguous()
    assert sampled_fingerprint(other) == expected
    assert sampled_fingerprint({name: torch.nn.Parameter(tensor) for name, tensor in made.items()}) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_counts(name: str) -> None:
    made = weights()
    assert sampled_fingerprint({**made, name: made[name] + 0.01}) != sampled_fingerprint(made)
    assert sampled_fingerprint({k: v for k, v in made.items() if k != name}) != sampled_fingerprint(made)
    assert sampled_fingerprint(weights(1)) != sampled_fingerprint(made)


def test_fp8_weights_have_one_too() -> None:
    made = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights().items()}
    assert sampled_fingerprint(made) == sampled_fingerprint({name: tensor.half() for name, tensor in made.items()})


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"sha256": "a"}, {"sha256": "a"}, True),
        ({"sha256": "a"}, {"sha256": "b"}, False),
        ({"sha256": "a", "fingerprint": "x"}, {"sha256": "a", "fingerprint": "y"}, True),
        ({"sha256": "", "fingerprint": "x"}, {"sha256": "b", "fingerprint": "x"}, True),
        ({"sha256": "", "fingerprint": "x"}, {"sha256": "", "fingerprint": "y"}, False),
        ({"sha256": "", "name": "m"}, {"sha256": "", "name": "m"}, None),
        ({"sha256": "a"}, {"fingerprint": "x"}, None),
        ({}, {}, None),
    ],
)
def test_unknown_is_not_equal(first: dict[str, str], second: dict[str, str], same: bool | None) -> None:
    assert is_same_checkpoint(first, second) is same
    assert is_same_checkpoint(second, first) is same


def test_pictures_of_checkpoints_without_a_hash_are_kept_apart() -> None:
    info = CheckpointInfo("model.safetensors", "", "12345678", SD1, "epsilon", "", "sampled:x")
    assert info.key != replace(info, fingerprint="sampled:y").key
    assert replace(info, sha256="ab").key == "ab"
    assert info.to_dict() == {"name": "model.safetensors", "sha256": "", "fingerprint": "sampled:x", "family": "SD1"}
