"""The line: one thing after the other, in order, whatever goes wrong with one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.jobs.queue import JobQueue, QueuedJob
from lora_trainer.runs.control import Control, StopRequest
from lora_trainer.runs.run import Run
from tests.helpers import LIMIT, until


class Gated:
    """A line whose first task goes on until it is let go, so that the others wait behind it."""

    def __init__(self) -> None:
        self.line = JobQueue("test")
        self.done: list[str] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.first = self.add("first", self._hold)
        assert self.begun.wait(LIMIT)

    def _hold(self, control: Control) -> None:
        self.begun.set()
        assert self.go.wait(LIMIT)

    def add(self, name: str, work: Callable[[Control], object] = lambda control: None) -> QueuedJob:
        def noted(control: Control) -> None:
            try:
                work(control)
            finally:
                self.done.append(name)

        task = QueuedJob(Run(Path(name)), noted)
        self.line.add(task)
        return task

    def finish(self) -> list[str]:
        """Let the first go; what was done, in order."""
        tasks = [self.first, *self.line.waiting()]
        self.go.set()
        assert all(self.line.wait(task.run, LIMIT) for task in tasks)
        return self.done


@pytest.fixture
def gated() -> Gated:
    return Gated()


def test_tasks_are_done_in_the_order_in_which_they_came(gated: Gated) -> None:
    for number in range(5):
        gated.add(str(number))
    assert gated.done == []
    assert gated.finish() == ["first", "0", "1", "2", "3", "4"]


def test_a_task_that_fails_does_not_stop_the_line(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    def fail(control: Control) -> None:
        raise ZeroDivisionError

    gated.add("bad", fail)
    gated.add("good")
    assert gated.finish() == ["first", "bad", "good"]
    assert "unexpected error" in caplog.text


def test_one_is_worked_on_while_the_others_wait(gated: Gated) -> None:
    second, third = gated.add("second"), gated.add("third")
    assert gated.line.current() is gated.first
    assert gated.line.waiting() == [second, third]
    for task in (gated.first, second, third):
        assert gated.line.find(task.run) is task
    assert gated.line.find(Run(Path("stranger"))) is None
    gated.finish()
    assert gated.line.current() is None
    assert gated.line.waiting() == []
    assert gated.line.find(third.run) is None


def test_a_waiting_task_can_be_taken_out_and_one_that_is_worked_on_cannot(gated: Gated) -> None:
    second, _ = gated.add("second"), gated.add("third")
    assert gated.line.remove(second)
    assert not gated.line.remove(second)
    assert not gated.line.remove(gated.first)
    assert gated.line.wait(second.run, 0)
    assert gated.finish() == ["first", "third"]


def test_a_waiting_task_can_be_the_next(gated: Gated) -> None:
    second, third = gated.add("second"), gated.add("third")
    assert gated.line.move(third, 0)
    assert gated.line.waiting() == [third, second]
    assert not gated.line.move(gated.first, 0)
    assert gated.finish() == ["first", "third", "second"]


def test_a_task_that_ends_the_thread_does_not_end_the_line(gated: Gated) -> None:
    def leave(control: Control) -> None:
        raise SystemExit

    task = QueuedJob(gated.first.run, leave)
    gated.line.add(task)
    gated.add("after")
    assert gated.finish() == ["first", "after"]


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "move"]), st.integers(0, 5), st.integers(-1, 6)), max_size=12)
)
def test_the_line_is_a_list_whatever_is_done_to_it(actions: list[tuple[str, int, int]]) -> None:
    gated = Gated()
    model: list[QueuedJob] = []
    for count, (action, place, to) in enumerate(actions):
        if action == "add":
            model.append(gated.add(str(count)))
        elif place < len(model):
            task = model.pop(place)
            assert gated.line.remove(task) if action == "remove" else gated.line.move(task, to)
            if action == "move":
                model.insert(max(0, to), task)
        assert gated.line.waiting() == model
    gated.go.set()
    assert all(gated.line.wait(task.run, LIMIT) for task in [gated.first, *model])
    assert gated.done == ["first", *(task.run.name for task in model)]


def test_waiting_ends_when_the_time_is_over_or_nothing_is_left(gated: Gated) -> None:
    second = gated.add("second")
    assert not gated.line.wait(second.run, 0)
    assert not gated.line.wait(gated.first.run, 0.01)
    assert gated.line.wait(Run(Path("stranger")), 0)
    gated.finish()
    assert gated.line.wait(second.run)


def test_a_line_that_has_ended_begins_again(gated: Gated) -> None:
    gated.finish()
    until(lambda: gated.line._thread is None)
    again = gated.add("again")
    assert gated.line.wait(again.run, LIMIT)
    assert gated.done == ["first", "again"]


def test_each_job_is_stopped_for_itself(gated: Gated) -> None:
    seen: list[StopRequest | None] = []
    second = gated.add("second", lambda control: seen.append(control.request))
    gated.add("third", lambda control: seen.append(control.request))
    second.control.ask(StopRequest.STOP)
    gated.finish()
    assert seen == [StopRequest.STOP, None]


def test_work_is_done_on_one_thread_that_does_not_keep_the_program_alive(gated: Gated) -> None:
    threads: list[threading.Thread] = []
    for name in ("second", "third"):
        gated.add(name, lambda control: threads.append(threading.current_thread()))
    gated.finish()
    assert len(set(threads)) == 1
    assert threads[0].daemon
    assert threads[0].name == "test"
