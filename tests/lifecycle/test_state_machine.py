"""Random walks over the moves of a few jobs, each step compared with a small oracle, on each database."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from django.db import connection, transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_jobs import submit
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote, run_now
from django_jobs.lifecycle.release import release_started
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import AttemptOutcome, DeadLetter, DeadLetterReason, Job, JobDependency, JobStatus
from tests.support.walks import walk

WAITING = {"pending", "scheduled"}
BAD = {"dead", "failed", "cancelled"}
MAX_CRASHES = 3


@dataclass
class Expected:
    """What the oracle says of a job."""

    status: str = "pending"
    depends_on: tuple[str, ...] = ()
    runs_anyway: bool = False
    retries: int = 0
    crashes: int = 0
    attempts: int = 0
    asked_to_stop: bool = False


class Moves(RuleBasedStateMachine):
    """Two worker processes, a handful of jobs. A claim is kept after it was lost, so that stale settles are tried, too."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Expected] = {}
        self.claims: list[tuple[ClaimedJob, str]] = []
        self.processes = {"one": 0, "two": 0}
        self.fences: dict[str, int] = {}
        for name in self.processes:
            leases.register(self._process(name), queues=[], threads=1)

    def _process(self, name: str) -> str:
        return f"{name}:{self.processes[name]}"

    # The oracle.

    def _holds(self, one: ClaimedJob) -> bool:
        return self.fences.get(one.id) == one.fence and self.jobs[one.id].status == "running"

    def _end(self, job_id: str, status: str) -> None:
        """A job has ended: it holds its dependents no longer, whatever becomes of it later, or they fail with it."""
        self.jobs[job_id].status = status
        for name, other in self.jobs.items():
            if job_id in other.depends_on:
                other.depends_on = tuple(one for one in other.depends_on if one != job_id)
                if status in BAD and other.status in WAITING and not other.runs_anyway:
                    self._end(name, "failed")

    def _is_ready(self, job_id: str) -> bool:
        return self.jobs[job_id].status == "pending" and not self.jobs[job_id].depends_on

    def _wait_again(self, job_id: str, status: str) -> None:
        job = self.jobs[job_id]
        job.status = status
        if job.asked_to_stop:
            self._end(job_id, "cancelled")
        job.asked_to_stop = False

    # The moves.

    @precondition(lambda self: len(self.jobs) < 6)
    @rule(data=st.data(), runs_anyway=st.booleans())
    def submit(self, data: st.DataObject, runs_anyway: bool) -> None:
        names = sorted(name for name, job in self.jobs.items() if runs_anyway or job.status not in BAD)
        chosen = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
        job_id = f"job-{len(self.jobs)}"
        policy = "run" if runs_anyway else "fail"
        submit("effects.record", {}, job_id=job_id, depends_on=chosen, on_dependency_failure=policy)
        waits_for = tuple(name for name in chosen if self.jobs[name].status not in {"completed", *BAD})
        self.jobs[job_id] = Expected(depends_on=waits_for, runs_anyway=runs_anyway)

    @rule(process=st.sampled_from(["one", "two"]), limit=st.integers(1, 3))
    def claim(self, process: str, limit: int) -> None:
        ready = {name for name in self.jobs if self._is_ready(name)}
        taken = claim("default", limit, self._process(process))
        assert len(taken) == min(limit, len(ready))
        assert {one.id for one in taken} <= ready
        for one in taken:
            self.jobs[one.id].status = "running"
            self.fences[one.id] = one.fence
            self.claims.append((one, self._process(process)))

    def _settle(self, data: st.DataObject, completed: bool, outcome: dict[str, object] | None = None) -> str | None:
        """Settle one of the claims ever made; return its job when the settle counted."""
        one, process = data.draw(st.sampled_from(self.claims))
        holds = self._holds(one)
        lost = (
            settle([Outcome.completed(one, '"done"')], process)
            if completed
            else settle([Outcome(job=one, **outcome)], process)  # type: ignore[arg-type, misc]
        )
        assert lost == (set() if holds else {one.id})
        return one.id if holds else None

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        if job_id := self._settle(data, True):
            self._end(job_id, "completed")
            self.jobs[job_id].asked_to_stop = False

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def fail_and_retry(self, data: st.DataObject) -> None:
        outcome = {"status": JobStatus.SCHEDULED, "attempt": AttemptOutcome.FAILED, "spends_retry": True}
        if job_id := self._settle(data, False, outcome):
            self.jobs[job_id].retries += 1
            self.jobs[job_id].attempts += 1
            self._wait_again(job_id, "scheduled")

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def fail_for_good(self, data: st.DataObject) -> None:
        outcome = {
            "status": JobStatus.DEAD,
            "attempt": AttemptOutcome.FAILED,
            "reason": DeadLetterReason.RETRIES_EXHAUSTED,
        }
        if job_id := self._settle(data, False, outcome):
            self.jobs[job_id].attempts += 1
            self.jobs[job_id].asked_to_stop = False
            self._end(job_id, "dead")

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        one, process = data.draw(st.sampled_from(self.claims))
        holds = self._holds(one)
        assert release_started([one], process) == holds
        if holds:
            self.jobs[one.id].attempts += 1
            self._wait_again(one.id, "pending")

    @rule(name=st.sampled_from(["one", "two"]))
    def kill_and_rescue(self, name: str) -> None:
        held = [one for one, process in self.claims if process == self._process(name) and self._holds(one)]
        assert rescue_process(self._process(name)) == len(held)
        assert rescue_process(self._process(name)) == 0
        for one in held:
            job = self.jobs[one.id]
            job.crashes = max(job.crashes, 1)
            job.attempts += 1
            if job.asked_to_stop:
                job.asked_to_stop = False
                self._end(one.id, "cancelled")
            else:
                job.status = "scheduled"
        self.processes[name] += 1
        leases.register(self._process(name), queues=[], threads=1)

    @rule()
    def promote(self) -> None:
        due = [job for job in self.jobs.values() if job.status == "scheduled"]
        assert len(promote()) == len(due)
        for job in due:
            job.status = "pending"

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        with _refused(unless=job.status in {*WAITING, "running"}):
            cancel([job_id]).raise_if_left()
            if job.status == "running":
                job.asked_to_stop = True
            else:
                self._end(job_id, "cancelled")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        with _refused(unless=job.status in BAD):
            replay([job_id], dependents=False).raise_if_left()
            job.status = "pending"
            job.retries = job.crashes = 0

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def run_now(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        with _refused(unless=job.status in WAITING):
            run_now([job_id]).raise_if_left()
            job.status = "pending"

    # What must hold after each.

    @invariant()
    def rows_are_as_expected(self) -> None:
        cascade_all()
        rows = {job.pk: job for job in Job.objects.all()}
        assert {name: row.status for name, row in rows.items()} == {name: job.status for name, job in self.jobs.items()}
        for name, row in rows.items():
            assert row.fence >= self.fences.get(name, 0), "a fence only grows"
            if row.status != "running":
                self.fences[name] = row.fence
            job = self.jobs[name]
            assert (row.retry_count, row.crash_count, row.attempts.count()) == (job.retries, job.crashes, job.attempts)
            assert bool(row.cancel_requested_at) == job.asked_to_stop or row.status == "cancelled"
            open_edges = JobDependency.objects.filter(job=row, state="open").count()
            assert row.pending_dependencies == open_edges
            letters = DeadLetter.objects.filter(job=row, replayed_at__isnull=True).count()
            assert letters == (row.status == "dead")


@contextmanager
def _refused(*, unless: bool) -> Iterator[None]:
    """Expect the move to be refused, unless it is legal."""
    if unless:
        yield
    else:
        with pytest.raises(InvalidJob), transaction.atomic():
            yield


class Walk(Moves):
    """Leaves empty tables for the next walk."""

    def teardown(self) -> None:
        _empty()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_random_walks_agree_with_the_oracle() -> None:
    walk(Walk, 6, 25, derandomize=True)  # the same walks each time; new ones are what the long run is for


@pytest.mark.fault
@pytest.mark.django_db(transaction=True)
def test_three_hundred_long_walks_agree_with_the_oracle() -> None:
    walk(Walk, 300, 40, derandomize=False)


def _empty() -> None:
    with connection.cursor() as cursor:
        for table in ("deadletter", "attempt", "jobdependency", "job", "workerprocess"):
            cursor.execute(f"DELETE FROM django_jobs_{table}")
