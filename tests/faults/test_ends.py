"""How workers end: asked once, asked twice, killed with or without their supervisor. Nothing is lost, nobody is left."""

import os
import signal
import time
from collections import Counter

import pytest

from django_jobs import NewJob, submit_many
from django_jobs.models import Attempt, Job, WorkerProcess
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained, check_invariants
from tests.support.proc import children
from tests.support.processes import Workers, spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"LEASE_SECONDS": 60, "BASE_DELAY": 0.05}
SHORT_LEASE = {**SETTINGS, "LEASE_SECONDS": 4}  # which a process on a busy machine can hold


def _submit(count: int, seconds: float) -> list[str]:
    return [job.pk for job in submit_many([NewJob("effects.sleep", {"seconds": seconds}) for _ in range(count)])]


def _wait_started(count: int) -> None:
    wait_until(lambda: Effect.objects.count() >= count, 60, f"{count} started jobs")


def _outcomes() -> Counter[str]:
    return Counter(Attempt.objects.values_list("outcome", flat=True))


def _all_gone(workers: Workers) -> None:
    wait_until(lambda: not workers.pids(), 60, "the end of every process")


@pytest.mark.quick("sqlite")
@pytest.mark.slow
def test_sigterm_lets_running_jobs_finish_and_hands_back_the_rest() -> None:
    submitted = _submit(40, 0.3)
    with spawn_workers("--processes", "2", "--threads", "2", settings=SETTINGS) as workers:
        _wait_started(4)
        workers.terminate()
        assert workers.wait(60) == 0
        check_invariants(submitted, output=workers.output())
    statuses = Job.objects.counts_by_status()
    assert statuses["running"] == 0
    assert statuses["completed"] == Effect.objects.count(), "what had started was finished, and started once"
    assert not Attempt.objects.exists()
    assert not WorkerProcess.objects.exists()


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_jobs_longer_than_the_grace_are_handed_back_without_spending_a_retry() -> None:
    submitted = _submit(8, 600)
    with spawn_workers(
        "--processes", "2", "--threads", "2", settings={**SETTINGS, "SHUTDOWN_GRACE_SECONDS": 1}
    ) as workers:
        _wait_started(4)
        workers.terminate()
        assert workers.wait(60) == 0
        check_invariants(submitted, output=workers.output())
    assert Job.objects.filter(status="pending", retry_count=0, crash_count=0).count() == 8
    assert set(_outcomes()) == {"released"}
    assert not WorkerProcess.objects.exists()


@pytest.mark.slow
@pytest.mark.quick("sqlite")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_makes_the_deadline_now(first: signal.Signals) -> None:
    submitted = _submit(4, 600)
    settings = {**SETTINGS, "SHUTDOWN_GRACE_SECONDS": 600}
    with spawn_workers("--processes", "1", "--threads", "2", settings=settings) as workers:
        _wait_started(2)
        workers.signal(first)

        def has_ended() -> bool:
            workers.terminate()  # again and again: the system merges two equal signals that are sent at once
            return not workers.is_running()

        wait_until(has_ended, what="its end before the grace is over")
        assert workers.wait() == 0
        check_invariants(submitted, output=workers.output())
    assert Job.objects.filter(status="pending", retry_count=0).count() == 4


@pytest.mark.quick("mariadb")
def test_a_process_without_a_supervisor_ends_the_same_way() -> None:
    submitted = _submit(4, 600)
    with spawn_workers("--threads", "2", settings={**SETTINGS, "SHUTDOWN_GRACE_SECONDS": 0.5}) as workers:
        _wait_started(2)
        workers.terminate()
        assert workers.wait(60) == 0
        check_invariants(submitted, output=workers.output())
    assert Job.objects.filter(status="pending", retry_count=0).count() == 4
    assert _outcomes() == {"released": 2}


@pytest.mark.slow
@pytest.mark.quick("sqlite")
def test_children_of_a_killed_supervisor_finish_and_leave() -> None:
    submitted = _submit(30, 0.3)
    with spawn_workers("--processes", "2", "--threads", "2", settings=SETTINGS) as workers:
        _wait_started(4)
        os.kill(workers.pid, signal.SIGKILL)
        _all_gone(workers)
        check_invariants(submitted, output=workers.output())
    assert not Job.objects.filter(status="running").exists()
    assert not WorkerProcess.objects.exists(), "they left in order"


@pytest.mark.slow
@pytest.mark.quick("mariadb")
def test_what_runs_when_everything_is_killed_runs_again() -> None:
    submitted = _submit(12, 0.3)
    with spawn_workers("--processes", "2", "--threads", "2", settings=SHORT_LEASE) as workers:
        _wait_started(4)
        workers.kill()
    held = list(Job.objects.filter(status="running").values_list("pk", flat=True))
    assert held
    killed_at = time.monotonic()
    with spawn_workers("--threads", "4", settings=SHORT_LEASE) as workers:
        wait_until(lambda: open_jobs() == 0, 60, "the end of all jobs")
        print(f"all done {time.monotonic() - killed_at:.1f} s after the kill")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(submitted, output=workers.output())
    assert set(Attempt.objects.filter(outcome="crashed").values_list("job_id", flat=True)) == set(held)


@pytest.mark.slow
@pytest.mark.quick("postgresql")
def test_a_stopped_worker_that_continues_writes_nothing_and_leaves() -> None:
    submitted = _submit(1, 1.0)
    with spawn_workers("--threads", "1", settings=SHORT_LEASE) as stopped:
        _wait_started(1)
        stopped.signal(signal.SIGSTOP)
        with spawn_workers("--threads", "1", settings=SHORT_LEASE) as other:
            wait_until(lambda: open_jobs() == 0, 60, "the other worker to finish the job")
            row = Job.objects.values().get()
            stopped.signal(signal.SIGCONT)
            assert stopped.wait(60) == 70, "its lease is lost"
            other.terminate()
            assert other.wait(60) == 0
        check_drained(submitted)
    assert Job.objects.values().get() == row
    assert _outcomes() == {"crashed": 1}


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_a_supervisor_replaces_a_killed_child_and_rescues_its_jobs_at_once() -> None:
    """The lease is a minute, so only the supervisor can have taken the jobs back."""
    submitted = _submit(2, 0.5)
    with spawn_workers("--processes", "1", "--threads", "2", settings={"LEASE_SECONDS": 60}) as workers:
        _wait_started(2)
        os.kill(children(workers.pid)[0], signal.SIGKILL)
        wait_until(lambda: open_jobs() == 0, 60, "the jobs of the killed child")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(submitted, output=workers.output())
    assert _outcomes() == {"crashed": 2}
