"""Cancels that race claims, settles and rescues: each job ends once, legally, and nothing runs after it was cancelled."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from django_jobs import NewJob, submit_many
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus, WorkerProcess
from django_jobs.models.job import TERMINAL
from tests.support.databases import Database
from tests.support.invariants import check_invariants
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)


class Race:
    """Jobs, the claims that were made of them, and threads that move them all until each is finished."""

    def __init__(self, jobs: int) -> None:
        self.ids = [job.pk for job in submit_many([NewJob("catalogue.changes", max_retries=2) for _ in range(jobs)])]
        self.claims: list[ClaimedJob] = []
        self.moves: Counter[str] = Counter()
        self._numbers = itertools.count()

    def is_over(self) -> bool:
        return not Job.objects.live().exists()

    def _claim(self, process_id: str) -> list[ClaimedJob]:
        promote()
        jobs = claim("default", 5, process_id)
        self.claims += jobs
        return jobs

    def settle_some(self) -> None:
        """Claim and settle: well, with a retry, or with death."""
        name, source = f"settler-{next(self._numbers)}", random.Random(1)
        leases.register(name, queues=[], threads=1)
        while not self.is_over():
            leases.beat(name)
            jobs = self._claim(name)
            done = [Outcome.completed(job) for job in jobs if source.random() < 0.5]
            bad = [job for job in jobs if job.id not in {outcome.job.id for outcome in done}]
            lost = settle([*done, *(_outcome(job, source) for job in bad)], name)
            self.moves["settled"] += len(jobs) - len(lost)

    def die(self) -> None:
        """Claim and die, and be rescued as often as it takes: a rescue passes over a job that a cancel has locked just then."""
        while not self.is_over():
            name = f"dying-{next(self._numbers)}"
            leases.register(name, queues=[], threads=1)
            self._claim(name)
            while WorkerProcess.objects.filter(pk=name).exists():
                self.moves["rescued"] += rescue_process(name)

    def cancel_some(self) -> None:
        """Cancel jobs in random order, and those that were claimed a moment ago, each of them again and again."""
        source = random.Random(2)
        while not self.is_over():
            for job_id in [*source.sample(self.ids, 5), *(job.id for job in self.claims[-5:])]:
                try:
                    self.moves[f"cancel of a {Job.objects.get(pk=job_id).cancel()} job"] += 1
                except InvalidJob:
                    self.moves["refused cancels"] += 1

    def problems(self) -> Iterator[str]:
        """Say which jobs did not end legally, or ran after their end."""
        claimed: dict[str, int] = {}
        for job in self.claims:
            claimed[job.id] = max(job.fence, claimed.get(job.id, 0))
        for job_id, status, fence in Job.objects.values_list("pk", "status", "fence"):
            if status not in TERMINAL:
                yield f"{job_id} is {status}"
            if claimed.get(job_id, -1) >= fence:
                yield f"{job_id} was claimed at fence {claimed[job_id]} and ended {status} at {fence}"


def _outcome(job: ClaimedJob, source: random.Random) -> Outcome:
    if source.random() < 0.8:
        return Outcome(
            job=job, status=JobStatus.SCHEDULED, attempt=AttemptOutcome.FAILED, spends_retry=True, error="no"
        )
    return Outcome(
        job=job,
        status=JobStatus.DEAD,
        attempt=AttemptOutcome.FAILED,
        reason=DeadLetterReason.RETRIES_EXHAUSTED,
        error="no",
    )


def _race(jobs: int, timeout: float) -> Counter[str]:
    race = Race(jobs)
    run_in_threads([race.settle_some, race.die, race.cancel_some, race.cancel_some], timeout=timeout)
    assert [*race.problems()] == []
    check_invariants(race.ids)
    return race.moves


@pytest.mark.slow
def test_cancels_that_race_everything_leave_one_legal_end_each() -> None:
    _race(60, timeout=300)


@pytest.mark.fault
def test_thousands_of_cancels_that_race_everything_leave_one_legal_end_each(database: Database) -> None:
    moves = _race(3_000, timeout=580)
    print(f"\n{database.vendor}: {dict(moves)}")
