"""Pairs of moves at the same moment on two real connections: one legal outcome, whichever comes first."""

from collections.abc import Callable

import pytest

from django_jobs import NewJob, submit, submit_many
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.cascade import continue_cascade
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Attempt, AttemptOutcome, DeadLetter, DeadLetterReason, Job, JobDependency, JobStatus
from tests.support.factories import JobFactory
from tests.support.invariants import check_invariants
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
ROUNDS = 8


def _claimed(job_id: str, process_id: str = "one") -> ClaimedJob:
    leases.register(process_id, queues=[], threads=1)
    submit("catalogue.changes", {}, job_id=job_id)
    (job,) = claim("default", 1, process_id)
    return job


def _dead(job: ClaimedJob) -> Outcome:
    return Outcome(
        job=job,
        status=JobStatus.DEAD,
        attempt=AttemptOutcome.FAILED,
        reason=DeadLetterReason.RETRIES_EXHAUSTED,
        error="as it was told",
    )


def _refused(move: Callable[[], object]) -> bool:
    try:
        move()
    except InvalidJob:
        return True
    return False


def test_two_claims_share_nothing() -> None:
    leases.register("one", queues=[], threads=1)
    leases.register("two", queues=[], threads=1)
    JobFactory.create_batch(40, job_type="catalogue.changes")
    one, two = run_in_threads(
        [lambda name=name: [job.id for _ in range(20) for job in claim("default", 3, name)] for name in ("one", "two")]
    )
    assert len(one) + len(two) == len({*one, *two}) == 40


def test_of_lists_with_one_job_id_all_but_one_are_refused() -> None:
    for number in range(ROUNDS):
        new = [NewJob("catalogue.changes", job_id=f"job {number}"), NewJob("catalogue.changes")]
        refused = run_in_threads(lambda new=new: _refused(lambda: submit_many(new)), 4)  # type: ignore[misc]
        assert refused.count(False) == 1
    assert Job.objects.count() == 2 * ROUNDS


@pytest.mark.parametrize("ends", ["completed", "dead"])
def test_a_settle_and_a_rescue_leave_one_of_both_and_one_attempt(ends: str) -> None:
    for number in range(ROUNDS):
        job = _claimed(f"job-{number}", f"process-{number}")
        done = [Outcome.completed(job)] if ends == "completed" else []
        outcomes = [] if done else [_dead(job)]
        lost, rescued = run_in_threads(
            [
                lambda done=done, outcomes=outcomes, number=number: settle([*done, *outcomes], f"process-{number}"),
                lambda number=number: rescue_process(f"process-{number}"),
            ]
        )
        row = Job.objects.get(pk=job.id)
        assert (bool(lost), rescued, row.status) in {(True, 1, "scheduled"), (False, 0, ends)}
        assert row.fence == job.fence + 1
        expected = ["crashed"] if rescued else [] if ends == "completed" else ["failed"]
        assert [*Attempt.objects.filter(job=row).values_list("outcome", flat=True)] == expected
    check_invariants()


def test_a_late_settle_after_a_rescue_writes_no_attempt_and_no_letter() -> None:
    """The rescue leaves the next fence in the very status that the late settle would write."""
    job = _claimed("job")
    other = _claimed("other", "two")
    assert rescue_process("one") == 1
    late = Outcome(job=job, status=JobStatus.SCHEDULED, attempt=AttemptOutcome.FAILED, spends_retry=True)
    assert settle([late, _dead(other)], "one") == {job.id}
    assert [*Attempt.objects.filter(job_id=job.id).values_list("outcome", flat=True)] == ["crashed"]
    assert Job.objects.get(pk=job.id).retry_count == 0
    assert [*DeadLetter.objects.values_list("job_id", flat=True)] == [other.id]


def test_a_settle_and_a_cancel_leave_one_final_status() -> None:
    for number in range(ROUNDS):
        job = _claimed(f"job-{number}", f"process-{number}")
        retry = Outcome(job=job, status=JobStatus.SCHEDULED, attempt=AttemptOutcome.FAILED, spends_retry=True)
        lost, refused = run_in_threads(
            [
                lambda retry=retry, number=number: settle([retry], f"process-{number}"),
                lambda job=job: _refused(lambda: cancel([job.id]).raise_if_left()),
            ]
        )
        assert (lost, refused) == (set(), False)
        assert Job.objects.get(pk=job.id).status == "cancelled", "whoever asked to cancel it is heard"
    check_invariants()


def test_of_two_replays_one_is_refused() -> None:
    for number in range(ROUNDS):
        job = _claimed(f"job-{number}", f"process-{number}")
        settle([_dead(job)], f"process-{number}")
        refused = run_in_threads(lambda job=job: _refused(lambda: replay([job.id]).raise_if_left()), 2)
        assert sorted(refused) == [False, True]
        row = Job.objects.get(pk=job.id)
        assert (row.status, row.fence) == ("pending", job.fence + 2)
        cancel([job.id]).raise_if_left()


def test_two_cascades_count_an_edge_once() -> None:
    """A dependent that runs anyway waits for two jobs; one of them has failed, and two processes find that out."""
    for number in range(ROUNDS):
        failed, waiting = JobFactory(status="failed"), JobFactory()
        dependent = JobFactory(pending_dependencies=2)
        for dependency in (failed, waiting):
            JobDependency.objects.create(job=dependent, depends_on=dependency, on_failure="run", state="open")
        run_in_threads(continue_cascade, 4)
        dependent.refresh_from_db()
        assert dependent.pending_dependencies == 1, f"round {number}: it still waits for the other one"
