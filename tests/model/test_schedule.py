from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_trainer.model.schedule import ldm_alphas, unrounded

YAML = {"model": {"params": {}}}


def test_the_schedule_is_linear_in_the_root_of_beta() -> None:
    """LDM's make_beta_schedule("linear"), in numpy; SD1's last ᾱ is 0.00466."""
    found = ldm_alphas({"model": {"params": {}}})
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(found.numpy(), np.cumprod(1 - betas), rtol=1e-5)
    assert float(found[-1]) == pytest.approx(0.00466, abs=1e-5)
    short = ldm_alphas({"model": {"params": {"timesteps": 10, "linear_start": "0.1", "linear_end": 0.1}}})
    np.testing.assert_allclose(short.numpy(), 0.9 ** np.arange(1, 11), rtol=1e-5)


def test_a_schedule_that_went_through_half_precision_is_exact_again_and_no_other_is_changed() -> None:
    exact = ldm_alphas(YAML)
    assert torch.equal(unrounded(exact.half().float(), YAML), exact)
    other = exact * 0.99
    for own in (exact, other, other.half().float(), exact[:10].half().float()):
        assert torch.equal(unrounded(own, YAML), own)
