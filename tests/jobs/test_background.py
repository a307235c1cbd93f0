"""Chores: their states, whatever goes wrong with them, and that they can be stopped and are forgotten in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.jobs.background import REMEMBERED, Chores, Progress
from lora_trainer.jobs.queue import Line
from tests.helpers import LIMIT


class Result:
    def to_dict(self) -> dict[str, Any]:
        return {"path": "x"}


@pytest.fixture
def chores() -> Chores:
    return Chores(Line("test"))


def held(chores: Chores) -> tuple[Any, threading.Event]:
    """A chore that goes on until it is let go; it looks at its progress then."""
    begun, go = threading.Event(), threading.Event()

    def work(progress: Progress) -> Result:
        progress(1, 4)
        begun.set()
        assert go.wait(LIMIT)
        progress(2, 4)
        return Result()

    chore = chores.start("merge", "ab", work)
    assert begun.wait(LIMIT)
    return chore, go


def test_a_chore_from_start_to_result(chores: Chores) -> None:
    chore, go = held(chores)
    second = chores.start("bake", "b", lambda progress: Result())
    assert (chore.state, chore.done, chore.of, second.state) == ("running", 1, 4, "queued")
    assert chores.get(chore.id) is chore
    assert chores.list() == [second, chore]
    go.set()
    assert chores.wait(second, LIMIT)
    assert chores.wait(chore, LIMIT)
    assert chore.to_dict() == {
        "id": "merge-1", "kind": "merge", "title": "ab", "state": "done", "done": 2, "of": 4, "message": "",
        "result": {"path": "x"},
    }  # fmt: skip


def test_a_chore_that_goes_on_stops_at_its_next_progress(chores: Chores) -> None:
    chore, go = held(chores)
    chores.stop(chore.id)
    go.set()
    assert chores.wait(chore, LIMIT)
    assert (chore.state, str(chore.error), chore.result) == ("stopped", "It was stopped.", None)


def test_a_chore_that_waits_is_stopped_at_once_and_one_that_is_over_cannot_be(chores: Chores) -> None:
    chore, go = held(chores)
    second = chores.start("bake", "b", lambda progress: Result())
    assert chores.stop(second.id).state == "stopped"
    with pytest.raises(InputError, match="b is over already"):
        chores.stop(second.id)
    go.set()
    assert chores.wait(chore, LIMIT)
    assert chore.state == "done"
    assert second.result is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("{a} is wrong.", a=1), "1 is wrong."),
        (ZeroDivisionError("no"), "Unexpected error, ZeroDivisionError: no."),
    ],
)
def test_what_goes_wrong_is_a_sentence(chores: Chores, error: Exception, sentence: str) -> None:
    def fail(progress: Progress) -> Result:
        raise error

    chore = chores.start("bake", "b", fail)
    assert chores.wait(chore, LIMIT)
    assert (chore.state, chore.to_dict()["message"]) == ("failed", sentence)


def test_old_chores_are_forgotten_but_none_that_waits(chores: Chores) -> None:
    work: Callable[[Progress], Result] = lambda progress: Result()  # noqa: E731
    first, go = held(chores)
    many = [chores.start("bake", str(number), work) for number in range(REMEMBERED + 5)]
    assert len(chores.list()) == REMEMBERED + 6
    go.set()
    assert all(chores.wait(chore, LIMIT) for chore in [first, *many])
    last = chores.start("bake", "last", work)
    assert len(chores.list()) == REMEMBERED
    assert chores.list()[0] is last
    with pytest.raises(NotFound, match="There is no work merge-1"):
        chores.get(first.id)
