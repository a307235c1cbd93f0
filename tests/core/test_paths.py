"""Paths as people paste them, in every field that is one and in every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.cli.main import main
from lora_trainer.config.schema import options_of, read_toml
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.core.paths import clean_path, exists, expand, free_name, impossible
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.requests import DOCUMENTS, AnalysisDocument, MixDocument, TuningDocument, read
from tests.helpers import CASES, CHECKPOINT, config, draw_pictures
from tests.runs_helpers import document, make_jobs

WRAPS = ['"{}"', "'{}'", "“{}”", "‘{}’", "„{}“", "  {}\t", ' "{}" ', "\"'{}'\"", '{}"', "\u202a{}", "\ufeff'{}' "]
PATHS = [item.path for item in options() if item.is_path]
OTHERS = [*DOCUMENTS.values(), MixDocument, AnalysisDocument, TuningDocument]


# ------------------------------------------------------------------ the two functions
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("path", ["a/b.safetensors", "C:\\my pictures", "/tmp/it's", "汉服 “x” y", "~nobody"])
def test_what_is_pasted_along_is_not_part_of_a_path(path: str, wrap: str) -> None:
    assert clean_path(wrap.format(path)) == path


@pytest.mark.parametrize("path", ["'a' and 'b", "it's", "a“b”c", "(1)", "[a]", "$HOME", ".", ""])
def test_what_stands_within_stays(path: str) -> None:
    assert clean_path(path) == path


@given(st.text(st.sampled_from(" \t\"'“”‘’ab/~\u202a\ufeff\x00"), max_size=12))
def test_a_clean_path_is_clean(text: str) -> None:
    assert clean_path(clean_path(text)) == clean_path(text)
    assert isinstance(expand(text), Path)


def test_home_is_filled_in_and_other_tildes_are_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expand('"~/a"') == tmp_path / "a"
    assert expand("~") == tmp_path
    assert expand("~nobody-here/a") == Path("~nobody-here/a")


def test_without_a_home_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", raises)
    assert expand("~/a") == Path("~/a")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "nowhere"])
def test_what_can_be_no_path_does_not_exist(path: str) -> None:
    assert not exists(Path(path))


# ------------------------------------------------------------------ documents
def test_these_fields_are_paths() -> None:
    assert PATHS == ["checkpoint", "data.folder", "network.continue_from", "save.folder"]
    others = {item.path for kind in OTHERS for item in options_of(kind, "") if item.is_path}
    assert others == {"file", "checkpoint", "output", "base", "tuned", "pictures"}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("field", PATHS)
def test_every_path_of_a_run_is_read_as_it_is_pasted(field: str, wrap: str) -> None:
    assert config().with_values({field: wrap.format("my folder/x")}) == config().with_values({field: "my folder/x"})


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_every_path_of_a_tool_is_read_as_it_is_pasted(kind: type) -> None:
    fields = [item.path for item in options_of(kind, "") if item.is_path]
    found = asdict(read(kind, dict.fromkeys(fields, ' "my file.safetensors"')))
    assert {found[field] for field in fields} == {"my file.safetensors"}


@pytest.mark.parametrize("path", ["C:\temp\new", "C:\bin", "a\nb"])
@pytest.mark.parametrize("field", PATHS)
def test_a_path_that_double_quotes_have_eaten_is_said_with_the_remedy(field: str, path: str) -> None:
    with pytest.raises(InputError, match=rf"^{field}: the path has a tab, .* with /, .* in single quotes\.$"):
        config().with_values({field: path})


@pytest.mark.parametrize(
    "text",
    [
        (CASES / "toml-windows-path" / "run.toml").read_text(encoding="utf-8"),
        'name = "a"\ncheckpoint = "D:\\sd\\models\\x.safetensors"\n',
        'name = "a"\n\n[data]\nfolder = "..\\users\\me"\n',
        '[data]\nfolder = "C:\\pictures\\"\n',
        'data.folder = "E:\\',
    ],
)
def test_toml_with_a_windows_path_in_double_quotes_names_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"Write Windows paths in single quotes, as 'C:\\pictures', or with /"):
        read_toml(path)


@pytest.mark.parametrize("text", ["name = ", 'a = "C:\\\\x"\nb = oh', 'a = "x', "[data\nfolder = 'C:\\x'"])
def test_other_toml_says_nothing_of_paths(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not valid TOML") as caught:
        read_toml(path)
    assert "Windows" not in str(caught.value)


# ------------------------------------------------------------------ what uses them
def test_the_pasted_path_of_a_lora_is_found(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    lora = tmp_path / "my lora.safetensors"
    shutil.copy(CASES / "quoted-path" / "lora.safetensors", lora)
    for wrap in WRAPS:
        assert jobs.loras.find(wrap.format(lora), outside=True) == lora
        assert jobs.tools.info(wrap.format(lora), outside=True)["path"] == str(lora)
    assert jobs.loras.new("'mine'", lora).name == "mine.safetensors"


@pytest.mark.parametrize("text", ['"{}"', "'{}'"])
def test_the_pasted_path_of_a_checkpoint_is_found(tmp_path: Path, text: str) -> None:
    host = StandaloneHost(tmp_path, text.format(CHECKPOINT))
    assert host.check(ModelRequest()).name == CHECKPOINT.name
    assert CHECKPOINT in host.checkpoints()


def test_the_case_of_a_quoted_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "case"
    shutil.copytree(CASES / "quoted-path", case)
    checkpoint = f"checkpoint='{CHECKPOINT}'"
    arguments = ["train", str(case / "run.toml"), "--root", str(tmp_path), "--set", checkpoint]
    main(arguments)
    assert "is not a .safetensors file" not in capsys.readouterr().err


def values_with(key: str, value: Any, root: Path) -> Mapping[str, Any]:
    found = document(root)
    section, _, name = key.rpartition(".")
    (found[section] if section in found else found.setdefault(section, {}) if section else found)[name] = value
    return found


@pytest.mark.parametrize("name", ["~nobody-here", "~nobody-here/x.safetensors", "~" * 40, "~/" + "x" * 5000])
@pytest.mark.parametrize("field", PATHS)
def test_a_name_with_a_tilde_is_a_name_or_a_sentence(tmp_path: Path, field: str, name: str) -> None:
    jobs = make_jobs(tmp_path)
    settings = TrainConfig.from_dict(values_with(field, name, tmp_path))
    if field == "save.folder":
        if len(name) < 100:
            jobs.check(settings)
        return
    with pytest.raises(InputError) as caught:
        jobs.check(settings)
    assert caught.value.field == field
    assert name.partition("/")[2] in str(caught.value)


TOOLS: list[Callable[[str, Path], list[str]]] = [
    lambda path, root: ["lora", "info", path],
    lambda path, root: ["lora", "resize", path, "--rank", "1", "--output", str(root / "new.safetensors")],
    lambda path, root: ["lora", "extract", path, path, "--rank", "1", "--output", str(root / "new.safetensors")],
    lambda path, root: ["lora", "merge", path, path, "--output", str(root / "new.safetensors")],
    lambda path, root: ["lora", "mix", f"{path}:0.7", "--count", "1", "--root", str(root)],
    lambda path, root: ["blocks", "show", path],
    lambda path, root: ["blocks", "bake", path, "--lbw", "ALL1"],
    lambda path, root: ["blocks", "analyze", path, "--root", str(root)],
    lambda path, root: ["dataset", "check", path],
    lambda path, root: ["train", path],
    lambda path, root: ["ui", "--checkpoint", path],
]


@pytest.mark.parametrize("make", TOOLS, ids=lambda make: " ".join(make("PATH", Path())[:2]))
def test_a_tilde_in_a_command_is_one_line(
    make: Callable[[str, Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("~nobody-here/a.safetensors", "~nobody-here.safetensors"):
        if make(path, tmp_path)[0] == "ui":
            pytest.importorskip("gradio")
        assert main(make(path, tmp_path)) == 2
        err = capsys.readouterr().err
        assert (err.startswith("error: "), err.count("\n")) == (True, 1)


@pytest.mark.parametrize("case", ["tilde-name/run.toml", "tilde-name-2/a.toml", "tilde-name-2/b.toml"])
def test_the_cases_of_a_tilde(case: str, tmp_path: Path) -> None:
    shutil.copytree(CASES / Path(case).parent, tmp_path / "case")
    values = TrainConfig.from_toml(tmp_path / "case" / Path(case).name)
    jobs = make_jobs(tmp_path)
    values = values.with_values({"data.folder": str(tmp_path / "case" / "pictures")})
    if values.save.folder:
        jobs.check(values.with_values({"checkpoint": str(CHECKPOINT)}))
        return
    with pytest.raises(InputError, match="~foo"):
        jobs.check(values if "foo" in values.checkpoint else values.with_values({"checkpoint": str(CHECKPOINT)}))


def test_quoted_paths_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "my lora.safetensors"
    shutil.copy(CASES / "quoted-path" / "lora.safetensors", lora)
    draw_pictures(tmp_path / "my pictures", 1)
    monkeypatch.setenv("LORA_TRAIN_RUNS", f'"{tmp_path / "runs"}"')
    for arguments in (
        ["lora", "info", f'"{lora}"'],
        ["lora", "resize", f"'{lora}'", "--rank", "1", "--output", f'"{tmp_path / "new.safetensors"}"'],
        ["blocks", "show", f" {lora} "],
        ["lora", "mix", f'"{lora}":0.7', "--count", "1", "--root", f"'{tmp_path}'"],
        ["dataset", "check", f"“{tmp_path / 'my pictures'}”", "--resolution", "96"],
        ["runs"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "new.safetensors").is_file()
    assert str(tmp_path / "runs") in capsys.readouterr().out


def test_what_no_file_can_be_is_told_and_what_is_only_missing_is_not(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in (("loop", "leads to itself"), ("a" * 300, "longer than a path"), ("a\0b", "characters")):
        assert said in impossible(tmp_path / name)
    assert "characters" in impossible(tmp_path / "\ud800")
    for name in ("missing", "missing/below", "", "loopless"):
        assert impossible(tmp_path / name) == ""


@pytest.mark.parametrize(("taken", "free"), [((), "a"), (("a",), "a-2"), (("a", "a-2", "a-4"), "a-3"), (("a-2",), "a")])
def test_a_free_name_is_the_wanted_one_or_the_first_with_a_number(taken: tuple[str, ...], free: str) -> None:
    assert free_name("a", lambda name: name in taken) == free
