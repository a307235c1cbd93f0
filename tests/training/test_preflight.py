"""What a run will take, measured beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.config import TrainConfig
from lora_trainer.errors import InputError
from lora_trainer.training import preflight, trainer
from tests.runs_helpers import document, make_jobs


def measure(root: Path, **changes: object) -> preflight.Estimate:
    return make_jobs(root).measure(TrainConfig.from_dict(document(root, **changes)))


def test_steps_and_time_are_those_of_the_run(tmp_path: Path) -> None:
    found = measure(tmp_path, training__steps=7)
    assert (found.steps, found.fits, found.changes) == (7, True, {})
    assert found.step_seconds is not None
    assert found.seconds == pytest.approx(7 * found.step_seconds)
    assert 0 < found.needed < found.free


def test_nothing_is_written_and_the_model_is_as_before(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    config = TrainConfig.from_dict(document(tmp_path, training__text_lr=1e-4))
    with jobs.host.session(config) as session:
        before = [p.clone() for p in session.model.unet.parameters()]
    jobs.measure(config)
    with jobs.host.session(config) as session:
        assert not any("lora" in name for name, _ in session.model.unet.named_parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, session.model.unet.parameters(), strict=True))
    assert {p.name for p in tmp_path.iterdir()} == {"pictures"}


def test_the_largest_batch_is_measured_and_the_usual_one_counted(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    config = TrainConfig.from_dict(document(tmp_path, training__batch_size=4))  # five pictures: a batch of 4, one of 1
    dataset = jobs.check(config)
    plan = preflight.Plan(dataset.items, config)
    step, share = preflight._largest(plan, dataset.items)
    assert step.images == 4
    assert share == pytest.approx(4 / 2.5)


class Card:
    """A card on which no more than some pictures fit at once, and only with some settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: str) -> None:
        gradients = trainer.Trainer._gradients

        def tried(self: trainer.Trainer, step: object) -> torch.Tensor:
            config = self._config.training
            enough = {
                "one picture": config.batch_size == 1,
                "checkpointing": config.batch_size == 1 and config.checkpointing,
                "no text": not config.text_lr and config.checkpointing,
                "nothing": False,
            }
            if not enough[fits]:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return gradients(self, step)

        monkeypatch.setattr(trainer.Trainer, "_gradients", tried)


@pytest.mark.parametrize(
    ("fits", "changes"),
    [
        ("one picture", {"training.batch_size": 1, "training.accumulate": 6}),
        ("checkpointing", {"training.batch_size": 1, "training.accumulate": 6, "training.checkpointing": True}),
        (
            "no text",
            {
                "training.batch_size": 1,
                "training.accumulate": 6,
                "training.checkpointing": True,
                "training.text_lr": 0.0,
            },
        ),
    ],
)
def test_settings_that_fit_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: str, changes: dict[str, object]
) -> None:
    Card(monkeypatch, fits)
    found = measure(tmp_path, training__batch_size=3, training__accumulate=2, training__text_lr=1e-4)
    assert (found.fits, found.changes) == (True, changes)


def test_it_is_said_when_nothing_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, "nothing")
    found = measure(tmp_path)
    assert not found.fits
    assert (found.step_seconds, found.seconds) == (None, None)


def test_more_than_what_is_free_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight._Memory, "_free", lambda self: 1)
    found = measure(tmp_path)
    assert not found.fits
    assert found.step_seconds is not None


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        measure(tmp_path, data__folder=str(tmp_path / "no"))
