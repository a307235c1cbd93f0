from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.operations import Counted
from lora_trainer.config.train import OPTIMIZERS, SCHEDULERS
from lora_trainer.core.errors import InputError
from lora_trainer.training import optimizers
from lora_trainer.training.optimizers import (
    KINDS,
    TOGETHER,
    Group,
    OptimizerKind,
    build_optimizer,
    build_schedule,
    keep_together,
    learning_rates,
    require_installed,
    warmup_steps,
)
from tests.helpers import config

INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(not kind.installed, reason=f"{kind.package} is not installed"))
    for name, kind in KINDS.items()
]


def groups(unet: float = 0.1, text: float = 0.01) -> list[Group]:
    made = [Group("unet", [nn.Parameter(torch.tensor([[3.0, -2.0]]))], unet)]
    return [*made, Group("text", [nn.Parameter(torch.tensor([[1.0], [4.0]]))], text)]


def descend(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> list[float]:
    """Take steps on Σ x²; returns its values."""
    values = []
    for _ in range(steps):
        loss = torch.stack([(p**2).sum() for p in parameters]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_every_choice_is_known() -> None:
    assert tuple(KINDS) == OPTIMIZERS


@pytest.mark.parametrize("name", INSTALLED)
def test_optimizer_goes_downhill(name: str) -> None:
    rate = 1.0 if name == "Prodigy" else 0.05
    made = groups(rate, rate)
    optimizer = build_optimizer(config(training__optimizer=name, training__unet_lr=rate, training__text_lr=rate), made)
    before = [g.parameters[0].detach().clone() for g in made]
    values = descend(optimizer, [g.parameters[0] for g in made], 40)
    assert values[-1] < values[0]
    assert all(g.parameters[0].norm() < b.norm() for g, b in zip(made, before, strict=True))
    assert [g["name"] for g in optimizer.param_groups] == ["unet", "text"]


def test_groups_have_their_own_rates() -> None:
    made = groups(0.1, 0.001)
    optimizer = build_optimizer(config(training__optimizer_args={"weight_decay": 0}), made)
    before = [g.parameters[0].detach().clone() for g in made]
    descend(optimizer, [g.parameters[0] for g in made], 1)
    moved = [(g.parameters[0] - b).abs().max().item() for g, b in zip(made, before, strict=True)]
    assert moved == pytest.approx([0.1, 0.001], rel=1e-3)
    assert learning_rates(optimizer) == {"unet": 0.1, "text": 0.001}


def test_self_adjusting_rate_is_shown_with_its_scale() -> None:
    optimizer = build_optimizer(config(), groups())
    optimizer.param_groups[0]["d"] = 0.5
    assert learning_rates(optimizer) == {"unet": 0.05, "text": 0.01}


def test_arguments_are_passed_on_and_go_before_ours() -> None:
    usual = build_optimizer(config(), groups())
    assert usual.param_groups[0]["weight_decay"] == 0.01
    arguments = {"weight_decay": 0.3, "betas": [0.8, 0.9]}
    optimizer = build_optimizer(config(training__optimizer_args=arguments), groups())
    assert optimizer.param_groups[1]["weight_decay"] == 0.3
    assert tuple(optimizer.param_groups[1]["betas"]) == (0.8, 0.9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"no_such_argument": 1},
        {"lr": 0.1},
        {"params": 1},
        {"betas": 5},
        {"betas": [0.9]},
        {"betas": [2.0, 0.9]},
        {"weight_decay": "much"},
        {"weight_decay": -1},
        {"fused": True, "foreach": True},
        {"eps": []},
    ],
    ids=str,
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"^training\.optimizer_args: AdamW does not accept these \(") as caught:
        build_optimizer(config(training__optimizer_args=arguments), groups())
    assert caught.value.field == "training.optimizer_args"


def test_missing_optimizer_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.KINDS, "Lion", OptimizerKind("no_such_module.optim", "Lion", "lion-pytorch"))
    for use in (
        lambda: require_installed("Lion"),
        lambda: build_optimizer(config(training__optimizer="Lion"), groups()),
    ):
        with pytest.raises(InputError, match="Lion is not installed; run “pip install lion-pytorch”") as caught:
            use()
        assert caught.value.field == "training.optimizer"


@pytest.mark.parametrize("failure", ["import no_such_module_either", "raise RuntimeError('CUDA is needed')", "pass"])
def test_optimizer_that_cannot_be_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    (tmp_path / "broken_lion.py").write_text(failure)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(optimizers.KINDS, "Lion", OptimizerKind("broken_lion", "Lion", "lion-pytorch"))
    with pytest.raises(InputError, match=r"^training\.optimizer") as caught:
        build_optimizer(config(training__optimizer="Lion"), groups())
    assert "Lion" in str(caught.value)


def test_what_every_host_has_needs_no_command() -> None:
    assert [name for name, kind in KINDS.items() if not kind.package] == ["AdamW", "Adafactor"]
    assert KINDS["AdamW"].installed
    assert KINDS["AdamW"].command == ""


