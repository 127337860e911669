"""Claim, settle, release, cancel, replay: each move by itself, fenced, on every database."""

from datetime import timedelta

import pytest

import django_jobs
from django_jobs import NewJob
from django_jobs.db.transactions import database_now
from django_jobs.due import seconds_until_due
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases, queues
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.release import release, release_started
from django_jobs.lifecycle.rescue import rescue_nameless, rescue_process
from django_jobs.lifecycle.settle import settle, settle_again
from django_jobs.models import Attempt, AttemptOutcome, DeadLetter, DeadLetterReason, Job, JobStatus, WorkerProcess

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def process() -> str:
    leases.register("p", queues=[], threads=1)
    return "p"


def done(job: ClaimedJob, result: str | None = None) -> Outcome:
    return Outcome.completed(job, result)


def died(job: ClaimedJob, letter: DeadLetterReason | None = DeadLetterReason.RETRIES_EXHAUSTED) -> Outcome:
    return Outcome(job=job, status=JobStatus.DEAD, attempt=AttemptOutcome.FAILED, reason=letter, error="ValueError: no")


def test_a_claim_takes_the_highest_priority_then_the_oldest() -> None:
    order = [django_jobs.submit("effects.record", {}, priority=priority).id for priority in (5, 9, 5, 1, 9)]
    claimed = [job.id for job in claim("default", 10, "p")]
    assert claimed == [order[1], order[4], order[0], order[2], order[3]]


