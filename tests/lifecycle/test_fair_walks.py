"""A model of fair keys beside limits: whatever is submitted, claimed, settled or let go, the order is that of the model."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_jobs import Limit, job, submit
from django_jobs.db.lines import NO_KEY, InLine, Line
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases, turns
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Job, JobStatus
from tests.support.walks import walk

pytestmark = pytest.mark.django_db
FREE, LIMITED = "tests.walk_free", "tests.walk_limited"
MOST = 2
PROCESS = "walker"
keys = st.sampled_from([None, "a", "b", "c"])


@pytest.fixture(autouse=True)
def types() -> Any:
    @job(FREE, fair_key="tenant")
    def free(payload: dict[str, Any]) -> None: ...

    @job(LIMITED, fair_key="tenant", limit=Limit(concurrency=MOST))
    def limited(payload: dict[str, Any]) -> None: ...

    yield
    registry.forget(FREE)
    registry.forget(LIMITED)


class Walk(RuleBasedStateMachine):
    """The model: who is ready, sorted in memory from what the rows say before each claim; who runs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = transaction.atomic()
        self.block.__enter__()
        leases.register(PROCESS, queues=[], threads=1)
        turns.forget_queues()
        self.running: dict[str, ClaimedJob] = {}
        self.submitted = 0
        self.since_served: Counter[str] = Counter()

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.block.__exit__(None, None, None)

    @rule(key=keys, job_type=st.sampled_from([FREE, LIMITED]), priority=st.sampled_from([5, 7]))
    def submit(self, key: str | None, job_type: str, priority: int) -> None:
        submit(job_type, {"tenant": key}, priority=priority)
        self.submitted += 1

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        ready = [
            (InLine(rank, since, job_id, key or NO_KEY), job_type)
            for rank, since, job_id, key, job_type in Job.objects.ready().values_list(
                "rank", "available_at", "id", "fair_key", "job_type"
            )
        ]
        served = turns.turns_of(Line("default"))
        order = turns.in_turn([one for one, _ in ready], served, None)
        types = {one.id: job_type for one, job_type in ready}
        claimed = claim("default", limit, PROCESS)
        self.running |= {one.id: one for one in claimed}
        assert all(types[one.id] for one in claimed)
        places = [[one.id for one in order].index(one.id) for one in claimed]
        assert places == sorted(places), "claimed in turn"
        passed_over = {one.id for one in order[: places[-1]]} - {one.id for one in claimed} if places else set()
        held = set(Job.objects.filter(pk__in=passed_over, pending_limits=1).values_list("pk", flat=True))
        let_in_anew = {one for one in passed_over - held if types[one] == LIMITED}
        assert passed_over == held | let_in_anew, "only a limit makes a job lose its turn"
        if not claimed:
            assert all(types[one.id] == LIMITED for one in order)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        one = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        settle([Outcome.completed(one, "null")], PROCESS)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        one = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        release([one])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = list(Job.objects.filter(status=JobStatus.PENDING).order_by("id").values_list("pk", flat=True))
        if waiting:
            cancel([data.draw(st.sampled_from(waiting))])

    @rule()
    def a_retry_comes_due(self) -> None:
        job_id = Job.objects.filter(status=JobStatus.PENDING, pending_limits=0).values_list("pk", flat=True).first()
        if job_id is not None:
            row = Job.objects.get(pk=job_id)
            Job.objects.filter(pk=job_id).update(available_at=row.available_at + timedelta(seconds=1))

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        running = Job.objects.filter(status=JobStatus.RUNNING)
        assert running.filter(job_type=LIMITED).count() <= MOST
        assert set(running.values_list("pk", flat=True)) == set(self.running)

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        with transaction.atomic():
            held = Job.objects.filter(job_type=LIMITED, pending_limits=1)
            ready = Job.objects.ready().filter(job_type=LIMITED)
            running = Job.objects.filter(status=JobStatus.RUNNING, job_type=LIMITED).count()
            assert not held.exists() or ready.exists() or running == MOST


@pytest.mark.slow
def test_walks_of_keys_beside_a_limit_follow_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.0)  # the model knows of a key at once
    walk(Walk, 15, 25, derandomize=True)