# ------------------------------------------------------------------ schedules
TOTAL = 40
Factor = Callable[[float, int], float]  # progress behind the warm-up, cycles → share of the rate
SHAPES: dict[str, Factor] = {
    "constant": lambda p, n: 1.0,
    "constant_with_warmup": lambda p, n: 1.0,
    "linear": lambda p, n: 1 - p,
    "cosine": lambda p, n: 0.5 * (1 + math.cos(math.pi * p)),
    "cosine_with_restarts": lambda p, n: 0.5 * (1 + math.cos(math.pi * (n * p % 1))),
    "polynomial": lambda p, n: (1e-7 + (0.1 - 1e-7) * (1 - p) ** 2) / 0.1,
}


def test_every_schedule_is_tested() -> None:
    assert tuple(SHAPES) == SCHEDULERS


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("warmup", "cycles"), [(0, 1), (10, 1), (4, 3)])
def test_rate_follows_its_schedule(name: str, warmup: int, cycles: int) -> None:
    settings = config(training__scheduler=name, training__scheduler_cycles=cycles, training__scheduler_power=2.0)
    optimizer = build_optimizer(settings, groups())
    schedule = build_schedule(settings, optimizer, warmup, TOTAL)
    for step in range(TOTAL):
        behind = (step - warmup) / (TOTAL - warmup)
        rising = step < warmup and name != "constant"
        share = step / warmup if rising else SHAPES[name](behind, cycles)
        assert learning_rates(optimizer) == pytest.approx({"unet": 0.1 * share, "text": 0.01 * share}, abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0, 100, 0), (0.05, 100, 5), (0.999, 1000, 999), (1, 100, 1), (30, 100, 30), (7.9, 100, 7)],
)
def test_warmup_is_a_share_or_a_number_of_steps(warmup: float, total: int, steps: int) -> None:
    assert warmup_steps(config(training__warmup=warmup), total) == steps


def many(count: int = 6) -> list[Group]:
    torch.manual_seed(4)
    return [Group(name, [nn.Parameter(torch.randn(5, 3)) for _ in range(count)], 0.1) for name in ("unet", "text")]


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.3, "betas": [0.8, 0.95], "eps": 1e-6}])
def test_adamw_together_learns_what_its_paper_says(changes: dict[str, object]) -> None:
    """Loshchilov & Hutter (2019), algorithm 2, in float64."""
    made = many()
    optimizer = build_optimizer(config(training__optimizer_args=changes), made)
    given = {"weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, **changes}
    decay, (b1, b2), eps = given["weight_decay"], given["betas"], given["eps"]
    parameters = [p for group in made for p in group.parameters]
    wanted = [p.detach().double() for p in parameters]
    first, second = [torch.zeros_like(w) for w in wanted], [torch.zeros_like(w) for w in wanted]
    for t in range(1, 5):
        for index, parameter in enumerate(parameters):
            gradient = torch.sin(3 * wanted[index] + t)
            parameter.grad = gradient.float()
            first[index] = b1 * first[index] + (1 - b1) * gradient
            second[index] = b2 * second[index] + (1 - b2) * gradient**2
            root = (second[index] / (1 - b2**t)).sqrt() + eps
            wanted[index] = wanted[index] * (1 - 0.1 * decay) - 0.1 * first[index] / (1 - b1**t) / root
        optimizer.step()
    for parameter, exact in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.detach().double(), exact, rtol=1e-5, atol=1e-6)


def test_adamw_takes_all_parameters_together() -> None:
    counted = {}
    for count in (2, 20):
        made = many(count)
        optimizer = build_optimizer(config(), made)
        descend(optimizer, [p for group in made for p in group.parameters], 1)
        with Counted() as operations:
            optimizer.step()
        counted[count] = sum(operations.names.values())
    assert counted[20] == counted[2]


def test_where_not_all_can_be_taken_in_one_operation_a_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(torch.optim.AdamW):  # as torch 2.1 has it on a CPU
        def __init__(self, parameters: object, fused: bool | None = None, **arguments: object) -> None:
            super().__init__(parameters, fused=fused, **arguments)
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of CUDA")

    monkeypatch.setattr(torch.optim, "AdamW", Older)
    made = many()
    optimizer = build_optimizer(config(), made)
    assert {(group["foreach"], group["fused"]) for group in optimizer.param_groups} == {(True, None)}
    assert [group["params"] for group in optimizer.param_groups] == [group.parameters for group in made]


@pytest.mark.parametrize("chosen", [{"foreach": True}, {"fused": False}, {"foreach": False, "fused": False}])
def test_what_a_person_says_of_it_is_done(chosen: dict[str, bool]) -> None:
    group = build_optimizer(config(training__optimizer_args=chosen), many()).param_groups[0]
    assert {name: group[name] for name in chosen} == chosen


def test_a_state_from_elsewhere_goes_on_in_this_machines_way() -> None:
    """As of the version before, or of a card: the numbers are taken over, the way of computing is not."""
    made = many()
    parameters = [p for group in made for p in group.parameters]
    elsewhere = torch.optim.AdamW([{"params": g.parameters, "lr": g.lr, "name": g.name} for g in made], foreach=False)
    descend(elsewhere, parameters, 2)
    optimizer = build_optimizer(config(), made)
    own = [{name: group.get(name) for name in TOGETHER} for group in optimizer.param_groups]
    optimizer.load_state_dict(keep_together(elsewhere.state_dict(), optimizer))
    assert [{name: group.get(name) for name in TOGETHER} for group in optimizer.param_groups] == own
    assert all(torch.equal(optimizer.state[p]["exp_avg"], elsewhere.state[p]["exp_avg"]) for p in parameters)
    descend(optimizer, parameters, 1)
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