def test_a_claim_takes_no_more_than_asked_and_each_job_once() -> None:
    django_jobs.submit_many([NewJob("effects.record") for _ in range(10)])
    batches = [claim("default", 4, "p") for _ in range(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 0]
    assert len({job.id for batch in batches for job in batch}) == 10


def test_a_claim_takes_nothing_from_a_paused_queue() -> None:
    django_jobs.submit("effects.record", {})
    queues.pause("default")
    assert claim("default", 1, "p") == []
    queues.resume("default")
    assert len(claim("default", 1, "p")) == 1


def test_a_process_without_a_live_lease_claims_nothing() -> None:
    django_jobs.submit("effects.record", {})
    assert claim("default", 1, "nobody") == []
    WorkerProcess.objects.filter(pk="p").update(lease_expires_at=None)
    assert claim("default", 1, "p") == []
    assert not leases.beat("p"), "no beat revives a process that was declared dead"


def test_a_settle_completes_and_writes_the_result() -> None:
    jobs = django_jobs.submit_many([NewJob("effects.record", unique_key=str(n)) for n in range(3)])
    claimed = claim("default", 10, "p")
    results = ['{"a":[1,2.5,"é😀"]}', None, "0"]
    assert settle([done(job, text) for job, text in zip(claimed, results, strict=True)], "p") == set()
    stored = [Job.objects.get(pk=job.id) for job in jobs]
    assert [job.result for job in stored] == [{"a": [1, 2.5, "é😀"]}, None, 0]
    assert {(job.status, job.unique_lock, job.fence) for job in stored} == {("completed", None, 2)}


def test_a_claim_settles_once_alone_or_in_a_batch() -> None:
    django_jobs.submit_many([NewJob("effects.record") for _ in range(3)])
    first, second, third = claim("default", 3, "p")
    assert settle([done(first)], "p") == set()
    assert settle([done(first)], "p") == {first.id}
    assert settle([done(second), done(first), done(third)], "p") == {first.id}


def test_a_stale_worker_cannot_settle_a_rescued_job() -> None:
    django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
    first, second = claim("default", 2, "p")
    assert rescue_process("p") == 2
    before = list(Job.objects.order_by("pk").values())
    assert settle([done(first), died(second)], "p") == {first.id, second.id}
    assert list(Job.objects.order_by("pk").values()) == before
    assert DeadLetter.objects.count() == 0


def test_only_the_lost_member_of_a_batch_is_dropped() -> None:
    django_jobs.submit_many([NewJob("effects.record") for _ in range(5)])
    claimed = claim("default", 5, "p")
    Job.objects.filter(pk=claimed[2].id).update(fence=99)
    assert settle([done(job) for job in claimed], "p") == {claimed[2].id}
    assert Job.objects.filter(status="completed").count() == 4


def test_a_settle_whose_reply_was_lost_is_read_back_as_done() -> None:
    django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
    first, second = claim("default", 2, "p")
    settle([done(first), died(second)], "p")
    assert settle_again([done(first), died(second)], "p") == set()
    assert DeadLetter.objects.count() == 1


def test_released_jobs_spend_no_retry_and_only_started_ones_leave_an_attempt() -> None:
    django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
    first, second = claim("default", 2, "p")
    assert release([first]) == 1
    assert release_started([second], "p") == 1
    jobs = {job.id: job for job in Job.objects.all()}
    assert {(job.status, job.retry_count, job.fence) for job in jobs.values()} == {("pending", 0, 2)}
    assert jobs[first.id].attempts.count() == 0
    assert [attempt.outcome for attempt in jobs[second.id].attempts.all()] == ["released"]


def test_an_attempt_that_was_cut_off_lasted_from_its_start_to_when_its_end_was_seen() -> None:
    leases.register("q", queues=[], threads=2)
    django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
    crashed, interrupted = claim("default", 2, "p")
    Job.objects.update(started_at=Job.objects.get(pk=crashed.id).started_at - timedelta(seconds=90))
    assert release_started([interrupted], "p") == 1
    assert rescue_process("p") == 1
    took = {attempt.outcome: attempt.ended_at - attempt.started_at for attempt in Attempt.objects.all()}
    assert took.keys() == {"released", "crashed"}
    assert all(90 <= span.total_seconds() < 180 for span in took.values())


def test_due_jobs_are_promoted_and_future_ones_are_not() -> None:
    due = django_jobs.submit("effects.record", {}, delay=600)
    django_jobs.submit("effects.record", {}, delay=1200)
    assert promote() == []
    assert 500 < (seconds_until_due() or 0) <= 600
    Job.objects.filter(pk=due.id).update(available_at=due.created_at)
    assert promote() == ["default"]
    assert [job.id for job in claim("default", 5, "p")] == [due.id]


def test_a_dead_job_is_replayed_from_the_start() -> None:
    job = django_jobs.submit("effects.record", {}, unique_key="k")
    settle([died(claim("default", 1, "p")[0])], "p")
    job.refresh_from_db()
    assert (job.status, job.unique_lock, job.error) == ("dead", None, "ValueError: no")
    letter = DeadLetter.objects.get()
    letter.replay()
    job.refresh_from_db()
    assert (job.status, job.retry_count, job.error, job.unique_lock) == ("pending", 0, None, "k")
    assert letter.replayed_at is not None
    with pytest.raises(InvalidJob, match="replayed already"):
        letter.replay()
    settle([died(claim("default", 1, "p")[0])], "p")
    assert DeadLetter.objects.count() == 2


def test_a_replay_that_a_live_unique_key_forbids_changes_nothing() -> None:
    job = django_jobs.submit("effects.record", {}, unique_key="k")
    settle([died(claim("default", 1, "p")[0])], "p")
    django_jobs.submit("effects.record", {}, unique_key="k")
    with pytest.raises(InvalidJob, match="unique key"):
        job.replay()
    job.refresh_from_db()
    assert job.status == "dead"
    assert DeadLetter.objects.get().is_open


def test_a_letter_is_acknowledged_once() -> None:
    django_jobs.submit("effects.record", {})
    settle([died(claim("default", 1, "p")[0])], "p")
    letter = DeadLetter.objects.get()
    letter.acknowledge(note="known")
    assert (letter.note, letter.is_open, letter.job.status) == ("known", False, "dead")
    with pytest.raises(InvalidJob, match="acknowledged already"):
        letter.acknowledge()


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked() -> None:
    waiting = django_jobs.submit("effects.record", {}, priority=1)
    running = django_jobs.submit("effects.record", {}, priority=9)
    claim("default", 1, "p")
    assert (waiting.cancel(), running.cancel()) == ("cancelled", "running")
    assert running.cancel_requested_at is not None
    assert claim("default", 5, "p") == []
    with pytest.raises(InvalidJob, match="is cancelled already"):
        waiting.cancel()
    with pytest.raises(JobNotFound):
        cancel(["nobody"]).raise_if_left()


@pytest.mark.parametrize("status", ["pending", "running", "completed"])
def test_only_a_job_that_ended_badly_is_replayed(status: str) -> None:
    job = django_jobs.submit("effects.record", {})
    if status != "pending":
        (held,) = claim("default", 1, "p")
        if status == "completed":
            settle([done(held)], "p")
    with pytest.raises(InvalidJob, match=f"is {status}"):
        job.replay()


def test_run_now_makes_a_scheduled_job_ready_and_leaves_a_pending_one() -> None:
    job = django_jobs.submit("effects.record", {}, delay=3600)
    job.run_now()
    assert job.status == "pending"
    fence = job.fence
    job.run_now()
    assert job.fence == fence
    claim("default", 1, "p")
    with pytest.raises(InvalidJob, match="running"):
        job.run_now()


def test_jobs_of_a_process_without_a_row_are_rescued() -> None:
    job = django_jobs.submit("effects.record", {})
    claim("default", 1, "p")
    assert rescue_nameless() == 0
    WorkerProcess.objects.all().delete()
    assert rescue_nameless() == 1
    job.refresh_from_db()
    assert (job.status, job.crash_count, job.retry_count) == ("scheduled", 1, 0)
    assert [attempt.outcome for attempt in job.attempts.all()] == ["crashed"]


def test_a_process_whose_beat_has_moved_is_not_rescued() -> None:
    django_jobs.submit("effects.record", {})
    claim("default", 1, "p")
    leases.beat("p")
    assert rescue_process("p", beat=0) == 0
    assert rescue_process("p", beat=1) == 1
    assert not WorkerProcess.objects.exists()


def test_a_process_that_holds_a_job_does_not_leave() -> None:
    django_jobs.submit("effects.record", {})
    (job,) = claim("default", 1, "p")
    assert not leases.leave("p")
    settle([done(job)], "p")
    assert leases.leave("p")


def test_an_attempt_ends_now_and_began_as_long_before_as_it_took() -> None:
    ids = [django_jobs.submit("effects.record", {}).id for _ in range(3)]
    seconds = dict(zip(ids, (0.0, 90_000.25, 0.125), strict=True))
    hostile = "\\ ' \" {%s} %% 日本 😀 \n\t\\N"
    options = registry.job_options(None, "default")
    jobs = claim("default", 3, "p")
    settle([Outcome.failed(job, ValueError(hostile), options, seconds[job.id]) for job in jobs], "p")
    now = database_now()
    for attempt in Attempt.objects.all():
        assert abs((now - attempt.ended_at).total_seconds()) < 60
        assert attempt.started_at is not None
        assert abs((attempt.ended_at - attempt.started_at).total_seconds() - seconds[attempt.job_id]) < 0.002
        assert (attempt.number, attempt.worker_id, attempt.outcome) == (1, "p", "failed")
        assert attempt.exception_class == "builtins.ValueError"
        assert attempt.error == attempt.traceback.partition("\n")[2] == f"ValueError: {hostile}"
    assert Attempt.objects.count() == 3
