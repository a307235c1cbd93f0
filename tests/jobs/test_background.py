"""Chores: their states, whatever goes wrong with them, and that they can be stopped and are forgotten in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.jobs.background import REMEMBERED, BackgroundTasks, Progress
from lora_trainer.jobs.queue import JobQueue
from tests.helpers import LIMIT


class Result:
    def to_dict(self) -> dict[str, Any]:
        return {"path": "x"}


@pytest.fixture
def tasks() -> BackgroundTasks:
    return BackgroundTasks(JobQueue("test"))


def held(tasks: BackgroundTasks) -> tuple[Any, threading.Event]:
    """A task that goes on until it is let go; it looks at its progress then."""
    begun, go = threading.Event(), threading.Event()

    def work(progress: Progress) -> Result:
        progress(1, 4)
        begun.set()
        assert go.wait(LIMIT)
        progress(2, 4)
        return Result()

    task = tasks.start("merge", "ab", work)
    assert begun.wait(LIMIT)
    return task, go


def test_a_task_from_start_to_result(tasks: BackgroundTasks) -> None:
    task, go = held(tasks)
    second = tasks.start("bake", "b", lambda progress: Result())
    assert (task.state, task.done, task.of, second.state) == ("running", 1, 4, "queued")
    assert tasks.get(task.id) is task
    assert tasks.list() == [second, task]
    go.set()
    assert tasks.wait(second, LIMIT)
    assert tasks.wait(task, LIMIT)
    assert task.to_dict() == {
        "id": "merge-1", "kind": "merge", "title": "ab", "state": "done", "done": 2, "of": 4, "message": "",
        "result": {"path": "x"},
    }  # fmt: skip


def test_a_task_that_goes_on_stops_at_its_next_progress(tasks: BackgroundTasks) -> None:
    task, go = held(tasks)
    tasks.stop(task.id)
    go.set()
    assert tasks.wait(task, LIMIT)
    assert (task.state, str(task.error), task.result) == ("stopped", "It was stopped.", None)


def test_a_task_that_waits_is_stopped_at_once_and_one_that_is_over_cannot_be(tasks: BackgroundTasks) -> None:
    task, go = held(tasks)
    second = tasks.start("bake", "b", lambda progress: Result())
    assert tasks.stop(second.id).state == "stopped"
    with pytest.raises(InputError, match="b is over already"):
        tasks.stop(second.id)
    go.set()
    assert tasks.wait(task, LIMIT)
    assert task.state == "done"
    assert second.result is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("{a} is wrong.", a=1), "1 is wrong."),
        (ZeroDivisionError("no"), "Unexpected error, ZeroDivisionError: no."),
    ],
)
def test_what_goes_wrong_is_a_sentence(tasks: BackgroundTasks, error: Exception, sentence: str) -> None:
    def fail(progress: Progress) -> Result:
        raise error

    task = tasks.start("bake", "b", fail)
    assert tasks.wait(task, LIMIT)
    assert (task.state, task.to_dict()["message"]) == ("failed", sentence)


def test_old_tasks_are_forgotten_but_none_that_waits(tasks: BackgroundTasks) -> None:
    work: Callable[[Progress], Result] = lambda progress: Result()  # noqa: E731
    first, go = held(tasks)
    many = [tasks.start("bake", str(number), work) for number in range(REMEMBERED + 5)]
    assert len(tasks.list()) == REMEMBERED + 6
    go.set()
    assert all(tasks.wait(task, LIMIT) for task in [first, *many])
    last = tasks.start("bake", "last", work)
    assert len(tasks.list()) == REMEMBERED
    assert tasks.list()[0] is last
    with pytest.raises(NotFound, match="There is no work merge-1"):
        tasks.get(first.id)
