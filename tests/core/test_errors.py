from __future__ import annotations

import copy
import pickle

import pytest

from lora_trainer.core.errors import CheckpointChanged, ConfigErrors, InputError, LoraTrainError, NotFound, RunError
from lora_trainer.dataset.images import PictureError

KINDS = [LoraTrainError, InputError, NotFound, RunError, CheckpointChanged, PictureError]


def test_sentence_is_the_filled_template() -> None:
    error = InputError("{path} has {count} problems.", field="data.folder", path="a.png", count=2)
    assert str(error) == "a.png has 2 problems."
    assert (error.message.template, error.field) == ("{path} has {count} problems.", "data.folder")


@pytest.mark.parametrize("value", ["{count}", "{", "}{0}"])
def test_braces_in_values_are_not_filled_again(value: str) -> None:
    assert str(InputError("{path} is bad.", path=value)) == f"{value} is bad."


def test_template_without_values_is_taken_literally() -> None:
    assert str(RunError("weights {0.3}")) == "weights {0.3}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copy", "pickle"])
def test_errors_survive_copying(kind: type[LoraTrainError], copied) -> None:
    error = copied(kind("{a} failed.", field="network.rank", a="x"))
    assert (type(error), str(error), error.field, error.message.values) == (
        kind,
        "x failed.",
        "network.rank",
        {"a": "x"},
    )


def test_several_errors_are_one_sentence_after_the_other_and_survive_copying() -> None:
    errors = ConfigErrors([InputError("{a} is wrong.", field="a", a=1), InputError("So is b.", field="b")])
    for error in (errors, copy.copy(errors), pickle.loads(pickle.dumps(errors))):
        assert str(error) == "1 is wrong. So is b."
        assert [e.field for e in error.errors] == ["a", "b"]
        assert error.field == "a"


@pytest.mark.parametrize(
    ("kind", "family"),
    [(NotFound, InputError), (ConfigErrors, InputError), (PictureError, InputError), (CheckpointChanged, RunError)],
)
def test_kinds_decide_the_exit_code(kind: type, family: type) -> None:
    assert issubclass(kind, family)
    assert not issubclass(RunError, InputError)
