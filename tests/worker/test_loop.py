"""The base of the loops: a foreseen error is an outage to wait for, any other one recycles the process."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError

from django_jobs.worker import backoff
from django_jobs.worker.loop import Loop
from django_jobs.worker.state import EXIT_RECYCLE, WorkerState
from django_jobs.worker.watchdog import Watchdog
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("sqlite")]


class Counting(Loop):
    """Counts its steps, each of which is one of the `actions`, the last one again and again."""

    def __init__(self, state: WorkerState, *actions: Callable[[], float | None]) -> None:
        super().__init__("counting", state)
        self.steps = 0
        self._actions = actions

    def step(self) -> float | None:
        self.steps += 1
        return self._actions[min(self.steps, len(self._actions)) - 1]()


def refuse(error: Exception) -> Callable[[], float | None]:
    def action() -> float | None:
        raise error

    return action


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Counting]]:
    monkeypatch.setattr(backoff, "LONGEST_PAUSE", 0.01)
    loops: list[Counting] = []

    def start_loop(*actions: Callable[[], float | None], kind: type[Counting] = Counting) -> Counting:
        loop = kind(WorkerState(), *actions)
        loops.append(loop)
        loop.start()
        return loop

    yield start_loop
    for loop in loops:
        loop.stop()
        loop.join(60)
        assert not loop.is_alive()


def test_a_rest_without_an_end_is_ended_by_wake_and_by_stop(start: Any) -> None:
    loop = start(lambda: None)
    wait_until(lambda: loop.steps == 1, 60, "the first step")
    loop.wake()
    wait_until(lambda: loop.steps == 2, 60, "the second step")


def test_a_wake_during_a_step_leaves_out_the_next_rest(start: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go_on.wait(60)

    loop = start(first, lambda: None)
    assert begun.wait(60)
    loop.wake()
    go_on.set()
    wait_until(lambda: loop.steps == 2, 60, "the second step")


def test_a_database_error_is_waited_for_and_the_loop_goes_on(start: Any) -> None:
    loop = start(refuse(OperationalError("server closed the connection")), lambda: None)
    wait_until(lambda: loop.steps == 2, 60, "the second step")
    assert loop._state.backoff.count == 1
    assert not loop._state.is_stopping


def test_an_unforeseen_error_recycles_the_process(start: Any) -> None:
    loop = start(refuse(ZeroDivisionError("a bug")))
    loop.join(60)
    assert not loop.is_alive()
    assert loop._state.is_stopping
    assert loop._state.exit_code == EXIT_RECYCLE


def test_the_watchdog_goes_on_after_any_error(start: Any) -> None:
    class Foreseeing(Counting):
        foreseen = Watchdog.foreseen

    loop = start(refuse(ZeroDivisionError("a bug")), lambda: None, kind=Foreseeing)
    wait_until(lambda: loop.steps == 2, 60, "the second step")
    assert not loop._state.is_stopping
