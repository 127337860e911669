"""The warm children of a worker process: how many are started, and who gets one. A stand-in takes the place of the program."""

import threading
from collections.abc import Callable

import pytest

from django_jobs.worker.child import pool as pools
from django_jobs.worker.child.pool import ChildPool
from django_jobs.worker.state import WorkerState
from tests.support.threads import run_in_threads


class Stand:
    """A child that is ready at once."""

    started = 0

    def __init__(self) -> None:
        type(self).started += 1
        self.jobs = 0
        self.is_alive = True
        self.has_ended = False

    def answer(self, wants_end: Callable[[], bool], seconds: float) -> str:
        return "ready"

    def end(self, grace: float) -> None:
        self.is_alive = False
        self.has_ended = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ChildPool:
    monkeypatch.setattr(Stand, "started", 0)
    monkeypatch.setattr(pools, "IsolatedChild", Stand)
    return ChildPool(WorkerState())


def test_the_patient_share_one(pool: ChildPool) -> None:
    def use() -> None:
        for _ in range(25):
            child = pool.take(20.0)
            assert child is not None
            child.jobs += 1
            pool.give_back(child)

    run_in_threads(use, count=4)
    assert Stand.started == 1


def test_the_impatient_and_the_first_get_one_at_once(pool: ChildPool) -> None:
    children = [pool.take(patience) for patience in (20.0, 0.0, 0.0)]
    assert len({id(child) for child in children}) == Stand.started == 3


def test_patience_ends_when_none_is_given_back(pool: ChildPool) -> None:
    assert pool.take(0.01) is not pool.take(0.01)
    assert Stand.started == 2


def test_one_that_has_died_or_run_enough_is_not_handed_out_again(pool: ChildPool) -> None:
    for spoil in (lambda child: child.end(0.0), lambda child: setattr(child, "jobs", pools.MAX_JOBS_PER_CHILD)):
        child = pool.take(0.0)
        spoil(child)
        assert child is not None
        pool.give_back(child)
        assert child.has_ended
        other = pool.take(20.0)
        assert other is not child
        assert other is not None
        pool.give_back(other)


def test_whoever_waits_gets_the_one_that_is_given_back(pool: ChildPool) -> None:
    child = pool.take(0.0)
    assert child is not None
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(pool.take(20.0)), daemon=True)
    waiting.start()
    pool.give_back(child)
    waiting.join(60)
    assert got == [child]


def test_idle_ones_are_ended_with_the_last_thread(pool: ChildPool) -> None:
    child = pool.take(0.0)
    assert child is not None
    pool.give_back(child)
    pool.end_idle()
    assert child.has_ended
