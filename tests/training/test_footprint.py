"""Peak memory by arithmetic, against the same step on real tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.plan import Plan
from lora_trainer.dataset.scan import scan
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.training import footprint, preflight
from lora_trainer.training.footprint import Footprint, Tracker, track
from tests.runs_helpers import document
from tests.training.bench import own_weights

KB = 1024
TOLERANCE = 0.003
"""None on today's torch; in 2.1 some operations of the stand-in keep a few small tensors more."""


class PreparedRun:
    """A step of the small checkpoint, for real or not."""

    def __init__(self, model: LoadedModel, root: Path, **changes: object) -> None:
        self.model = model
        config = TrainConfig.from_dict(document(root, **changes))
        items = scan(config.data).items
        plan = Plan(items, config)
        largest, _ = preflight._largest(plan, items)
        self.make: Callable[[LoadedModel, str], Any] = lambda view, precision: preflight.trainer_on_noise(
            config, items, plan, view, precision
        )
        self.step: Callable[[Any], object] = lambda trainer: trainer.step(largest)

    def expected(self, precision: str = "fp32") -> Footprint:
        return footprint.expected(self.model, precision, self.make, self.step)

    def real(self, precision: str = "fp32") -> Footprint:
        return track(lambda: self.make(self.model, precision), self.step)


class Allocated(TorchDispatchMode):
    """Bytes of new tensors that have memory."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if type(value) is torch.Tensor and value.device.type != "meta":
                self.bytes += value.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("fp32", {}),
        ("bf16", {"training__text_lr": 1e-4, "network__targets": "attention+conv"}),
        ("fp32", {"training__checkpointing": True, "training__batch_size": 3}),
    ],
    ids=["plain", "bf16, text and convolutions", "checkpointing"],
)
def test_it_is_what_the_same_step_takes_on_real_tensors(
    model: LoadedModel, tmp_path: Path, precision: str, changes: dict[str, object]
) -> None:
    work = PreparedRun(model, tmp_path, **changes)
    expected, real = work.expected(precision), work.real(precision)
    assert expected.peak == pytest.approx(real.peak, rel=TOLERANCE)
    assert (expected.adapters, expected.optimizer) == (real.adapters, real.optimizer)


def test_fp16_is_computed_where_the_cpu_has_none(model: LoadedModel, tmp_path: Path) -> None:
    for part in (model.unet, model.text[0].model):
        own_weights(part, torch.float16)
    assert PreparedRun(model, tmp_path).expected("fp16").peak < 0.7 * PreparedRun(model, tmp_path).expected("fp32").peak


def test_it_allocates_nothing_and_leaves_the_model_as_it_is(model: LoadedModel, tmp_path: Path) -> None:
    work = PreparedRun(model, tmp_path, training__text_lr=1e-4, training__checkpointing=True)
    parts = (model.unet, model.text[0].model)
    before = [(name, p, p.data_ptr(), p._version) for part in parts for name, p in part.named_parameters()]
    random = torch.get_rng_state()
    allocated = Allocated()
    with allocated:
        work.expected()
    assert allocated.bytes == 0
    after = [(name, p, p.data_ptr(), p._version) for part in parts for name, p in part.named_parameters()]
    assert [(n, id(p), *rest) for n, p, *rest in after] == [(n, id(p), *rest) for n, p, *rest in before]
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.unet.is_gradient_checkpointing
    assert not model.unet.training


def test_a_model_without_memory_is_enough(model: LoadedModel, tmp_path: Path) -> None:
    known = PreparedRun(model, tmp_path).expected()
    for part in (model.unet, model.text[0].model):
        own_weights(part, torch.float32)
        part.to("meta")
    assert PreparedRun(model, tmp_path).expected() == known


def test_attention_keeps_no_matrix(model: LoadedModel) -> None:
    """Of 4,096 positions, as in SD1.5 at 512²: 64 MB in fp32 a head, which no card's kernel keeps."""

    class Attention:
        def __init__(self) -> None:
            self.parameters = [torch.nn.Parameter(torch.zeros(1, 2, 4096, 8))]
            self.optimizer = torch.optim.SGD(self.parameters)

        def step(self) -> None:
            x = self.parameters[0]
            torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
            self.optimizer.step()

    with footprint.fake_tensors():
        assert track(Attention, lambda trainer: trainer.step()).peak < 5e6


# ------------------------------------------------------------------ the tracker
def test_storages_count_while_they_live_in_blocks_of_512() -> None:
    tracker = Tracker()
    with tracker:
        first = torch.zeros(100)  # 400 bytes
        view = first.view(10, 10)
        del first
        second = torch.zeros(KB)
        view += 1
        del view
        third = torch.zeros(KB)
    assert tracker.peak == {"forward": 512 + 4 * KB + 4 * KB - 512}
    assert second.shape == third.shape


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.zeros(KB)
    tracker = Tracker()
    with tracker:
        kept = [weight.view(32, 32), weight.detach(), weight.to(torch.float32)]
    assert len(kept) == 3
    assert tracker.peak == {}


def test_the_peak_is_told_by_its_parts() -> None:
    class JobQueue:
        """y = exp(w), of 4 KB."""

        def __init__(self) -> None:
            self.parameters = [torch.nn.Parameter(torch.zeros(KB))]
            self.optimizer = torch.optim.SGD(self.parameters, momentum=0.9)

        def step(self) -> None:
            self.parameters[0].exp().sum().backward()
            self.optimizer.step()

    found = track(JobQueue, lambda line: line.step())
    assert (found.adapters, found.optimizer, found.gradients) == (4 * KB, 4 * KB, 0)
    assert 8 * KB <= found.forward + found.backward <= 9 * KB  # exp(w), the loss, and the gradient being made
    assert found.peak == 8 * KB + found.forward + found.backward
