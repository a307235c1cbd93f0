from __future__ import annotations

import pytest
import torch

from lora_trainer.core.errors import InputError
from lora_trainer.model.precision import grad_scaler, resolve_precision, without_autocast

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NO_CARD = "fp16 needs a graphics card"
FP8 = "turn FP8 off"


@pytest.mark.parametrize(
    ("wanted", "device", "weights", "bf16", "result"),
    [
        ("auto", "cuda", FP16, True, "fp16"),
        ("auto", "cuda", FP16, False, "fp16"),
        ("auto", "cuda", FP32, True, "bf16"),
        ("auto", "cuda", FP32, False, "fp32"),
        ("auto", "cuda", BF16, True, "bf16"),
        ("auto", "mps", FP16, False, "fp32"),
        ("auto", "cpu", FP16, False, "fp32"),
        ("auto", "cpu", FP32, False, "fp32"),
        ("auto", "cpu", BF16, False, "bf16"),
        ("fp16", "cuda", FP16, True, "fp16"),
        ("bf16", "cuda", FP16, True, "bf16"),
        ("bf16", "cpu", FP32, False, "bf16"),
        ("fp32", "cuda", FP32, True, "fp32"),
        ("fp32", "cuda", FP16, True, "fp32"),
        ("fp32", "cpu", BF16, False, "fp32"),
        ("fp32", "cpu", FP32, False, "fp32"),
    ],
)
def test_precision_of_a_run(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, weights: torch.dtype, bf16: bool, result: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (8, 6))
    assert resolve_precision(wanted, torch.device(device), weights) == result


@pytest.mark.parametrize(
    ("wanted", "device", "weights", "sentence"),
    [
        ("fp16", "cpu", FP32, NO_CARD),
        *[(wanted, "cuda", torch.float8_e4m3fn, FP8) for wanted in ("auto", "fp16", "bf16", "fp32")],
    ],
)
def test_what_device_or_weights_cannot_do_is_said(
    wanted: str, device: str, weights: torch.dtype, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        resolve_precision(wanted, torch.device(device), weights)
    assert caught.value.field == "training.precision"


def test_bf16_that_a_card_only_imitates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer torch says that Turing has it, and computes it slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (7, 5))
    assert resolve_precision("auto", torch.device("cuda"), FP32) == "fp32"
    assert resolve_precision("bf16", torch.device("cuda"), FP32) == "bf16"


@pytest.mark.parametrize(
    ("precision", "device"), [("fp32", "cpu"), ("bf16", "cpu"), ("bf16", "cuda"), ("fp32", "cuda")]
)
def test_loss_is_scaled_for_fp16_only(precision: str, device: str) -> None:
    scaler = grad_scaler(precision, torch.device(device))
    assert not scaler.is_enabled()
    loss = torch.tensor(2.0)
    assert scaler.scale(loss) is loss
    assert scaler.state_dict() == {}


def test_without_autocast_nothing_is_cast() -> None:
    with torch.autocast("cpu", dtype=BF16), without_autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == FP32


def test_a_device_without_autocast_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(device: str, **_: object) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type 'mps'")

    monkeypatch.setattr(torch, "autocast", unknown)
    with without_autocast(torch.device("mps")):
        pass
