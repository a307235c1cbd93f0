"""``lora-trainer lora`` and ``blocks``: exit codes, one-line errors, machine-readable results, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.cli.main import main
from lora_trainer.network.lora_file import read_lora, read_metadata, save_lora
from lora_trainer.network.modules import group
from lora_trainer.network.ops.provenance import RECORD
from tests.helpers import CHECKPOINT, temporary_files
from tests.network.made import EVERY, KEYS, delta, lora, randn, some_lora, tensors

Q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
DORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with LoRAs ``a`` and ``b``, both fp16, and an SDXL one."""
    save_lora(tmp_path / "a.safetensors", some_lora(4, 2.0), {"ss_seed": "1", "ss_output_name": "a"}, "fp16")
    save_lora(tmp_path / "b.safetensors", some_lora(3, 3.0, seed=50), {"ss_seed": "2"}, "fp16")
    sdxl = tensors({"lora_te2_text_model_encoder_layers_0_mlp_fc1": lora(4, 4, 2, 1.0)})
    save_lora(tmp_path / "xl.safetensors", sdxl, {}, "fp16")
    return tmp_path


def test_info_shows_blocks_and_metadata(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    code, out, _ = run(capsys, "lora", "info", files / "a.safetensors")
    assert code == 0
    assert "IN01" in out
    assert "ss_seed" in out
    found = json.loads(run(capsys, "lora", "info", files / "a.safetensors", "--json")[1])
    assert (found["modules"], found["ranks"], found["metadata"]["ss_seed"]) == (4, [4], "1")
    assert [block["block"] for block in found["blocks"]] == ["TE1", "IN01", "M00", "OUT03"]


def test_merge_is_the_weighted_sum(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    a, b, out = (files / f"{name}.safetensors" for name in ("a", "b", "sum"))
    code, text, err = run(capsys, "lora", "merge", a, b, "--weights", 0.8, 0.6, "--output", out)
    assert code == 0
    assert text.splitlines()[-1] == str(out)
    assert "sum up to 1.4; above 1.2" in err
    made = group(read_lora(out))
    for key in KEYS:
        wanted = 0.8 * delta(group(read_lora(a))[key]) + 0.6 * delta(group(read_lora(b))[key])
        assert np.allclose(delta(made[key]), wanted, atol=2e-2)
    metadata = read_metadata(out)
    assert (metadata["ss_network_dim"], metadata["ss_output_name"]) == ("7", "sum")
    (record,) = json.loads(metadata[RECORD])
    assert [source["weight"] for source in record["sources"]] == [0.8, 0.6]
    assert str(files) not in json.dumps(metadata)


def test_merge_with_block_weights_to_a_rank(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    a, b, out = (files / f"{name}.safetensors" for name in ("a", "b", "sum"))
    arguments = ("--lbw", "ALL", "INALL", "--rank", 2, "--precision", "fp32", "--output", out, "--json")
    code, text, _ = run(capsys, "lora", "merge", a, b, *arguments)
    found = json.loads(text)
    assert (code, found["ranks"]) == (0, [2])
    assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert len(found["notices"]) == 1
    u, s, vh = np.linalg.svd(delta(group(read_lora(a))[KEYS[3]]), full_matrices=False)
    assert np.allclose(delta(group(read_lora(out))[KEYS[3]]), (u[:, :2] * s[:2]) @ vh[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "rank"),
    [(["--rank", 2], 2), (["--sv-fro", 0.3], 2), (["--sv-cumulative", 0.2], 2), (["--sv-ratio", 1], 2)],
)
def test_resize(capsys: pytest.CaptureFixture[str], files: Path, arguments: list[Any], rank: int) -> None:
    out = files / "small.safetensors"
    code, text, _ = run(capsys, "lora", "resize", files / "a.safetensors", *arguments, "--output", out, "--json")
    found = json.loads(text)
    assert (code, found["ranks"]) == (0, [rank])
    assert 0 < found["error"] < 1
    assert read_metadata(out)["ss_network_dim"] == str(rank)
    assert json.loads(read_metadata(out)[RECORD])[0]["error"] == found["error"]


def test_resize_says_that_the_rank_was_no_higher(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    out = files / "same.safetensors"
    code, text, err = run(capsys, "lora", "resize", files / "a.safetensors", "--rank", 8, "--output", out)
    assert (code, text.splitlines()[-1]) == (0, str(out))
    assert err == "note: The LoRA has rank 4 already: nothing was left out, and its effect stays the same.\n"


def test_extract(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = load_file(CHECKPOINT)
    state[Q] = state[Q].float() + 0.1 * randn(*state[Q].shape)
    tuned, out = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    save_file(state, tuned)
    code, text, _ = run(capsys, "lora", "extract", CHECKPOINT, tuned, "--rank", 3, "--output", out, "--json")
    assert code == 0
    assert json.loads(text)["covered"] == pytest.approx(1.0)
    assert {name.partition(".")[0] for name in read_lora(out)} == {DORA}
    assert read_metadata(out)["ss_base_model_version"] == "sd_v1"


def test_show_lists_blocks_and_presets(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    code, out, _ = run(capsys, "blocks", "show", files / "a.safetensors")
    assert code == 0
    assert "lbw with 17 values: BASE IN01" in out
    found = json.loads(run(capsys, "blocks", "show", files / "xl.safetensors", "--json")[1])
    assert (found["architecture"], list(found["lists"])) == ("SDXL", ["12", "20"])
    assert found["presets"]["ALL"] == ",".join(["1"] * 20)


def test_bake_writes_beside_the_file_and_never_over_it(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    a = files / "a.safetensors"
    before = a.read_bytes()
    lbw = "0.5,0.25" + ",1" * 5 + ",0" + ",1" * 9
    for name in ("a-baked", "a-baked-2"):
        code, out, _ = run(capsys, "blocks", "bake", a, "--lbw", lbw, "--te", 0.5)
        assert (code, out.splitlines()[-1]) == (0, str(files / f"{name}.safetensors"))
    assert a.read_bytes() == before
    old, new = group(read_lora(a)), group(read_lora(files / "a-baked.safetensors"))
    assert new.keys() == old.keys() - {KEYS[2]}
    assert [float(new[key]["alpha"]) for key in (KEYS[0], KEYS[1], KEYS[3])] == [0.5, 0.5, 2.0]
    assert torch.equal(new[KEYS[0]]["lora_up.weight"], old[KEYS[0]]["lora_up.weight"])
    metadata = read_metadata(files / "a-baked.safetensors")
    assert (metadata["ss_seed"], metadata["ss_output_name"]) == ("1", "a-baked")
    (record,) = json.loads(metadata[RECORD])
    assert (record["lbw"], record["te"], record["unet"], record["dropped"]) == (lbw, 0.5, 1.0, 1)


def test_random_block_weights_are_recorded_and_repeatable(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    a = files / "a.safetensors"
    lbw = ",".join(["R"] * 17)
    one, two = (json.loads(run(capsys, "blocks", "bake", a, "--lbw", lbw, "--seed", 3, "--json")[1]) for _ in range(2))
    assert one["lbw"] == two["lbw"] != lbw
    written = json.loads(run(capsys, "blocks", "bake", a, "--lbw", one["lbw"], "--json")[1])
    tensors_of = [read_lora(Path(found["path"])) for found in (one, written)]
    assert all(torch.equal(tensors_of[0][name], tensors_of[1][name]) for name in tensors_of[0])


def test_dora_needs_the_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weight = load_file(CHECKPOINT)[Q]
    parts = {**lora(*weight.shape, 2, 1.0), "dora_scale": torch.ones(1, weight.shape[1])}
    save_file(tensors({DORA: parts}), tmp_path / "d.safetensors")
    code, _, err = run(capsys, "blocks", "bake", tmp_path / "d.safetensors", "--weight", 0.5)
    assert code == 2
    assert "name the checkpoint" in err
    arguments = ("--weight", 0.5, "--checkpoint", CHECKPOINT, "--json")
    found = json.loads(run(capsys, "blocks", "bake", tmp_path / "d.safetensors", *arguments)[1])
    assert found["expanded"] == 1
    assert list(read_lora(Path(found["path"]))) == [f"{DORA}.diff"]


def test_short_list_on_a_lora_with_convolutions_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    conv = "lora_unet_down_blocks_0_downsamplers_0_conv"
    save_file(tensors({KEYS[1]: EVERY["linear"], conv: EVERY["3x3"]}), tmp_path / "c.safetensors")
    arguments = ("blocks", "bake", tmp_path / "c.safetensors", "--lbw", ",".join(["1"] * 17))
    assert "A list of 17 values leaves 1 convolution modules" in run(capsys, *arguments)[2]
    assert "note" not in run(capsys, *arguments[:-1], "ALL")[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lora", "info", "none.safetensors"], "does not exist"),
        (["lora", "merge", "a.safetensors", "--output", "a.safetensors"], "never overwritten; "),
        (["lora", "merge", "a.safetensors", "--output", "b.safetensors"], "b-2.safetensors is free"),
        (
            ["lora", "merge", "a.safetensors", "b.safetensors", "--weights", "1", "--output", "c.safetensors"],
            "1 values for 2",
        ),
        (
            ["lora", "merge", "a.safetensors", "xl.safetensors", "--output", "c.safetensors"],
            "only LoRAs of one architecture",
        ),
        (["lora", "merge", "a.safetensors", "--output", "c.ckpt"], "must be named .safetensors"),
        (["lora", "resize", "a.safetensors", "--output", "c.safetensors"], "Say how far to resize"),
        (["lora", "resize", "a.safetensors", "--sv-fro", "2", "--output", "c.safetensors"], "at most 1"),
        (
            ["lora", "extract", "a.safetensors", "b.safetensors", "--rank", "2", "--output", "c.safetensors"],
            "a.safetensors is a LoRA, not a checkpoint",
        ),
        (["blocks", "show", "none.safetensors"], "does not exist"),
        (["blocks", "bake", "xl.safetensors", "--lbw", ",".join(["1"] * 17)], "this LoRA is for SDXL; give 12 or 20"),
        (["blocks", "bake", "a.safetensors", "--lbw", "NOPE"], "no block preset NOPE"),
        (["blocks", "bake", "a.safetensors", "--lbwe", "IN77:a:1"], "no block IN77"),
        (["blocks", "bake", "a.safetensors", "--weight", "0"], "nothing of the LoRA is left"),
        (["blocks", "bake", "a.safetensors", "--presets", "none.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    capsys: pytest.CaptureFixture[str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(files)
    before = {path: path.read_bytes() for path in files.iterdir()}
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_full_disk_fails_with_1_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run(capsys, "blocks", "bake", files / "a.safetensors", "--lbw", "ALL0.5")
    assert code == 1
    assert "disk is full" in err
    assert not temporary_files(files)
    assert not (files / "a-baked.safetensors").exists()


# ------------------------------------------------------------------ mixes
def test_mixes_as_prompts(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    arguments = ("lora", "mix", f"{files / 'a.safetensors'}:0.8", f"{files / 'b.safetensors'}:0.6:OUTALL")
    code, out, err = run(capsys, *arguments, "--count", 3, "--seed", 7, "--prompt", "1girl", "--root", files)
    assert code == 0
    assert "sum up to 1.4" in err
    found = json.loads(run(capsys, *arguments, "--count", 3, "--seed", 7, "--prompt", "1girl", "--json")[1])
    assert [mix["prompt"] for mix in found["mixes"]] == out.splitlines()
    for mix in found["mixes"]:
        a, b = mix["weights"]["a"], mix["weights"]["b"]
        assert mix["prompt"] == f"1girl <lora:a:{a:g}> <lora:b:{b:g}:lbw=OUTALL>"
        assert a + b <= 1.2
    assert len(found["notices"]) == 1


def test_mixes_are_drawn_with_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weight = load_file(CHECKPOINT)[Q]
    for name in ("a", "b"):
        save_lora(tmp_path / f"{name}.safetensors", tensors({DORA: lora(*weight.shape, 2, 1.0)}), {}, "fp32")
    files = [f"{tmp_path / name}.safetensors:0.5" for name in ("a", "b")]
    size = ("--width", 64, "--height", 64, "--steps", 1, "--count", 2)
    code, out, _ = run(capsys, "lora", "mix", *files, *size, "--checkpoint", CHECKPOINT, "--root", tmp_path)
    *pictures, folder = map(Path, out.splitlines())
    assert code == 0
    assert [path.parent for path in pictures] == [folder, folder]
    assert all(path.is_file() for path in (*pictures, folder / "mixes.json", folder / "mixes.csv"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none:1"], "there is no LoRA file none"),
        (["a.safetensors:heavy"], "must be a number"),
        (["a.safetensors:1:NOPE"], "no block preset NOPE"),
        (["a.safetensors:1", "--spread", "1"], "spread: must be"),
        (["a.safetensors:1", "--count", "0"], "count: 0 is out of range"),
        (["a.safetensors:1", "--checkpoint", "none.safetensors"], "does not exist"),
    ],
)
def test_bad_mixes_are_one_line(
    capsys: pytest.CaptureFixture[str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(files)
    code, out, err = run(capsys, "lora", "mix", *arguments, "--root", files)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


# ------------------------------------------------------------------ paths that are none of a file here
PATHS = [
    (r"\\host\share\x.safetensors", "is a network path"),
    ("//host/share/x.safetensors", "is a network path"),
    (r"\/host\x.safetensors", "is a network path"),
    (r"\\.\pipe\x.safetensors", "is a network path"),
    (r"“\\?\C:\x.safetensors”", "is a network path"),
    ("file:///x.safetensors", "is an address"),
    ("https://host/x.safetensors", "is an address"),
    ("nul.safetensors", "names a device"),
    ("/dev/zero", "names a device"),
    ("/proc/self/mem", "names a device"),
    ("a\0b.safetensors", "characters that no file name can have"),
    ("\ud800.safetensors", "characters that no file name can have"),
    ("a" * 300 + ".safetensors", "longer than a path can be"),
    ("LOOP/x.safetensors", "leads to itself"),
]


@pytest.mark.parametrize(("path", "said"), PATHS, ids=[repr(path)[:30] for path, _ in PATHS])
def test_paths_beyond_this_computer_or_of_no_file_are_refused_before_any_call(
    capsys: pytest.CaptureFixture[str], files: Path, path: str, said: str
) -> None:
    (files / "LOOP").symlink_to(files / "LOOP")
    path = path.replace("LOOP", str(files / "LOOP"))
    a, out = files / "a.safetensors", files / "new.safetensors"
    commands: list[list[Any]] = [
        ["lora", "info", path],
        ["lora", "merge", a, path, "--output", out],
        ["lora", "merge", a, a, "--output", path],
        ["lora", "resize", path, "--rank", 2, "--output", out],
        ["lora", "extract", CHECKPOINT, path, "--rank", 2, "--output", out],
        ["blocks", "show", path],
        ["blocks", "show", a, "--presets", path],
        ["blocks", "bake", path, "--unet", 0.5],
        ["blocks", "bake", a, "--unet", 0.5, "--checkpoint", path, "--output", out],
        ["blocks", "analyze", path if path.endswith("safetensors") else f"{path}.safetensors", "--root", files],
        ["train", path],
        ["runs", "--root", path],
    ]
    for arguments in commands:
        code, text, err = run(capsys, *arguments)
        assert (code, text, err.count("\n")) == (2, "", 1)
        assert said in err
    assert {each.name for each in files.iterdir()} == {"LOOP", "a.safetensors", "b.safetensors", "xl.safetensors"}


def test_what_a_shell_hands_over_is_read(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    with (files / "own.txt").open("w+") as file:
        file.write(f"MINE:{','.join(['0.5'] * 17)}\n")
        file.flush()
        code, out, _ = run(capsys, "blocks", "show", files / "a.safetensors", "--presets", f"/dev/fd/{file.fileno()}")
    assert code == 0
    assert "MINE" in out


@pytest.mark.parametrize("option", ["--presets", "--element-presets"])
@pytest.mark.parametrize("content", ["", "no preset", "# only a remark\n"])
def test_a_file_without_presets_is_the_wrong_one(
    capsys: pytest.CaptureFixture[str], files: Path, option: str, content: str
) -> None:
    (files / "own.txt").write_text(content, encoding="utf-8")
    code, _, err = run(capsys, "blocks", "show", files / "a.safetensors", option, files / "own.txt")
    assert code == 2
    assert "There is no preset in" in err


def test_another_file_than_a_lora_is_called_what_it_is(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    for command in (["blocks", "show"], ["lora", "resize", "--rank", "2", "--output", files / "new.safetensors"]):
        code, _, err = run(capsys, *command, CHECKPOINT)
        assert code == 2
        assert "is a checkpoint, not a LoRA" in err


def test_nothing_damaged_is_baked(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    """A copy of a damaged module is as damaged, and no longer the file of which its maker knows."""
    tensors = read_lora(files / "a.safetensors")
    changes: list[dict[str, torch.Tensor]] = [
        {"lora_up.weight": torch.zeros(10, 5)},
        {"lora_down.weight": torch.zeros(4, 14, 3)},
        {"lora_down.weight": torch.zeros(4, 14, 1, 1, 1)},
        {"lora_mid.weight": torch.tensor(1.0)},
        {"dora_scale": torch.zeros(0)},
    ]
    for number, change in enumerate(changes):
        path = files / f"damaged{number}.safetensors"
        save_file({**tensors, **{f"{KEYS[1]}.{name}": tensor for name, tensor in change.items()}}, path)
        for weights in (["--te", 0.5], ["--unet", 0.5]):
            code, _, err = run(capsys, "blocks", "bake", path, *weights)
            assert code == 2
            assert f"{KEYS[1]} is damaged" in err
