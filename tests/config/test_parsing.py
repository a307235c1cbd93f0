from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config import parsing as lists
from lora_trainer.core.errors import InputError

COMMAS = st.sampled_from([",", "，", "、", ", ", " ,, "])


@given(st.lists(st.integers(0, 2**63 - 1)), COMMAS)
def test_seeds_are_what_was_joined_with_commas(seeds: list[int], comma: str) -> None:
    assert lists.seeds(comma.join(map(str, seeds))) == seeds


@given(st.lists(st.floats(-2, 2)), COMMAS)
def test_weights_are_what_was_joined_with_commas(weights: list[float], comma: str) -> None:
    assert lists.weights(comma.join(map(str, weights))) == weights


@given(st.text(max_size=60))
def test_any_text_is_a_list_or_one_sentence(text: str) -> None:
    for read in (lists.weights, lists.seeds):
        try:
            found = read(text)
        except InputError:
            continue
        assert len(found) == len(lists.parts(text))


@pytest.mark.parametrize("text", ["one", "1; 2", "1, two", "1.5"])
def test_what_is_no_whole_number_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"seeds: “.*” is not a whole number"):
        lists.seeds(text)
