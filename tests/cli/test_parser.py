"""The command line's parser: one sentence for bad input, help for everything, lists in every spelling."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.cli.main import build_parser, main
from lora_trainer.cli.parser import as_path
from lora_trainer.jobs.requests import SV_METHODS, tool_options
from lora_trainer.validation.grid.plan import DEFAULT_WEIGHTS


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


EVERY = {parser.prog: parser for parser in parsers(build_parser())}


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


# ------------------------------------------------------------------ help
@pytest.mark.parametrize("command", EVERY)
def test_every_command_and_every_option_has_help(command: str) -> None:
    assert EVERY[command].description
    for action in EVERY[command]._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(choice.help for choice in action._choices_actions)
        else:
            assert action.help, action.option_strings or action.dest


@pytest.mark.parametrize("command", EVERY)
def test_help_can_be_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split()[1:], "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {command} ")


def test_help_tells_the_defaults_of_the_grid() -> None:
    (told,) = re.findall(r"of the LoRA \(default: ([\d. ]+)\)", EVERY["lora-trainer grid"].format_help())
    assert tuple(map(float, told.split())) == DEFAULT_WEIGHTS


@pytest.mark.parametrize(
    ("command", "kind", "otherwise"),
    [
        ("blocks bake", "bake", {}),
        ("lora merge", "merge", {"files": {"files", "weights", "lbw"}}),
        ("lora resize", "resize", {"method": set(SV_METHODS), "keep": set(SV_METHODS)}),
        ("lora extract", "extract", {}),
    ],
)
def test_every_option_of_a_file_tool_has_a_flag_of_its_type_and_choices(
    command: str, kind: str, otherwise: dict[str, set[str]]
) -> None:
    actions = {action.dest: action for action in EVERY[f"lora-trainer {command}"]._actions}
    for item in tool_options(kind):
        if item.path in otherwise:
            assert otherwise[item.path] <= set(actions)
            continue
        action = actions[item.path]
        assert action.type is (as_path if item.is_path else item.type)
        assert set(action.choices or []) == set(item.choices) - {"auto"}
        assert item.flag is not None
        assert action.help == item.flag.help
        assert action.required == (item.flag.given in ("required", "argument"))
        assert action.default == (item.default if item.flag.given == "default" and not item.is_path else None)


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND; see lora-trainer --help."),
        (["lora"], "the following arguments are required: WHAT; see lora-trainer lora --help."),
        (["grid"], "the following arguments are required: RUN; see lora-trainer grid --help."),
        (
            ["grid", "r", "--together", "x"],
            "argument --together: invalid int value: 'x'; see lora-trainer grid --help.",
        ),
        (["grid", "r", "--together"], "argument --together: expected one argument; see lora-trainer grid --help."),
        (
            ["grid", "r", "--weight", "1"],
            "unrecognized arguments: --weight 1 (did you mean --weights?); see lora-trainer grid --help.",
        ),
        (["runs", "--xyz"], "unrecognized arguments: --xyz; see lora-trainer runs --help."),
        (["--xyz", "runs"], "unrecognized arguments: --xyz; see lora-trainer --help."),
        (
            ["grid", "r", "--weights", "a"],
            "argument --weights: expected numbers, not 'a'; see lora-trainer grid --help.",
        ),
        (
            ["grid", "r", "--seeds", "1.5"],
            "argument --seeds: expected whole numbers, not '1.5'; see lora-trainer grid --help.",
        ),
        (["grid", "r", "--seeds"], "argument --seeds: expected one argument; see lora-trainer grid --help."),
        (
            ["grid", "r", "--epochs", "x"],
            "argument --epochs: expected all, last, every 2, 1-5 or 3, not 'x'; see lora-trainer grid --help.",
        ),
        (
            ["lora", "resize", "a", "--output", "b", "--sv-fro", "1", "--sv-ratio", "2"],
            "argument --sv-ratio: not allowed with argument --sv-fro; see lora-trainer lora resize --help.",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


def test_unknown_command_is_one_sentence_that_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "invalid choice: 'trian'" in error
    assert "train" in error


@pytest.mark.parametrize("option", ["--tog=2", "--js"])
def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["grid", "r", option]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


# ------------------------------------------------------------------ lists
@pytest.mark.parametrize(
    ("option", "given", "values"),
    [
        ("--weights", ["0.6,1"], [0.6, 1.0]),
        ("--weights", ["0.6", "1"], [0.6, 1.0]),
        ("--weights", ["0.6,", "1"], [0.6, 1.0]),
        ("--weights", ["0.6, 1"], [0.6, 1.0]),
        ("--weights", ["0.6，1"], [0.6, 1.0]),
        ("--weights", ["-0.5,1", "-1"], [-0.5, 1.0, -1.0]),
        ("--weights", ["0.6", "--weights", "1"], [0.6, 1.0]),
        ("--seeds", ["1,2", "3"], [1, 2, 3]),
        ("--epochs", ["1,3"], ["1", "3"]),
        ("--epochs", ["1", "3"], ["1", "3"]),
        ("--epochs", ["1-5", "last"], ["1-5", "last"]),
        ("--epochs", ["1 - 5, 7"], ["1 - 5", "7"]),
        ("--epochs", ["every 2"], ["every 2"]),
        ("--epochs", ["every", "2"], ["every 2"]),
        ("--epochs", ["3,step 40"], ["3", "step 40"]),
        ("--epochs", ["all"], ["all"]),
    ],
)
def test_lists_are_written_with_commas_or_spaces(option: str, given: list[str], values: list[Any]) -> None:
    name = option[2:]
    assert getattr(parsed("grid", "zorp", option, *given), name) == values
    before = parsed("grid", option, *given, "zorp")
    assert (getattr(before, name), before.name) == (values, "zorp")
    assert getattr(parsed("grid", "zorp", f"{option}={given[0]}", *given[1:]), name) == values


def test_lists_are_new_ones_each_time() -> None:
    parser = build_parser()
    assert parser.parse_args(["grid", "zorp", "--seeds", "1"]).seeds == [1]
    assert parser.parse_args(["grid", "zorp"]).seeds == []


def test_lists_of_other_commands() -> None:
    merge = parsed("lora", "merge", "--weights", "0.8,0.6", "a", "b", "--output", "c.safetensors")
    assert (merge.weights, merge.files) == ([0.8, 0.6], [Path("a"), Path("b")])
    assert parsed("blocks", "analyze", "zorp", "--seed", "1", "2", "--seed", "3,4").seed == [1, 2, 3, 4]


def test_nothing_behind_two_dashes_is_a_list() -> None:
    assert parsed("grid", "--seeds", "1", "--", "2").name == "2"
