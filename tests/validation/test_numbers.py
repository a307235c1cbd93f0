"""Held-out losses of a run's files, against the loss computed from merged weights without the package's loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer.config import TrainConfig
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.errors import InputError
from lora_trainer.hosts.base import Host, LoadedModel, Session
from lora_trainer.runs import Run
from lora_trainer.training.losses import keyed_noise
from lora_trainer.validation.numbers import HeldOutLoss, best, held_out_losses
from tests.network.plain import merged
from tests.runs_helpers import document, make_jobs, run_to_end

LEVELS = 2
CHANGES = {
    "training__steps": 4,
    "training__text_lr": 1e-2,
    "training__seed": 5,
    "save__every_steps": 2,
    "save__every_epochs": 0,
    "save__precision": "fp32",
    "validation__share": 0.4,
    "validation__timesteps": LEVELS,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained UNet and text encoder, and wrote two files."""
    run = run_to_end(tmp_path_factory.mktemp("numbers"), **CHANGES)
    assert len(run.manifest["files"]) == 2
    return run


@pytest.fixture
def host(run: Run) -> Host:
    return make_jobs(run.folder.parent.parent).host


@pytest.fixture
def session(host: Host, run: Run) -> Iterator[Session]:
    with host.session(run.config()) as held:
        yield held


def files(run: Run) -> list[Path]:
    return [Path(entry["path"]) for entry in run.manifest["files"]]


def kept_pictures(run: Run) -> list[Path]:
    """What the run's own steps never saw; tests/dataset/test_plan.py holds the split to its promises."""
    config = run.config()
    return [i.path for i in held_out(scan(config.data).items, config.validation.share, config.training.seed)[1]]


@torch.no_grad()
def plain_loss(model: LoadedModel, pictures: list[Path], lora: Path | None, weight: float) -> float:
    """mean ‖ε − ε_θ(√ᾱ x + √(1−ᾱ) ε, t, caption)‖² with the LoRA added to the weights."""
    tensors = load_file(lora) if lora else {}
    unet = merged(model.unet, tensors, "lora_unet_", weight).eval()
    text = merged(model.text.model, tensors, "lora_te_", weight).eval()
    losses = []
    for index, path in enumerate(pictures):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
        latent = model.encode(torch.from_numpy(pixels)[None])[0]
        caption = "zorp, " + path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        ids = model.text.tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = text(ids).last_hidden_state
        for level in range(LEVELS):
            t = int((level + 0.5) * 1000 / LEVELS)
            alpha = float(model.alphas_cumprod[t])
            noise = keyed_noise(latent.shape, 0.0, "validation", index, t)
            noisy = math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * noise
            guess = unet(noisy[None], torch.tensor([t]), states).sample[0]
            losses.append(float(((guess - noise).double() ** 2).mean()))
    return sum(losses) / len(losses)


def test_each_number_is_the_loss_of_the_weights_with_the_lora_added(host: Host, session: Session, run: Run) -> None:
    weights, seen = (1.0, -0.5), []
    found = held_out_losses(host, session, run.config(), files(run), weights, lambda *count: seen.append(count))
    assert seen == [(n, 5) for n in range(1, 6)]
    with host.session(run.config()) as fresh:
        pictures = kept_pictures(run)
        assert len(pictures) == 2
        wanted = [HeldOutLoss(None, 0.0, plain_loss(fresh.model, pictures, None, 0.0))]
        for file in files(run):
            wanted += [HeldOutLoss(str(file), w, plain_loss(fresh.model, pictures, file, w)) for w in weights]
    assert [(e.file, e.weight) for e in found] == [(e.file, e.weight) for e in wanted]
    assert [e.loss for e in found] == pytest.approx([e.loss for e in wanted], rel=1e-4)
    assert len({round(e.loss, 6) for e in found}) == len(found)  # or the comparison above would say nothing


def test_the_numbers_are_those_that_the_run_noted(host: Host, session: Session, run: Run) -> None:
    base, _, last = held_out_losses(host, session, run.config(), files(run), [1.0])
    assert base.loss == pytest.approx(run.manifest["validation"]["base"], rel=1e-5)
    assert last.loss == pytest.approx(run.manifest["files"][-1]["metrics"]["validation"], rel=1e-5)


def test_the_model_is_used_in_turns_only_and_left_as_it_was(
    host: Host, session: Session, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [False]
    turn = session.turn
    before = {name: value.clone() for name, value in session.model.unet.state_dict().items()}

    @contextmanager
    def watched() -> Iterator[None]:
        with turn():
            inside[0] = True
            yield
            inside[0] = False

    def check(*_: object) -> None:
        assert inside[0], "the model was used outside of a turn"

    monkeypatch.setattr(session, "turn", watched)
    hook = session.model.unet.register_forward_pre_hook(check)
    held_out_losses(host, session, run.config(), files(run), [1.0])
    hook.remove()
    with host.session(run.config()) as fresh:
        after = fresh.model.unet.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_that_kept_no_pictures_aside_is_one_sentence(host: Host, session: Session, run: Run) -> None:
    config = run.config().with_values({"validation.share": 0})
    with pytest.raises(InputError, match="kept no pictures aside") as caught:
        held_out_losses(host, session, config, files(run), [1.0])
    assert caught.value.field == "validation.share"


def test_a_missing_file_is_one_sentence(host: Host, session: Session, run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        held_out_losses(host, session, run.config(), [tmp_path / "gone.safetensors"], [1.0])


def test_a_file_of_another_kind_of_checkpoint_is_one_sentence(
    host: Host, session: Session, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({k.replace("lora_te_", "lora_te1_"): v for k, v in load_file(files(run)[0]).items()}, path)
    with pytest.raises(InputError, match="another kind of checkpoint"):
        held_out_losses(host, session, run.config(), [path], [1.0])


def test_pictures_that_are_gone_are_one_sentence(host: Host, session: Session, run: Run, tmp_path: Path) -> None:
    config = TrainConfig.from_dict({**document(tmp_path), "data": {"folder": str(tmp_path / "gone")}})
    with pytest.raises(InputError, match="does not exist"):
        held_out_losses(host, session, config, files(run), [1.0])


_losses = st.floats(allow_infinity=True, allow_nan=True)


@given(st.lists(_losses, min_size=1, max_size=8))
def test_the_best_is_the_first_of_the_lowest_and_never_one_that_is_no_number(losses: list[float]) -> None:
    entries = [HeldOutLoss(str(index), 1.0, loss) for index, loss in enumerate(losses)]
    numbers = [loss for loss in losses if not math.isnan(loss)]
    chosen = best(entries)
    if numbers:
        assert chosen.loss == min(numbers)
        assert chosen.file == str(losses.index(min(numbers)))
    else:
        assert chosen is entries[0]


def test_a_number_as_plain_values() -> None:
    assert HeldOutLoss("a", 0.5, 0.25).to_dict() == {"file": "a", "weight": 0.5, "loss": 0.25}
