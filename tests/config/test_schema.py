"""Lists of numbers among the options: typed, bounded, described; and bounds that somebody else looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lora_trainer.config.schema import check_value, option, options_of, read_document, schema_of, typed_value
from lora_trainer.core.errors import InputError


@dataclass
class Wanted:
    """What is wanted."""

    weights: list[float] = option([], "Weights", "Of the LoRA.", min=-2, max=2)
    seeds: list[int] = option([3], "Seeds", "Of the pictures.", min=0, max=9)
    prompts: list[str] = option([], "Prompts", "One a line.")


OPTIONS = {item.path: item for item in options_of(Wanted, "")}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("weights", [1, 0.5], [1.0, 0.5]),
        ("weights", (-2,), [-2.0]),
        ("weights", [], []),
        ("seeds", [1, 2.0], [1, 2]),
        ("prompts", ["a"], ["a"]),
    ],
)
def test_a_list_has_the_type_of_its_values(name: str, value: Any, found: list[Any]) -> None:
    got = check_value(OPTIONS[name], value)
    assert got == found
    assert [type(v) for v in got] == [type(v) for v in found]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("weights", "many", "weights: expected a list of numbers."),
        ("weights", 1.0, "weights: expected a list of numbers."),
        ("weights", [True], "weights: expected a list of numbers."),
        ("weights", [float("nan")], "weights: expected a list of numbers."),
        ("weights", [1, 2.5], "weights: 2.5 is out of range; use -2 to 2."),
        ("seeds", 3, "seeds: give whole numbers from 0 to 9."),
        ("seeds", [1.5], "seeds: give whole numbers from 0 to 9."),
        ("seeds", ["1"], "seeds: give whole numbers from 0 to 9."),
        ("seeds", [4, 10], "seeds: give whole numbers from 0 to 9."),
        ("prompts", [1], "prompts: expected a list of texts, not [1]."),
    ],
)
def test_what_does_not_fit_is_a_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check_value(OPTIONS[name], value)
    assert (str(caught.value), caught.value.field) == (sentence, name)


def test_bounds_can_be_left_to_others() -> None:
    assert typed_value(OPTIONS["weights"], [99]) == [99.0]
    errors: list[InputError] = []
    found = read_document(Wanted, {"weights": [99], "seeds": "x"}, "", errors, typed_value)
    assert (found, [error.field for error in errors]) == (Wanted(weights=[99.0]), ["seeds"])


def test_bounds_are_those_of_each_value_in_the_schema() -> None:
    properties = schema_of(Wanted)["properties"]
    assert properties["seeds"]["items"] == {"type": "integer", "minimum": 0, "maximum": 9}
    assert properties["seeds"]["default"] == [3]
    assert properties["weights"]["items"] == {"type": "number", "minimum": -2, "maximum": 2}
    assert properties["prompts"]["items"] == {"type": "string"}
