"""The tray that the threads of a process share: who claims how many, who settles when, and what is held until when."""

import time
from typing import Any

import pytest

from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.models import AttemptOutcome, JobStatus
from django_jobs.worker import tray as trays
from django_jobs.worker.tray import MAX_BATCH, Duty, Seat, Tray


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stop this test for longer than the tray would be patient."""
    for name in ("GATHER_SECONDS", "PATIENCE_SECONDS", "LONGEST_WAIT_SECONDS", "ASIDE_SECONDS"):
        monkeypatch.setattr(trays, name, 60.0)


def claimed(name: str, fence: int = 1) -> ClaimedJob:
    return ClaimedJob(name, "t.job", "default", "{}", fence, 0, 3, None, 0, "{}", 0, None)


def seated(number: int) -> tuple[Tray, list[Seat]]:
    tray, seats = Tray(), [Seat() for _ in range(number)]
    for seat in seats:
        tray.join(seat)
    return tray, seats


def load(tray: Tray, *jobs: ClaimedJob, is_dry: bool = True) -> None:
    tray.load(jobs, is_dry=is_dry)


def run(tray: Tray, seat: Seat, result: Any = "completed") -> None:
    current = tray.next_run(seat)
    assert current is not None
    tray.finish(seat, Completed(current.job.id, current.job.fence, None) if result == "completed" else result)


def timed_out(job: ClaimedJob) -> Outcome:
    return Outcome(job=job, status=JobStatus.DEAD, attempt=AttemptOutcome.TIMED_OUT)


def learn(tray: Tray, seconds: float) -> None:
    for _ in range(200):
        tray.took(seconds)


@pytest.mark.parametrize(
    ("seconds", "threads", "wanted"),
    [(0.00001, 4, MAX_BATCH), (0.01, 32, 160), (0.01, 4, 20), (2.0, 8, 8), (2.0, 1, 1)],
)
def test_a_claim_is_for_what_all_threads_run_in_50_ms_and_one_for_each(
    seconds: float, threads: int, wanted: int
) -> None:
    tray, _ = seated(threads)
    learn(tray, seconds)
    assert tray.take_claim() in (wanted, wanted - 1)  # the mean comes close


def test_slow_jobs_are_claimed_for_free_threads_only() -> None:
    tray, seats = seated(3)
    learn(tray, 10.0)
    assert tray.take_claim() == 3
    load(tray, claimed("a"), claimed("b"))
    assert tray.next_run(seats[0])
    assert tray.next_run(seats[1])
    assert tray.take_claim() == 1


def test_one_thread_claims_until_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    tray, _ = seated(2)
    assert tray.take_claim()
    assert not tray.take_claim()
    monkeypatch.setattr(trays, "PATIENCE_SECONDS", 0.0)
    assert tray.take_claim(), "a claim that is stuck holds up nobody"


def test_the_duty_goes_by_who_has_it_since_when() -> None:
    duty = Duty()
    assert duty.take(10.0)
    assert not duty.take(40.0)
    assert duty.take(80.0)
    duty.give_back()
    assert duty.take(81.0)


def test_more_is_claimed_before_the_tray_is_empty_unless_the_queue_was() -> None:
    tray, (seat,) = seated(1)
    learn(tray, 0.005)
    assert tray.take_claim() in (9, 10)
    load(tray, *(claimed(str(number)) for number in range(10)), is_dry=False)
    assert not tray.is_low
    for _ in range(6):
        run(tray, seat)
    assert tray.is_low
    assert tray.take_claim()
    load(tray, is_dry=True)
    assert not tray.is_low
    assert not tray.take_claim(), "jobs wait, and the queue has no more"


def test_results_are_gathered_while_jobs_wait() -> None:
    tray, (seat,) = seated(1)
    load(tray, claimed("a"), claimed("b"))
    run(tray, seat)
    assert tray.take_results(time.monotonic()) is None
    assert tray.take_results(time.monotonic() + 61) == ([Completed("a", 1, None)], [])
    run(tray, seat)
    assert tray.take_results(time.monotonic()) is None, "somebody settles"
    tray.settled([Completed("a", 1, None)], [], aside=([], []))
    assert tray.held() == {"b": 1}
    assert tray.take_results(time.monotonic()) == ([Completed("b", 1, None)], [])
    tray.settled([Completed("b", 1, None)], [], aside=([Completed("b", 1, None)], []))
    assert tray.held() == {"b": 1}, "put aside, and held"
    assert tray.take_aside() is None, "it has only just been put aside"
    assert tray.take_rest() == ([Completed("b", 1, None)], [])
    tray.settled([Completed("b", 1, None)], [], aside=([], []))
    assert not tray.is_busy


def test_what_waits_is_handed_back_when_nobody_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tray, _ = seated(1)
    load(tray, claimed("a"))
    assert not tray.is_stuck
    monkeypatch.setattr(trays, "PATIENCE_SECONDS", 0.0)
    assert tray.is_stuck
    jobs = tray.take_unstarted()
    assert (tray.held(), tray.is_stuck) == ({"a": 1}, True), (
        "held until the release is answered, which may have to be tried again"
    )
    tray.take_claim()
    load(tray, claimed("a", fence=3))
    tray.released(jobs)
    assert tray.held() == {"a": 3}, "claimed anew meanwhile"


def test_jobs_that_are_taken_one_by_one_but_wait_long_are_handed_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tray, (seat,) = seated(1)
    load(tray, claimed("a"), claimed("b"))
    run(tray, seat)
    assert not tray.is_stuck
    monkeypatch.setattr(trays, "LONGEST_WAIT_SECONDS", 0.0)
    assert tray.is_stuck


def test_a_run_that_was_given_up_ends_as_the_keeper_says() -> None:
    tray, (seat,) = seated(1)
    load(tray, claimed("a"), claimed("b"))
    tray.next_run(seat)
    assert not tray.give_up_run(seat, timed_out(claimed("another")))
    assert tray.give_up_run(seat, timed_out(claimed("a")))
    assert not tray.finish(seat, Completed("a", 1, None))
    assert tray.take_results(time.monotonic() + 61) == ([], [timed_out(claimed("a"))])
    assert tray.next_run(seat) is None, "its thread is not trusted again"
    assert tray.leave(seat)
