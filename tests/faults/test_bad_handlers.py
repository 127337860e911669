"""Handlers that do their worst: kill their process, ignore their timeout, break what is around them. Others go on."""

import pytest

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Attempt, DeadLetter, Job
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"LEASE_SECONDS": 60, "BASE_DELAY": 0.05, "TIMEOUT_GRACE_SECONDS": 0.5}


def _drain(submitted: list[str], *arguments: str, timeout: float = 90) -> str:
    with spawn_workers(*arguments, settings=SETTINGS) as workers:
        wait_until(lambda: open_jobs() == 0, timeout, "the end of all jobs")
        workers.terminate()
        assert workers.wait(60) in (0, 75)
    check_drained(submitted, output=workers.output())
    return workers.output()


def _killer_among(good: int) -> None:
    jobs = [NewJob("effects.record", {}, job_id=f"good-{number}") for number in range(good)]
    jobs.insert(good // 2, NewJob("effects.kill_self", {}, job_id="killer"))
    _drain([job.pk for job in submit_many(jobs)], "--processes", "2", "--threads", "2")
    assert Effect.objects.filter(job_id="killer").count() == 3, "exactly three starts"
    assert [*DeadLetter.objects.values_list("job_id", "reason")] == [("killer", "crash loop")]
    assert Job.objects.filter(status="completed").count() == good, "no innocent job is dead"


@pytest.mark.quick("sqlite", "postgresql")
@pytest.mark.slow
def test_a_job_that_kills_its_process_is_dead_after_three_starts_and_takes_nobody_along() -> None:
    _killer_among(60)


@pytest.mark.slow
@pytest.mark.quick("sqlite", "postgresql")
def test_a_job_of_a_list_that_kills_its_process_is_dead_and_the_others_of_its_list_run_alone() -> None:
    jobs = [NewJob("effects.record_bulk", {"kill": n == 7}, job_id=f"job-{n:02}") for n in range(20)]
    _drain([job.pk for job in submit_many(jobs)], "--processes", "1", "--threads", "2")
    assert [*DeadLetter.objects.values_list("job_id", "reason")] == [("job-07", "crash loop")]
    assert Effect.objects.filter(job_id="job-07").count() == 3, "exactly three starts"
    assert Job.objects.filter(status="completed").count() == 19


@pytest.mark.fault
def test_one_killer_among_five_hundred_good_jobs() -> None:
    _killer_among(500)


@pytest.mark.quick("mariadb")
def test_jobs_past_their_timeout_are_settled_and_their_neighbours_finish() -> None:
    """One sleeps in C, where no exception arrives before the grace is over; one runs Python; one waits in a subprocess."""
    bad = {
        "sleeps": "effects.sleep",
        "loops": "effects.loop",
        "alone": "effects.stubborn_subprocess",
    }
    submitted = [
        submit(job_type, {"seconds": 60}, job_id=job_id, timeout_seconds=0.5, max_retries=0).pk
        for job_id, job_type in bad.items()
    ]
    submitted += [submit("effects.sleep", {"seconds": 0.1}, job_id=f"neighbour-{number}").pk for number in range(10)]
    _drain(submitted, "--processes", "1", "--threads", "4")
    assert dict(Job.objects.filter(pk__in=bad).values_list("pk", "status")) == dict.fromkeys(bad, "dead")
    assert dict(DeadLetter.objects.values_list("job_id", "reason")) == dict.fromkeys(bad, "timeout")
    assert set(Attempt.objects.values_list("outcome", flat=True)) <= {"timed out", "released"}
    assert Job.objects.filter(status="completed").count() == 10
    assert not Effect.objects.filter(kind="late").exists(), "the subprocess and its child are dead"


HOSTILE = ("SystemExit", "KeyboardInterrupt", "RecursionError", "MemoryError", "GeneratorExit")


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_any_exception_is_a_normal_failure_and_the_thread_goes_on() -> None:
    submitted = [submit("effects.raise_anything", {"name": name}, job_id=name, max_retries=0).pk for name in HOSTILE]
    submitted += [job.pk for job in submit_many([NewJob("effects.record", {}) for _ in range(50)])]
    _drain(submitted, "--threads", "1")
    assert dict(DeadLetter.objects.values_list("job_id", "reason")) == dict.fromkeys(HOSTILE, "retries exhausted")
    assert Job.objects.filter(status="completed").count() == 50
    assert not Attempt.objects.filter(outcome="crashed").exists()


MESSES = ("open_transaction", "closed_connection", "session_state", "directory")


@pytest.mark.slow
def test_what_a_handler_leaves_behind_does_not_reach_the_next_jobs() -> None:
    jobs = []
    for number, mess in enumerate(MESSES):
        jobs.append(NewJob("effects.leave_mess", {"mess": mess}, job_id=mess, max_retries=0, priority=9 - number))
        jobs += [
            NewJob("effects.see_order", {}, job_id=f"{mess}-{one}", max_retries=0, priority=9 - number)
            for one in range(10)
        ]
    submitted = [job.pk for job in submit_many(jobs)]
    _drain(submitted, "--threads", "1")
    ended = dict(Job.objects.exclude(status="completed").values_list("pk", "error"))
    assert not ended
