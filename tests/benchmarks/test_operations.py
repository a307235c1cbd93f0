"""The count of a step's operations, and how many a step may take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.operations import MIXES, Counted, count_step, table
from lora_trainer.hosts.standalone.host import StandaloneHost
from tests.training.bench import Bench


def test_what_reaches_a_kernel_is_counted_and_views_are_not() -> None:
    x = torch.ones(4, 4)
    with Counted() as counted:
        y = (x @ x).t().reshape(2, 8)[0]
        y.add_(1)
        y.to(torch.bfloat16)
    assert counted.names == {"mm": 1, "add_": 1, "_to_copy": 1, "clone": 1}


@pytest.mark.parametrize(("mix", "most"), [("fp32", 3_300), ("bf16", 3_300), ("bf16 on fp32", 4_400)])
def test_a_step_takes_no_more_operations_than_it_did(
    tmp_path: Path, standalone: StandaloneHost, mix: str, most: int
) -> None:
    """Of the 192 layers of SD1, whose number of operations does not depend on their sizes."""
    weights, precision = MIXES[mix]
    bench = Bench(standalone, tmp_path, precision, weights, training__text_lr=0.0)
    bench.trainer.step(bench.step(1))
    count = count_step(bench.trainer, bench.step(1))
    assert 2_500 < count["total"] <= most
    assert count["optimizer"] <= 20
    assert count["casts"] <= {"fp32": 5, "bf16": 30, "bf16 on fp32": 1_100}[mix]
    groups = [value for kind, value in count.items() if kind not in ("total", "names")]
    assert sum(groups) == count["total"] == sum(count["names"].values())


def test_the_table_has_a_column_for_each_count() -> None:
    count = {"total": 3_204, "casts": 1, "names": {"mm": 1}}
    assert table({"fp32": count, "bf16": count}).splitlines()[1].split() == ["total", "3,204", "3,204"]
