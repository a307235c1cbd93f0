"""What a run will take, measured beforehand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.training import footprint, preflight, trainer
from tests.runs_helpers import document, make_jobs

COMPUTED = footprint.expected


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], int]], None]:
    """Arithmetic takes seconds, and its figure is told in its place: bytes by the batch size."""

    def tell(size: Callable[[int], int]) -> None:
        def expected(model: object, precision: str, make: Callable[..., object], step: object) -> footprint.Footprint:
            config = make.__closure__[0].cell_contents  # type: ignore[attr-defined]
            return footprint.Footprint(forward=size(config.training.batch_size))

        monkeypatch.setattr(footprint, "expected", expected)

    tell(lambda batch: 1000 * batch)
    return tell


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that steps were done with."""
    batches: list[int] = []
    steps = preflight._steps

    def noted(config: TrainConfig, *rest: object) -> float:
        batches.append(config.training.batch_size)
        return steps(config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preflight, "_steps", noted)
    return batches


def measure(root: Path, **changes: object) -> preflight.Estimate:
    return make_jobs(root).measure(TrainConfig.from_dict(document(root, **changes)))


def test_steps_and_time_are_those_of_the_run(tmp_path: Path) -> None:
    found = measure(tmp_path, training__steps=7)
    assert (found.steps, found.fits, found.changes) == (7, True, {})
    assert found.step_seconds is not None
    assert found.seconds == pytest.approx(7 * found.step_seconds)
    assert found.needed is not None
    assert found.expected == 2000 <= found.needed < found.free


def test_memory_that_the_process_uses_again_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_resident", lambda: 10**9)  # grows by nothing: all of it is taken from its store
    assert measure(tmp_path).needed == 2000


@pytest.mark.parametrize("changes", [{"epochs": 2, "warmup": 1000}, {"scheduler": "constant", "warmup": 0.1}])
def test_a_warmup_that_cannot_be_done_is_said(tmp_path: Path, changes: dict[str, object]) -> None:
    wanted = {"steps": 0, "scheduler": "cosine", **changes}
    with pytest.raises(InputError, match="warm-up") as caught:
        measure(tmp_path, **{f"training__{key}": value for key, value in wanted.items()})
    assert caught.value.field == "training.warmup"


def test_nothing_is_written_and_the_model_is_as_before(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    config = TrainConfig.from_dict(document(tmp_path, training__text_lr=1e-4))
    with jobs.host.session(ModelRequest.of(config)) as session:
        before = [p.clone() for p in session.model.unet.parameters()]
    jobs.measure(config)
    with jobs.host.session(ModelRequest.of(config)) as session:
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


def test_more_than_what_is_free_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: Callable[[Callable[[int], int]], None]
) -> None:
    computed(lambda batch: 1)
    monkeypatch.setattr(preflight._Memory, "_free", lambda self: 1)
    found = measure(tmp_path)
    assert not found.fits
    assert found.step_seconds is not None


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        measure(tmp_path, data__folder=str(tmp_path / "no"))


# ------------------------------------------------------------------ by arithmetic
def test_what_is_expected_is_computed_from_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "expected", COMPUTED)
    one, two = (measure(tmp_path, training__batch_size=batch).expected for batch in (1, 2))
    assert one is not None
    assert two is not None
    assert 1e6 < one < two < 2 * one


def test_what_is_far_too_much_is_not_tried(
    tmp_path: Path, computed: Callable[[Callable[[int], int]], None], tried: list[int]
) -> None:
    computed(lambda batch: 10**15 if batch > 1 else 1000)
    found = measure(tmp_path, training__batch_size=3, training__accumulate=2)
    assert (found.fits, found.changes) == (True, {"training.batch_size": 1, "training.accumulate": 6})
    assert found.expected == 1000
    assert set(tried) == {1}


def test_nothing_is_tried_when_all_is_far_too_much(
    tmp_path: Path, computed: Callable[[Callable[[int], int]], None], tried: list[int]
) -> None:
    computed(lambda batch: 10**15)
    found = measure(tmp_path)
    assert (found.fits, found.needed, found.expected) == (False, None, 10**15)
    assert (found.step_seconds, found.seconds) == (None, None)
    assert tried == []


@pytest.mark.parametrize(
    ("device", "expected", "too_much"),
    [("cuda", 109, False), ("cuda", 111, True), ("cpu", 109, False), ("cpu", 111, True)],
)
def test_how_much_is_far_too_much(device: str, expected: int, too_much: bool) -> None:
    memory = SimpleNamespace(device=torch.device(device), free=100)
    assert preflight._is_far_beyond(expected, memory) is too_much  # type: ignore[arg-type]


def test_without_arithmetic_it_is_measured(
    tmp_path: Path,
    computed: Callable[[Callable[[int], int]], None],
    tried: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(batch: int) -> int:
        raise NotImplementedError("no fake tensors")

    computed(refused)
    with caplog.at_level(logging.WARNING):
        found = measure(tmp_path)
    assert (found.fits, found.expected) == (True, None)
    assert tried == [2]
    assert "no fake tensors" in caplog.text


def test_a_persons_mistake_is_said_by_arithmetic_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "expected", COMPUTED)
    with pytest.raises(InputError, match="optimizer_args"):
        measure(tmp_path, training__optimizer_args={"no_such": 1})


def test_an_optimizer_that_works_on_addresses_is_computed_as_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(preflight, "trainer_on_noise", lambda config, *rest: seen.append(config.training.optimizer))
    monkeypatch.setattr(
        footprint, "expected", lambda model, precision, make, step: make(None, "") or footprint.Footprint()
    )
    jobs = make_jobs(tmp_path)
    config = TrainConfig.from_dict(document(tmp_path, training__optimizer="AdamW8bit"))
    with jobs.host.session(ModelRequest.of(config)) as session:
        preflight._expected(config, [], None, None, session.model)  # type: ignore[arg-type]
    assert seen == ["AdamW"]
