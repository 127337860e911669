"""Random walks over moves of jobs with a rate, each claim compared with a small model of who may start, on each database."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from django_jobs import Limit, job, submit
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, slots, starts
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Job
from django_jobs.testing import advance_time
from tests.support.waiting import dump_rows
from tests.support.walks import walk

NAME = "rated.walk"
MOST, WINDOW, STEP = 2, 60, 25  # minutes, no two of whose sums are near: a slow machine's walk takes some of its own


class Walk(RuleBasedStateMachine):
    """One type with a rate by key. Claims are kept after they were lost, and the clock goes on in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[ClaimedJob] = []
        self.begun: set[tuple[str, int]] = set()
        self.starts: list[tuple[str, int]] = []
        self.clock = self.processes = self.number = 0
        self._register()

    def _register(self) -> None:
        self.processes += 1
        leases.register(self.process, queues=[], threads=1)

    @property
    def process(self) -> str:
        return f"p{self.processes}"

    def _may_start(self) -> list[str]:
        """Return the jobs that may be claimed now, in claim order."""
        counted = Counter(key for key, moment in self.starts if self.clock - moment < WINDOW)
        running = Job.objects.filter(status="running").values_list("pk", "fence", "limit_key")
        counted.update(key for pk, fence, key in running if (pk, fence) not in self.begun)
        found = []
        waiting = Job.objects.filter(status="pending").order_by("rank", "available_at", "id")
        for pk, key in waiting.values_list("pk", "limit_key"):
            if counted[key] < MOST:
                counted[key] += 1
                found.append(pk)
        return found

    @rule(key=st.sampled_from(["a", "a", "b"]), priority=st.sampled_from([5, 5, 9]), number=st.integers(1, 4))
    def submit(self, key: str, priority: int, number: int) -> None:
        for _ in range(number):
            self.number += 1
            submit(NAME, {"key": key}, job_id=f"job-{self.number:03}", priority=priority)

    @rule(limit=st.sampled_from([1, 3, 50]), begin=st.booleans())
    def claim(self, limit: int, *, begin: bool) -> None:
        slots.take_turns()  # as workers do
        expected = self._may_start()[:limit]
        taken = claim("default", limit, self.process)
        ids = [one.id for one in taken]
        # One that waited goes before one that is claimed and came later: it has been let in, for the next claim.
        before = expected[: expected.index(ids[-1]) + 1] if ids else []
        passed_over = [one for one in before if one not in ids]
        assert sorted([*ids, *passed_over]) == sorted(before), f"{expected} may start\n{dump_rows()}"
        assert ids == [one for one in before if one in ids], f"{expected} may start\n{dump_rows()}"
        assert Job.objects.ready().filter(pk__in=passed_over).count() == len(passed_over), dump_rows()
        assert bool(ids) == bool(expected), f"{expected} may start\n{dump_rows()}"
        self.claims += taken
        if begin:
            for one in taken:
                self._start(one)
            settle([Outcome.completed(one) for one in taken], self.process)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.claims))
        if (one.id, one.fence) not in self.begun:
            self._start(one)

    def _start(self, one: ClaimedJob) -> None:
        holds = Job.objects.filter(pk=one.id, fence=one.fence, status="running").exists()
        assert starts.record_start(one.id, one.fence, one.rated) == holds, dump_rows()
        if holds:
            self.begun.add((one.id, one.fence))
            self.starts.append((str(Job.objects.get(pk=one.id).limit_key), self.clock))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), ends=st.sampled_from(["completed", "snoozed", "released"]))
    def end(self, data: st.DataObject, ends: str) -> None:
        one = data.draw(st.sampled_from(self.claims))
        if ends == "released":
            release([one])
        else:
            settle([Outcome.completed(one) if ends == "completed" else Outcome.snoozed(one, 0, "later")], self.process)

    @rule()
    def kill_and_rescue(self) -> None:
        rescue_process(self.process)
        self._register()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if names := sorted(Job.objects.filter(status="pending").values_list("pk", flat=True)):
            cancel([data.draw(st.sampled_from(names))])

    @rule(steps=st.integers(1, 3))
    def wait(self, steps: int) -> None:
        self.clock += steps * STEP
        advance_time(timedelta(minutes=steps * STEP))
        promote()
        slots.take_turns()
        may_start = Job.objects.filter(pk__in=self._may_start())
        waiting, asking = (
            {*jobs.order_by().values_list("limit_key", flat=True)} for jobs in (may_start, Job.objects.ready())
        )
        assert waiting <= asking, f"keys {waiting - asking} wait beside room\n{dump_rows()}"

    def teardown(self) -> None:
        with connection.cursor() as cursor:
            tables = ("attempt", "limitslot", "limitstart", "limitturn", "deadletter", "job", "workerprocess")
            for table in tables:
                cursor.execute(f"DELETE FROM django_jobs_{table}")


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    job(NAME, limit=Limit(rate=f"{MOST}/h", key="key"), base_delay=0)(lambda payload: None)
    yield
    registry.forget(NAME)
    active_limits.forget_queues()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_random_walks_keep_the_rate_and_leave_nobody_behind() -> None:
    walk(Walk, 10, 60, derandomize=True)


@pytest.mark.fault
@pytest.mark.django_db(transaction=True)
def test_two_hundred_long_walks_keep_the_rate_and_leave_nobody_behind() -> None:
    walk(Walk, 200, 60, derandomize=False)
