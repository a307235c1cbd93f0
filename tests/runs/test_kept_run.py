"""A run folder that an earlier version wrote opens, is validated, and goes on to the same LoRA."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lora_trainer.jobs.service import Jobs
from tests.helpers import LIMIT, ROOT
from tests.runs_helpers import make_jobs

KEPT = ROOT / "tests" / "kept_run"
NAME = "kept"
ARITHMETIC = "4205946545739112"
"""What :func:`arithmetic` gives on the machine and the torch that the folder was made with."""


def arithmetic() -> str:
    """A mark of how this machine rounds: other processors, and other versions of the models, add in another order."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 32, 16, 16, generator=generator, requires_grad=True)
    kernel = torch.randn(32, 32, 3, 3, generator=generator)
    y = torch.nn.functional.group_norm(torch.nn.functional.conv2d(x, kernel, padding=1), 8).flatten(2).transpose(1, 2)
    y = torch.nn.functional.scaled_dot_product_attention(y, y, torch.nn.functional.silu(y))
    y.square().mean().backward()
    assert x.grad is not None
    rounded = y.detach().numpy().tobytes() + x.grad.numpy().tobytes()
    versions = f"{diffusers.__version__} {transformers.__version__}"
    return hashlib.sha256(rounded + versions.encode()).hexdigest()[:16]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """A host that finds the kept run where it was made."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    root = json.dumps(str(tmp_path))[1:-1]
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".toml", ".csv"):
            path.write_bytes(path.read_bytes().replace(b"@ROOT@", root.encode()))
    return make_jobs(tmp_path)


def same(ours: Any, theirs: Any) -> bool:
    """Equal, or equal but for rounding where this machine rounds otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float) and arithmetic() != ARITHMETIC:
        return ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    return bool(ours == theirs)


def test_it_opens_as_it_was_left(jobs: Jobs) -> None:
    run = jobs.settled(NAME)
    assert run.state == "stopped"
    assert run.manifest["step"] == 4
    assert [Path(entry["path"]).is_file() for entry in run.manifest["files"]] == [True, True]
    assert len(run.entries()) == 6
    document = jobs.grids.document(NAME)
    assert document["verdict"]["column"] == 2
    assert len(document["cells"]) == 10


def test_it_goes_on_to_the_same_lora(jobs: Jobs) -> None:
    run = jobs.resume(NAME)
    assert jobs.wait(run, LIMIT)
    assert run.state == "done", run.manifest["message"]
    ours = load_file(run.manifest["files"][-1]["path"])
    theirs = load_file(KEPT / "whole.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if arithmetic() == ARITHMETIC:
            assert torch.equal(ours[key], tensor), key
        else:
            torch.testing.assert_close(ours[key], tensor, rtol=1e-2, atol=1e-4)


def test_its_grid_drawn_again_is_the_same(jobs: Jobs) -> None:
    before = jobs.grids.document(NAME)
    shutil.rmtree(jobs.settled(NAME).grids)
    run = jobs.grids.draw(NAME, weights=(0.5, 1.0), prompts=("zorp, blue background",))
    assert jobs.wait(run, LIMIT)
    assert run.manifest["grid"]["state"] == "done"
    now = jobs.grids.document(NAME)
    before.pop("version"), now.pop("version")
    assert same(now, before)
