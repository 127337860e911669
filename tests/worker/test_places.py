"""The places that the processes of several databases share: whose turn it is, and whose places count."""

import threading
import time
from typing import Any

import pytest

from django_jobs.worker import places as rule
from django_jobs.worker.cli import Options, StopSignals
from django_jobs.worker.places import CLAIM_SECONDS, Places
from django_jobs.worker.several import Group
from django_jobs.worker.state import EXIT_LEASE_LOST, EXIT_RECYCLE, WorkerState
from tests.support.waiting import wait_until


class Holder:
    """What the places know of a worker thread and its process; each has one of its own."""

    def __init__(self, state: WorkerState) -> None:
        self.process = self.maintenance = self
        self.state = state
        self.is_stopping = False
        self.was_asked = False

    def expect_due(self, seconds: float) -> None:
        self.was_asked = True


def worker(state: WorkerState) -> Any:
    """Return what the places know of a worker thread."""
    return Holder(state)


class Waiting(threading.Thread):
    """Waits for a place, and appends the name of its database to a list when it has got one."""

    def __init__(self, places: Places, of: Any, name: str, got: list[str]) -> None:
        super().__init__(daemon=True)
        self.worker, self._places, self._name, self._got = of, places, name, got
        self.start()

    def run(self) -> None:
        if self._places.take(self.worker):
            self._places.keep(self.worker)
            self._got.append(self._name)


def waiting(places: Places, *names: str, states: dict[str, WorkerState], got: list[str]) -> list[Waiting]:
    """Let a thread for each name wait, one after the other."""
    threads = []
    for name in names:
        threads.append(Waiting(places, worker(states[name]), name, got))
        wait_until(lambda: len(places._waiting) + len(got) == len(threads) or places.free() > 0)
    return threads


def test_a_place_goes_to_the_database_that_has_waited_longest_for_its_turn() -> None:
    places, got = Places(1), list[str]()
    states = {name: WorkerState() for name in "abc"}
    first = worker(states["a"])
    assert places.take(first)
    places.keep(first)
    threads = waiting(places, "a", "a", "b", "c", states=states, got=got)
    assert places.is_contended
    places.leave(first)
    for number in range(1, 5):
        wait_until(lambda number=number: len(got) == number)
        places.leave(next(thread.worker for thread in threads if thread.worker in places._held))
    assert got == ["b", "c", "a", "a"]


def test_places_of_a_database_that_is_away_do_not_count() -> None:
    places, got = Places(1), list[str]()
    states = {name: WorkerState() for name in "ab"}
    held = worker(states["a"])
    assert places.take(held)
    places.keep(held)
    waiting(places, "b", states=states, got=got)
    wait_until(lambda: held.was_asked)
    assert not got
    states["a"].asked_at = time.monotonic() - 1  # since when a look at its server is not answered
    wait_until(lambda: got == ["b"])
    assert places.free() == 0
    states["a"].asked_at = None
    places.leave(held)


def test_a_claim_that_takes_long_keeps_no_place() -> None:
    places = Places(1)
    claiming = worker(WorkerState())
    assert places.take(claiming)
    assert places.free() == 0
    wait_until(lambda: places.free() == 1, 10 * CLAIM_SECONDS + 5)


def test_who_claimed_for_too_long_runs_nothing_beside_those_who_got_the_place_and_has_time_for_the_next_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rule, "LATE_CLAIM_SECONDS", 3_600.0)
    places = Places(1)
    slow, other = worker(WorkerState()), worker(WorkerState())
    assert places.take(slow)
    assert places.take(other), "once the claim of the slow one has taken too long"
    assert places.keep(other)
    assert not places.keep(slow)
    places.leave(slow)
    places.leave(other)
    assert places.take(slow)
    until = time.monotonic() + 3 * CLAIM_SECONDS
    wait_until(lambda: time.monotonic() > until)
    assert places.free() == 0, "otherwise a server that is always slow would never have its turn"
    assert places.keep(slow)


def test_who_was_cut_off_while_it_claimed_runs_nothing_beside_those_who_got_its_place() -> None:
    places = Places(1)
    states = {name: WorkerState() for name in "ab"}
    cut_off, other = (worker(state) for state in states.values())
    assert places.take(cut_off)
    states["a"].asked_at = time.monotonic() - 3_600
    assert places.take(other)
    assert places.keep(other)
    states["a"].asked_at = None
    assert not places.keep(cut_off)
    places.leave(cut_off)
    places.leave(other)
    assert places.take(cut_off)


def test_who_claimed_for_too_long_keeps_a_place_that_nobody_took() -> None:
    places = Places(1)
    slow = worker(WorkerState())
    assert places.take(slow)
    wait_until(lambda: places.free() == 1)
    assert places.keep(slow)
    assert places.free() == 0


def test_a_thread_that_is_to_stop_waits_no_longer() -> None:
    places = Places(1)
    holder, late = worker(WorkerState()), worker(WorkerState())
    assert places.take(holder)
    places.keep(holder)
    late.is_stopping = True
    assert not places.take(late)
    assert not places.is_contended


def group() -> Group:
    """Return members of two databases that have not started."""
    options = Options(
        queues=None, threads=2, processes=None, drain=False, poll_interval=None, max_jobs=None, max_rss=None,
        supervised=None, databases=("default", "tenant"),
    )  # fmt: skip
    return Group(options, StopSignals(is_program=False))


def test_a_lost_lease_is_the_exit_code_only_when_no_database_is_left() -> None:
    members = group()
    one, other = members.members
    one.process.state.lose_lease()
    assert not members.others_live(one), "the other one has not registered"
    assert members.exit_code == EXIT_LEASE_LOST
    other.process._is_registered = True
    assert members.exit_code == 0
    other.process.state.recycle()
    assert members.exit_code == EXIT_RECYCLE
    in_turn = group()
    one, other = in_turn.members
    one.process.state.lose_lease()
    one.process = group().members[0].process  # as `run` does while others live
    other.process.state.lose_lease()
    assert in_turn.exit_code == EXIT_LEASE_LOST
    both = group()
    for member in both.members:
        member.process.state.lose_lease()
    assert both.exit_code == EXIT_LEASE_LOST
