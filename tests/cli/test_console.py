"""Standard output: nothing but the result with ``--json``, and no traceback in any encoding."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.cli.console import can_print, one_line, print_json, results_only
from lora_trainer.cli.main import main
from tests.helpers import CASES, CHECKPOINT, ROOT, draw_pictures

NOISY = """
import os, subprocess, sys
from lora_trainer.cli.console import one_line, prepare_streams, print_json, results_only
prepare_streams()
print("before")
with results_only():
    print("by Python, 汉服 █")
    os.write(1, b"by C\\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"])
    print_json({"a": "汉服 😀 é"})
    print("and behind")
print("after")
"""


def program(
    *arguments: str, folder: Path, encoding: str = "utf-8", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """What ``python …`` writes to pipes of an encoding."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**variables, **environment}, capture_output=True, check=False
    )


def lora_trainer(
    *arguments: str, folder: Path, encoding: str = "utf-8", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return program("-m", "lora_trainer", *arguments, folder=folder, encoding=encoding, **environment)


def lines(output: bytes) -> list[str]:
    return output.decode("utf-8").splitlines()


# ------------------------------------------------------------------ --json
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp936", "cp437", "ascii"])
def test_standard_output_is_the_results_whoever_prints(tmp_path: Path, encoding: str) -> None:
    done = program("-c", NOISY, folder=tmp_path, encoding=encoding)
    assert done.returncode == 0, done.stderr
    first, *result, last = done.stdout.decode(encoding).splitlines()
    assert (first, last) == ("before", "after")
    assert json.loads("\n".join(result)) == {"a": "汉服 😀 é"}
    told = done.stderr.decode("utf-8", "replace")
    assert all(part in told for part in ("by Python", "by C", "by a child", "and behind"))


def test_without_a_file_the_results_stand_alone_too(capsys: pytest.CaptureFixture[str]) -> None:
    with results_only():
        print("noise")
        print_json([1, "汉"])
    print("after")
    out, err = capsys.readouterr()
    assert out == '[\n 1,\n "汉"\n]\nafter\n'
    assert err == "noise\n"


def test_an_error_within_gives_standard_output_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), results_only():
        raise KeyError
    print("again")
    assert capsys.readouterr().out == "again\n"


@pytest.mark.parametrize(
    ("optimizer", "module"), [("Prodigy", "prodigyopt"), ("Lion", "lion_pytorch")], ids=["Prodigy", "Lion"]
)
def test_what_an_optimizer_prints_is_not_in_the_json(tmp_path: Path, optimizer: str, module: str) -> None:
    pytest.importorskip(module)
    case = tmp_path / "case"
    shutil.copytree(CASES / "json-prodigy", case)
    done = lora_trainer(
        "train", "run.toml", "--root", "root", "--json",
        "--set", f"checkpoint={CHECKPOINT}", "--set", f"training.optimizer={optimizer}",
        folder=case,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    assert (b"decoupled weight decay" in done.stderr) == (optimizer == "Prodigy")


# ------------------------------------------------------------------ encodings
@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder whose report has characters that many encodings lack."""
    folder = tmp_path / "汉服 é █"
    draw_pictures(folder, 2, size=(64, 64), captions=False)
    (folder / "00.txt").write_text("汉服, “café”, █, 😀", encoding="utf-8")
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "cp936", "cp437", "ascii", "utf-8"])
def test_reports_are_whole_in_any_encoding(tmp_path: Path, pictures: Path, encoding: str) -> None:
    arguments = ["dataset", "check", str(pictures), "--resolution", "128"]
    done = lora_trainer(*arguments, folder=tmp_path, encoding=encoding, PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    report = done.stdout.decode(encoding)
    assert "2.00" in report
    assert "warning: 2 pictures are smaller" in report
    done = lora_trainer(*arguments, "--json", folder=tmp_path, encoding=encoding)
    assert json.loads(done.stdout.decode(encoding))["items"][0]["caption"] == "汉服, “café”, █, 😀"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["grid", "--help"], 0), (["lora", "mix", "--help"], 0), (["runs", "汉服█"], 2), (["汉服"], 2)],
    ids=["help", "grid", "mix", "no run", "no command"],
)
def test_help_and_errors_are_whole_in_any_encoding(
    tmp_path: Path, arguments: list[str], code: int, encoding: str
) -> None:
    done = lora_trainer(*arguments, folder=tmp_path, encoding=encoding)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert (done.stdout if code == 0 else done.stderr).endswith(b"\n")


def test_the_case_of_cp1252(tmp_path: Path) -> None:
    shutil.copytree(CASES / "stdout-cp1252", tmp_path / "case")
    done = lora_trainer("dataset", "check", ".", folder=tmp_path / "case", encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")


def test_bars_are_drawn_with_what_the_console_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Console:
        encoding = "cp1252"

    monkeypatch.setattr(sys, "stdout", Console())
    assert not can_print("█")
    Console.encoding = "cp437"
    assert can_print("█")


# ------------------------------------------------------------------ transformers
def test_long_captions_raise_no_false_alarm(tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(CASES / "long-caption-warning", case)
    done = lora_trainer("train", "run.toml", "--root", "root", "--set", f"checkpoint={CHECKPOINT}", folder=case)
    assert done.returncode == 0, done.stderr
    assert b"indexing errors" not in done.stderr + done.stdout


def test_a_command_without_results_has_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--json"]) == 2
    assert "--json" in capsys.readouterr().err


def test_a_sentence_stays_on_one_line_and_moves_no_cursor() -> None:
    assert one_line("a\nb\x1b[2Jc\u202ed\u2028e\r") == "a\\nb\\x1b[2Jc\\u202ed\\u2028e\\r"
    assert one_line("é 中　文 👩‍🎨 “x”") == "é 中　文 👩‍🎨 “x”"


def test_names_with_control_characters_give_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "info", "a\n\x1b[31mb.safetensors"]) == 2
    assert capsys.readouterr().err == "error: a\\n\\x1b[31mb.safetensors does not exist; check the path.\n"
