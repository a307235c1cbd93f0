from __future__ import annotations

import random

import pytest
import torch

from lora_trainer.core.randomness import global_rng, key_seed, python_rng, torch_rng


@pytest.mark.parametrize(
    ("key", "seed"),
    [((), 2847183694713211083), (("a",), 3136151050186550259), ((42, "epoch", 1), 6658205457482721459)],
)
def test_seed_of_a_key_never_changes(key: tuple[object, ...], seed: int) -> None:
    assert key_seed(*key) == seed


def test_generators_never_change() -> None:
    assert python_rng(42, "timestep", 7, 0).randrange(1000) == 185
    noise = torch.randn(4, generator=torch_rng(42, "noise", 1, 0))
    assert noise.tolist() == pytest.approx([-0.649808, -1.010955, 1.391209, 1.461104], abs=1e-5)


def test_different_keys_differ() -> None:
    keys = [(1, "a"), (1, "b"), (2, "a"), ("1", "a"), (1, ("a",)), ("1, 'a'",)]
    assert len({key_seed(*key) for key in keys}) == len(keys)


def test_keyed_generators_leave_the_global_ones_alone() -> None:
    before = random.getstate(), torch.random.get_rng_state()
    python_rng(1).random()
    torch.randn(3, generator=torch_rng(1))
    with global_rng(torch.device("cpu"), 1):
        torch.randn(3)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_global_generator_is_seeded_inside_and_restored_even_after_an_error() -> None:
    before = torch.random.get_rng_state()
    drawn: list[torch.Tensor] = []

    def fail() -> None:
        with global_rng(torch.device("cpu"), 1, "dropout"):
            drawn.append(torch.rand(2))
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.random.get_rng_state(), before)
