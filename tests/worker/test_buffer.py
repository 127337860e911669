"""The buffer that the threads of a process share: who claims how many, who settles when, and what is held until when."""

import time

import pytest

from django_jobs.handlers import registry
from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.models import AttemptOutcome, JobStatus
from django_jobs.worker import buffer as buffers
from django_jobs.worker.buffer import MAX_BATCH, JobBuffer, Role, Slot


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stop this test for longer than the buffer is patient."""
    for name in ("GATHER_SECONDS", "PATIENCE_SECONDS", "LONGEST_WAIT_SECONDS", "POSTPONE_SECONDS"):
        monkeypatch.setattr(buffers, name, 60.0)


def claimed(name: str, fence: int = 1) -> ClaimedJob:
    return ClaimedJob(name, "t.job", "default", "{}", fence, 0, 3, None, 0, "{}", 0, None)


def joined(number: int) -> tuple[JobBuffer, list[Slot]]:
    buffer, slots = JobBuffer(), [Slot(registry) for _ in range(number)]
    for slot in slots:
        buffer.join(slot)
    return buffer, slots


def load(buffer: JobBuffer, *jobs: ClaimedJob, is_dry: bool = True) -> None:
    buffer.load(jobs, is_dry=is_dry)


def run(buffer: JobBuffer, slot: Slot) -> None:
    current = buffer.next_run(slot)
    assert current is not None
    buffer.finish(slot, Outcome.completed(current.job))


def completed(name: str) -> Outcome:
    return Outcome.completed(claimed(name))


def timed_out(job: ClaimedJob) -> Outcome:
    return Outcome(job, JobStatus.DEAD, AttemptOutcome.TIMED_OUT)


def learn(buffer: JobBuffer, seconds: float) -> None:
    for _ in range(400):
        buffer.took(seconds)


@pytest.mark.parametrize(
    ("seconds", "threads", "wanted"),
    [(0.00001, 4, MAX_BATCH), (0.01, 32, 160), (0.01, 4, 20), (2.0, 8, 8), (2.0, 1, 1)],
)
def test_a_claim_is_for_what_all_threads_run_in_50_ms_and_one_for_each(
    seconds: float, threads: int, wanted: int
) -> None:
    buffer, _ = joined(threads)
    learn(buffer, seconds)
    assert buffer.take_claim() in (wanted, wanted - 1)  # the mean comes close


def test_slow_jobs_are_claimed_for_free_threads_only() -> None:
    buffer, slots = joined(3)
    learn(buffer, 10.0)
    assert buffer.take_claim() == 3
    load(buffer, claimed("a"), claimed("b"))
    assert buffer.next_run(slots[0])
    assert buffer.next_run(slots[1])
    assert buffer.take_claim() == 1


def test_one_thread_claims_until_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, _ = joined(2)
    assert buffer.take_claim()
    assert not buffer.take_claim()
    monkeypatch.setattr(buffers, "PATIENCE_SECONDS", 0.0)
    assert buffer.take_claim(), "a claim that is stuck holds up nobody"


def test_a_role_goes_by_who_has_it_since_when() -> None:
    role = Role()
    assert role.take(10.0)
    assert not role.take(40.0)
    assert role.take(80.0)
    role.leave()
    assert role.take(81.0)


def test_more_is_claimed_before_the_buffer_is_empty_unless_the_queue_was() -> None:
    buffer, (slot,) = joined(1)
    learn(buffer, 0.005)
    assert buffer.take_claim() in (9, 10)
    load(buffer, *(claimed(str(number)) for number in range(10)), is_dry=False)
    assert not buffer.is_low
    for _ in range(6):
        run(buffer, slot)
    assert buffer.is_low
    assert buffer.take_claim()
    load(buffer, is_dry=True)
    assert not buffer.is_low
    assert not buffer.take_claim(), "jobs wait, and the queue has no more"


def test_results_are_gathered_while_jobs_wait() -> None:
    buffer, (slot,) = joined(1)
    load(buffer, claimed("a"), claimed("b"))
    run(buffer, slot)
    assert buffer.take_outcomes(time.monotonic()) is None
    assert buffer.take_outcomes(time.monotonic() + 61) == [completed("a")]
    run(buffer, slot)
    assert buffer.take_outcomes(time.monotonic()) is None, "somebody settles"
    buffer.settled([completed("a")], [])
    assert buffer.held() == {"b": 1}
    assert buffer.take_outcomes(time.monotonic()) == [completed("b")]
    buffer.settled([completed("b")], [completed("b")])
    assert buffer.held() == {"b": 1}, "postponed, and held"
    assert buffer.take_postponed() is None, "it has only just been postponed"
    assert buffer.take_rest() == [completed("b")]
    buffer.settled([completed("b")], [])
    assert not buffer.is_busy


def test_what_waits_is_handed_back_when_nobody_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, _ = joined(1)
    load(buffer, claimed("a"))
    assert not buffer.is_stuck
    monkeypatch.setattr(buffers, "PATIENCE_SECONDS", 0.0)
    assert buffer.is_stuck
    jobs = buffer.take_unstarted()
    assert (buffer.held(), buffer.is_stuck) == ({"a": 1}, True), (
        "held until the release is answered, which may have to be tried again"
    )
    buffer.take_claim()
    load(buffer, claimed("a", fence=3))
    buffer.released(jobs)
    assert buffer.held() == {"a": 3}, "claimed anew meanwhile"


def test_jobs_that_are_taken_one_by_one_but_wait_long_are_handed_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, (slot,) = joined(1)
    load(buffer, claimed("a"), claimed("b"))
    run(buffer, slot)
    assert not buffer.is_stuck
    monkeypatch.setattr(buffers, "LONGEST_WAIT_SECONDS", 0.0)
    assert buffer.is_stuck


def test_a_run_that_was_given_up_ends_as_the_watchdog_says() -> None:
    buffer, (slot,) = joined(1)
    load(buffer, claimed("a"), claimed("b"))
    buffer.next_run(slot)
    assert not buffer.give_up_run(slot, timed_out(claimed("another")))
    assert buffer.give_up_run(slot, timed_out(claimed("a")))
    assert not buffer.finish(slot, completed("a"))
    assert buffer.take_outcomes(time.monotonic() + 61) == [timed_out(claimed("a"))]
    assert buffer.next_run(slot) is None, "its thread is not trusted again"
    assert buffer.leave(slot)


def test_two_threads_run_jobs_that_wait_for_nothing_and_further_ones_rest() -> None:
    buffer, slots = joined(4)
    load(buffer, *(claimed(str(number)) for number in range(9)))
    learn(buffer, 0.001)
    assert buffer.wants_thread
    assert not buffer.is_crowded, "all run jobs that take long enough to wait for something"
    learn(buffer, 0.00001)
    assert buffer.is_crowded
    buffer.begin_rest(slots[3])
    assert buffer.is_crowded
    buffer.begin_rest(slots[2])
    assert (buffer.is_crowded, buffer.wants_thread) == (False, False)
    buffer.begin_rest(slots[1])
    assert buffer.wants_thread, "one is too few: nobody runs jobs while it claims or settles"
    buffer.end_rest(slots[1])
    assert not buffer.wants_thread
    buffer.leave(slots[1])
    assert buffer.wants_thread


def test_a_further_thread_stands_in_for_one_that_a_slow_job_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, (first, _, third) = joined(3)
    buffer.begin_rest(third)
    load(buffer, *(claimed(str(number)) for number in range(9)))
    learn(buffer, 0.00001)
    assert buffer.next_run(first)
    monkeypatch.setattr(buffers, "BLOCKED_SECONDS", 60.0)
    assert not buffer.count_blocked()
    monkeypatch.setattr(buffers, "BLOCKED_SECONDS", -60.0)
    assert buffer.count_blocked()
    buffer.end_rest(third)
    assert not buffer.is_crowded
    learn(buffer, 1.0)
    assert not buffer.count_blocked(), "each thread wakes the next one where jobs are slow"


def test_where_claims_and_settles_take_long_a_claim_is_for_twice_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(buffers.time, "monotonic", lambda: now)
    buffer, (slot,) = joined(1)
    learn(buffer, 0.001)
    assert buffer.take_claim() in (49, 50)
    for _ in range(60):
        now += 0.03  # the claim
        load(buffer, claimed("a"))
        run(buffer, slot)
        outcomes = buffer.take_outcomes(now)
        assert outcomes
        now += 0.015  # the settle
        buffer.settled(outcomes, [])
        learn(buffer, 0.001)
        wanted = buffer.take_claim()
    assert 87 <= wanted <= 90
    now += 600
    load(buffer, claimed("b"))
    assert buffer.next_run(slot)
    for _ in range(60):
        learn(buffer, 0.001)
    assert buffer.take_claim() in (99, 100), "no job is to wait here for long"
