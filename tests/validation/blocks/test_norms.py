"""The heat map from files alone, against ‖ΔW‖ computed in numpy."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.cli.main import main
from lora_trainer.core.errors import InputError
from lora_trainer.network.modules import group
from lora_trainer.runs.run import Run
from lora_trainer.runs.saved_files import SavedFile, find_file, run_files
from lora_trainer.runs.store import Runs
from lora_trainer.validation.blocks.norms import heat_csv, heat_map
from lora_trainer.validation.grid.plan import GridOptions, plan_grid
from tests.helpers import CASES, CHECKPOINT
from tests.network.made import KEYS, delta, lora, randn, some_lora, tensors

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def write(path: Path, values: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, path)
    return path


def a_run(folder: Path, *names: str) -> Run:
    entries = [
        {"path": str(folder / f"{name}.safetensors"), "epoch": number, "step": 10 * number, "sha256": "x"}
        for number, name in enumerate(names, start=1)
    ]
    return Run(folder / "a", {"state": "done", "files": entries})


def test_each_number_is_the_norm_of_the_blocks_modules_together(tmp_path: Path) -> None:
    first = write(tmp_path / "a-000001.safetensors", some_lora(seed=0))
    more = {**some_lora(seed=3), **tensors({CONV: lora(5, 4, 2, 1.0, kernel=3), KEYS[1] + "x": lora(6, 6, 2, 1.0)})}
    second = write(tmp_path / "a.safetensors", more)
    heat = heat_map("a", run_files(a_run(tmp_path, "a-000001", "a")))
    assert heat["blocks"] == ["TE1", "IN01", "M00", "OUT03"]
    assert heat["architecture"] == "SD1/SD2"
    for row, file in zip(heat["rows"], (first, second), strict=True):
        modules = group(load_file(file))
        places = {
            "TE1": [KEYS[0]],
            "IN01": [k for k in modules if "down_blocks_0" in k],
            "M00": [KEYS[2]],
            "OUT03": [KEYS[3]],
        }
        wanted = [math.sqrt(sum(float(np.sum(delta(modules[k]) ** 2)) for k in places[b])) for b in heat["blocks"]]
        assert row["norms"] == pytest.approx(wanted, rel=1e-6)
    assert [row["label"] for row in heat["rows"]] == ["epoch 1", "epoch 2"]
    assert heat["rows"][0]["norms"] != heat["rows"][1]["norms"]


def test_blocks_that_only_one_file_has_are_empty_in_the_others(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", tensors({KEYS[1]: lora(6, 6, 2, 1.0)}))
    write(
        tmp_path / "b.safetensors",
        tensors({CONV.replace("blocks_0_res", "blocks_3_res"): lora(5, 4, 2, 1.0, kernel=3)}),
    )
    heat = heat_map("a", [SavedFile(tmp_path / f"{n}.safetensors", n) for n in "ab"])
    assert heat["blocks"] == ["IN01", "IN10"]
    assert [[norm is None for norm in row["norms"]] for row in heat["rows"]] == [[False, True], [True, False]]


def test_a_block_whose_difference_depends_on_the_checkpoint_has_no_number(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors",
        tensors({KEYS[1]: {**lora(6, 6, 2, 1.0), "dora_scale": randn(1, 6)}, KEYS[2]: lora(6, 6, 2, 1.0)}),
    )
    (row,) = heat_map("a", [SavedFile(path, "a")])["rows"]
    assert row["norms"][0] is None
    assert row["norms"][1] > 0


def test_files_that_are_gone_or_damaged_are_told_and_the_others_shown(tmp_path: Path) -> None:
    write(tmp_path / "c.safetensors", some_lora())
    (tmp_path / "b.safetensors").write_bytes(b"no")
    heat = heat_map("a", run_files(a_run(tmp_path, "gone", "b", "c")))
    told = [row["problem"] and row["problem"]["template"].format(**row["problem"]["values"]) for row in heat["rows"]]
    assert "gone.safetensors does not exist" in told[0]
    assert "damaged" in told[1]
    assert told[2] is None
    assert heat["rows"][0]["norms"] == [None] * 4


def test_another_architecture_has_its_own_blocks(tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    path = write(
        tmp_path / "xl.safetensors",
        tensors({key: lora(6, 6, 2, 1.0), "lora_te2_text_model_encoder_layers_0_mlp_fc1": lora(4, 4, 2, 1.0)}),
    )
    heat = heat_map("xl", [SavedFile(path, "xl")])
    assert (heat["architecture"], heat["blocks"]) == ("SDXL", ["TE2", "IN04"])


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", some_lora())
    before = heat_map("a", [SavedFile(path, "a")])["rows"][0]["norms"]
    written = path.stat().st_mtime_ns
    write(path, {n: t * 2 if "lora_up" in n else t for n, t in some_lora().items()})
    os.utime(path, ns=(written + 1, written + 1))  # clocks of file systems tick every few milliseconds
    after = heat_map("a", [SavedFile(path, "a")])["rows"][0]["norms"]
    assert after == pytest.approx([2 * norm for norm in before])


def test_csv_has_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a,b.safetensors", some_lora())
    heat = heat_map("a", run_files(a_run(tmp_path, "a,b", "gone")))
    first, gone = csv.DictReader(io.StringIO(heat_csv(heat)))
    assert (first["file"], first["epoch"], first["step"]) == ("a,b", "1", "10")
    assert [float(first[block]) for block in heat["blocks"]] == pytest.approx(heat["rows"][0]["norms"], rel=1e-5)
    assert [gone[block] for block in heat["blocks"]] == [""] * 4


def test_a_file_is_found_by_name_or_epoch_and_else_the_last(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a-000001", "a-step00000015", "a")
    for name in ("a-000001", "a-step00000015", "a"):
        write(tmp_path / f"{name}.safetensors", some_lora())
    assert find_file(run).path.stem == "a"
    assert find_file(run, "a-000001").epoch == 1
    assert find_file(run, epoch=3).path.stem == "a"
    assert [file.label for file in run_files(run)] == ["epoch 1", "step 20", "epoch 3"]
    for wrong in ({"name": "../a"}, {"epoch": 2}, {"epoch": 9}):
        with pytest.raises(InputError, match="has no file"):
            find_file(run, **wrong)  # type: ignore[arg-type]
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(InputError, match="does not exist"):
        find_file(run)
    with pytest.raises(InputError, match="no LoRA files"):
        find_file(Run(tmp_path, {"state": "running", "files": []}))


CASE = CASES / "run-named-step"


def test_a_run_with_step_in_its_name_keeps_its_epochs_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case's run, trained, and asked by command line and grid."""
    shutil.copytree(CASE, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        text.replace("lora_trainer/demo/assets/small-sd1.safetensors", CHECKPOINT.as_posix())
        + "[save]\nevery_epochs=1\nevery_steps=3\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run.toml", "--root", "root", "--json"]) == 0
    capsys.readouterr()
    assert main(["blocks", "analyze", "two-step dance", "--root", "root", "--json"]) == 0
    assert [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["epoch 1", "step 3", "epoch 2"]
    run = Runs(tmp_path / "root" / "runs").get("two-step dance")
    assert [entry["by_step"] for entry in run.manifest["files"]] == [False, True, False]
    assert [c.label for c in plan_grid(run, GridOptions(epochs="1,step 3")).columns] == ["no LoRA", "epoch 1", "step 3"]
    assert find_file(run, epoch=1).path.stem == "two-step dance-000001"
