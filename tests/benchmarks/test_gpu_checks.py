"""The GPU checks, small and on the processor, and what they measure with."""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import learning, out_of_memory, peers, speed
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import CHECKS, MATERIAL
from benchmarks.gpu.copies import Copies
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import NOT_ON_A_CPU, Setting


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The result of the whole command."""
    folder = tmp_path_factory.mktemp("gpu")
    code = command.main(["--cpu", "--out", str(folder)])
    (path,) = folder.glob("*-gpu.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert code == 0, json.dumps(found["checks"], indent=1)[:4000]
    return found


def test_every_check_is_done_and_holds(document: dict) -> None:
    assert list(document["checks"]) == [MATERIAL.name, *(check.name for check in CHECKS)]
    assert {check["state"] for check in document["checks"].values()} == {"done"}


def test_each_check_has_its_parts(document: dict) -> None:
    parts = {name: set(check["parts"]) for name, check in document["checks"].items()}
    assert parts["learning"] >= {"fp16", "bf16", "fp32", "same seed twice", "an overflow", "view + adapter"}
    assert parts["speed"] >= {"matrix rate fp32", "time from Train", "gaps, batch 1", "synchronisations"}
    assert parts["out_of_memory"] >= {"limited: half", "limited: least", "memory given back", "one run after another"}
    assert len(parts["copies"]) == 9


def test_what_has_no_meaning_on_a_cpu_says_so(document: dict) -> None:
    checks = document["checks"]
    speed_parts = checks["speed"]["parts"]
    assert document["machine"]["driver"] == NOT_ON_A_CPU
    assert speed_parts["synchronisations"]["lines"] == NOT_ON_A_CPU
    assert speed_parts["batch 2 fp32"]["peak"] == NOT_ON_A_CPU
    assert speed_parts["batch 2 fp32"]["share_of_rate"] == NOT_ON_A_CPU
    assert checks["out_of_memory"]["parts"]["memory given back"]["after"]["allocated"] == NOT_ON_A_CPU
    assert "injected" in checks["out_of_memory"]["parts"]["limited: half"]["says"]


def test_a_refused_precision_is_told_in_its_sentence(document: dict) -> None:
    assert "fp16 needs a graphics card" in document["checks"]["learning"]["parts"]["fp16"]["refused"]


@pytest.mark.parametrize("name", ["half", "least"])
def test_each_limit_is_met_as_it_should_be(document: dict, name: str) -> None:
    found = document["checks"]["out_of_memory"]["parts"][f"limited: {name}"]
    assert ("checkpointing" in " ".join(found["said"])) is (name == "least")


# ------------------------------------------------------------------ what is measured with
@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(Setting(str(tmp_path_factory.mktemp("bench")), cpu=True))


def test_copies_of_frozen_weights_are_found() -> None:
    weight = torch.nn.Parameter(torch.randn(12, 20), requires_grad=False)
    x = torch.randn(3, 20, requires_grad=True)
    copies = Copies([weight])
    with torch.autograd.graph.saved_tensors_hooks(copies.pack, lambda tensor: tensor):
        F.linear(x, weight)
        assert (copies.count, copies.bytes) == (0, 0)
        F.linear(x.bfloat16(), weight.bfloat16())
        F.linear(x, weight.t().contiguous().t())
    assert (copies.count, copies.bytes) == (2, 12 * 20 * (2 + 4))


def test_gaps_are_counted_between_kernels_that_overlap() -> None:
    spans = [(0, 10, "kernel"), (5, 10, "kernel"), (25, 5, "gpu_memcpy"), (16, 100, "cpu_op")]
    events = [{"ts": start, "dur": length, "cat": kind} for start, length, kind in spans]
    found = speed.timeline([*events, {"ph": "M"}], ("kernel", "gpu_memcpy"))
    assert found == pytest.approx({"count": 3, "busy": 20e-6, "gaps": 10e-6, "gap_share": 1 / 3, "longest_gap": 10e-6})
    assert speed.timeline([], ("kernel",))["count"] == 0


def test_a_synchronisation_is_named_by_our_line(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = traceback.FrameSummary(str(speed.ROOT / "lora_trainer" / "training" / "trainer.py"), 7, "step")
    monkeypatch.setattr(traceback, "extract_stack", lambda: [frame])
    with speed.collected("synchronizing") as lines:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert dict(lines) == {"lora_trainer/training/trainer.py:7": 1}


def test_a_run_far_from_the_cpus_does_not_hold() -> None:
    wanted = {"before": 0.4, "after": 0.3, "gain": 0.1}
    near = learning.compared({"before": 0.4, "after": 0.301}, wanted)
    far = learning.compared({"before": 0.4, "after": 0.38}, wanted)
    assert all(near["holds"].values())
    assert not any(far["holds"].values())
    assert "holds" not in learning.compared({"before": 0.4, "after": 0.3}, {})


@pytest.mark.parametrize("identical", [True, False])
def test_files_that_differ_are_tried_with_deterministic_kernels(
    identical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Learner:
        setting = Setting("")

        def learn(self, name: str, precision: str) -> dict:
            return {"sha256": "one", "after": 0.5}

    monkeypatch.setattr(learning, "_from_child", lambda check, setting, environment: {"identical": identical})
    found = learning.twice(Learner(), "fp16", {"sha256": "another", "after": 0.4})  # type: ignore[arg-type]
    assert found["identical"] is False
    assert found["holds"] == {"the reason is known": identical}


def test_runs_with_deterministic_kernels_are_identical(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json")
    try:
        learning.determined(Setting(str(tmp_path), cpu=True), notes)
    finally:
        torch.use_deterministic_algorithms(False)
    assert notes.parts["run"]["identical"] is True


def test_a_failed_reference_is_told_with_its_lines(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json")
    check = learning.Check("bad", "", "tests.benchmarks.bad_checks:raises", 20)
    notes.part("reference", learning._from_child, check, Setting(str(tmp_path), cpu=True), {})
    assert "on purpose" in "".join(notes.parts["reference"]["failed"])


def test_the_plain_loop_learns(bench: Bench) -> None:
    loop, trained = peers.plain_loop(bench, "fp32", 2)
    assert trained > 0
    assert loop() > 0


def test_a_limited_run_that_says_nothing_does_not_hold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = out_of_memory.Runs(bench)
    monkeypatch.setattr(runs, "run", lambda name, values: {"steps": 4, "loss": 1.0, "said": [], "says": ""})
    found = out_of_memory.limited(runs, "half", ("pictures",), {"steps": 4, "loss": 1.0}, {})
    assert [sentence for sentence, holds in found["holds"].items() if not holds] == ["it says what it changed"]
