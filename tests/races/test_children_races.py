"""The last child ends while its parent goes to wait, or is woken too early: the parent always goes on, and finds all results."""

import random
import time
from datetime import timedelta

import pytest

from django_jobs import NewJob, emit, submit
from django_jobs.db.dialects.words import StepRow
from django_jobs.lifecycle import children, leases
from django_jobs.lifecycle.children import Answer
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.events import BATCH_ENDED, deliver
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Batch, Event, Job, JobStep, WorkerProcess
from django_jobs.models.fields import DbNow
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
ROUNDS = 30
ROW = StepRow(1, "children", "children")
DAY = 86_400.0


def claimed(queue: str, process_id: str) -> ClaimedJob:
    found: list[ClaimedJob] = []
    wait_until(lambda: bool(found.extend(claim(queue, 1, process_id)) or found), 60, "a job to claim")
    return found[0]


def register() -> None:
    for name in ("parents", "kids"):
        leases.register(name, queues=[], threads=1)
    WorkerProcess.objects.update(lease_expires_at=DbNow() + timedelta(days=1))  # nobody beats here


def race(rounds: int) -> None:
    source = random.Random(7)
    register()
    for number in range(rounds):
        submit("effects.record", {}, job_id=f"parent-{number}", queue="parents")
        parent = claimed("parents", "parents")
        pauses = [source.uniform(0, 0.004) for _ in range(3)]

        def wait(parent: ClaimedJob = parent, pauses: list[float] = pauses) -> None:
            kids = [NewJob("effects.record", {"n": n}, queue="kids") for n in (0, 1)]
            step_id = children.begin(parent.id, parent.fence, ROW, kids)
            assert step_id is not None
            time.sleep(pauses[0])
            settle([Outcome.waiting(parent, DAY, (step_id,), "waits")], "parents")

        def work(pauses: list[float] = pauses) -> None:
            for n in (0, 1):
                settle([Outcome.completed(claimed("kids", "kids"), str(n))], "kids")
                time.sleep(pauses[1])

        def wake_too_early(parent: ClaimedJob = parent, pauses: list[float] = pauses) -> None:
            time.sleep(pauses[2])
            for batch_id in Batch.objects.filter(awaited_by=parent.id).values_list("pk", flat=True):
                emit(BATCH_ENDED, key=batch_id, retention=0)

        run_in_threads([wait, work, wake_too_early])
        deliver()
        assert Job.objects.get(pk=parent.id).status == "pending", f"round {number}: nobody wakes the parent"
        again = claimed("parents", "parents")
        step_id = JobStep.objects.get(job_id=parent.id).pk
        assert children.look(again.id, again.fence, step_id, list) == Answer([0, 1]), f"round {number}"
        settle([Outcome.completed(again)], "parents")
    assert not Event.objects.undelivered().exists()


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_the_last_child_ends_beside_its_parent_s_settle() -> None:
    race(ROUNDS)


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_a_look_that_comes_too_early_loses_no_wake() -> None:
    """The parent looks, finds a child that runs, and waits again, while that child is settled."""
    source = random.Random(7)
    register()
    for number in range(ROUNDS):
        submit("effects.record", {}, job_id=f"parent-{number}", queue="parents")
        parent = claimed("parents", "parents")
        step_id = children.begin(parent.id, parent.fence, ROW, [NewJob("effects.record", queue="kids")])
        assert step_id is not None
        kid = claimed("kids", "kids")
        emit(BATCH_ENDED, key=JobStep.objects.get(pk=step_id).event_key, retention=0)
        deliver()
        pauses = [source.uniform(0, 0.003) for _ in range(2)]

        def look(parent: ClaimedJob = parent, step_id: int = step_id, pauses: list[float] = pauses) -> bool:
            time.sleep(pauses[0])
            answer = children.look(parent.id, parent.fence, step_id, list)
            assert answer is not None
            if answer.results is None:
                settle([Outcome.waiting(parent, DAY, (step_id,), "waits")], "parents")
            return answer.results is not None

        def end(kid: ClaimedJob = kid, pauses: list[float] = pauses) -> None:
            time.sleep(pauses[1])
            settle([Outcome.completed(kid, "1")], "kids")
            deliver()

        has_results, _ = run_in_threads([look, end])
        deliver()
        expected = "running" if has_results else "pending"
        assert Job.objects.get(pk=parent.id).status == expected, f"round {number}: nobody wakes the parent"
        Job.objects.all().delete()
