"""Random walks over moves of limited jobs, each claim compared with a small model of who may run, on each database."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from django.db import connection
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.limits import set_limit, write_declared
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote, run_now
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.lifecycle.slots import sweep
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus, LimitSlot
from tests.support.locked import Locked
from tests.support.waiting import dump_rows
from tests.support.walks import walk

KEYED, TOTAL = "limited.keyed", "limited.total"
QUEUES = ("default", "other", "by-key")
OF_QUEUE, OF_KEY = 3, 2


class Moves(RuleBasedStateMachine):
    """Two limited types in three queues, two of which have a limit besides. Claims are kept after they were lost."""

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[str, int | None] = {KEYED: 1, TOTAL: 2}  # None: an operator has lifted the limit
        self.claims: list[ClaimedJob] = []
        self.processes = 0
        self.number = 0
        self.locked = ""  # by a transaction of the site
        self._register()

    def _register(self) -> None:
        self.processes += 1
        leases.register(self.process, queues=[], threads=1)

    @property
    def process(self) -> str:
        return f"p{self.processes}"

    # The model.

    def _scopes(self, one: Job) -> dict[str, int]:
        """Return the scopes of a job, each with how many may run in it."""
        scopes = {"queue:default": OF_QUEUE} if one.queue == "default" else {}
        if one.queue == "by-key" and one.payload["key"]:
            scopes[f"queue:by-key {one.payload['key']}"] = OF_KEY
        if (most := self.most[one.job_type]) is not None:
            scopes[f"type:{one.job_type}" + (f" {one.limit_key}" if one.limit_key else "")] = most
        return scopes

    def _running(self) -> Counter[str]:
        return Counter(scope for one in Job.objects.filter(status="running") for scope in self._scopes(one))

    def _may_run(self, queue: str, besides: Iterable[str] = ()) -> list[str]:
        """Return the jobs of a queue that may run now, in claim order; or might, had those `besides` not been claimed."""
        running, found = self._running(), []
        for one in Job.objects.filter(pk__in=besides):
            running.subtract(self._scopes(one).keys())
        waiting = Job.objects.filter(status="pending", pending_dependencies=0) | Job.objects.filter(pk__in=besides)
        for one in waiting.filter(queue=queue).exclude(pk=self.locked).order_by("rank", "available_at", "id"):
            scopes = self._scopes(one)
            if all(running[scope] < most for scope, most in scopes.items()):
                running.update(scopes.keys())
                found.append(one.pk)
        return found

    # The moves.

    def _new(self, data: st.DataObject) -> NewJob:
        self.number += 1
        job_type = data.draw(st.sampled_from([KEYED, KEYED, TOTAL]))
        payload = {"key": data.draw(st.sampled_from(["a", "b"])) if job_type == KEYED else None}
        options = {"queue": data.draw(st.sampled_from(QUEUES)), "priority": data.draw(st.sampled_from([5, 5, 9]))}
        if job_type == TOTAL:
            options["limit_key"] = data.draw(st.sampled_from([None, None, "own"]))
        return NewJob(job_type, payload, job_id=f"job-{self.number:03}", **options)

    @rule(data=st.data())
    def submit_one(self, data: st.DataObject) -> None:
        new = self._new(data)
        submit(new.job_type, new.payload, **new.options)

    @rule(data=st.data(), number=st.integers(2, 6))
    def submit_a_batch(self, data: st.DataObject, number: int) -> None:
        submit_many([self._new(data) for _ in range(number)])

    @rule(queue=st.sampled_from(QUEUES), limit=st.integers(1, 4))
    def claim(self, queue: str, limit: int) -> None:
        expected = self._may_run(queue)[:limit]
        taken = claim(queue, limit, self.process)
        ids = [one.id for one in taken]
        assert ids == expected[: len(ids)], dump_rows()
        assert bool(ids) == bool(expected), f"{expected} may run\n{dump_rows()}"
        self.claims += taken

    @precondition(lambda self: self.claims and connection.vendor != "sqlite")
    @rule(data=st.data(), number=st.integers(1, 4))
    def settle_and_claim_beside_a_locked_job(self, data: st.DataObject, number: int) -> None:
        waiting = list(Job.objects.filter(status="pending").order_by("pk").values_list("pk", flat=True))
        if not waiting:
            return
        self.locked = data.draw(st.sampled_from(waiting))
        queue = data.draw(st.sampled_from(QUEUES))
        with Locked(self.locked):
            if free := [one for one in self.claims if one.id != self.locked]:
                settle_unlocked([Outcome.completed(data.draw(st.sampled_from(free)))], self.process)
            sweep()  # as workers do every few seconds
            while taken := claim(queue, number, self.process):
                self.claims += taken
                self._check_limits({one.id for one in taken})
            assert self._may_run(queue) == [], dump_rows()
        self.locked = ""
        sweep()

    def _check_limits(self, claimed: Iterable[str]) -> None:
        running = self._running()
        for one in Job.objects.filter(pk__in=claimed):
            assert all(running[scope] <= number for scope, number in self._scopes(one).items()), dump_rows()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), kind=st.sampled_from(["completed", "completed", "failed", "dead", "snoozed", "cancelled"]))
    def settle(self, data: st.DataObject, kind: str) -> None:
        one = data.draw(st.sampled_from(self.claims))
        attempt, reason = AttemptOutcome.FAILED, DeadLetterReason.RETRIES_EXHAUSTED
        outcomes = {
            "completed": Outcome.completed(one),
            "failed": Outcome(one, JobStatus.SCHEDULED, attempt, spends_retry=True),
            "dead": Outcome(one, JobStatus.DEAD, attempt, reason=reason),
            "snoozed": Outcome.snoozed(one, 0, "later"),
            "cancelled": Outcome.cancelled(one, "asked"),
        }
        settle([outcomes[kind]], self.process)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), queues=st.sampled_from([QUEUES, QUEUES[1:]]), most=st.integers(1, 3))
    def settle_and_go_on(self, data: st.DataObject, queues: tuple[str, ...], most: int) -> None:
        handover = Handover(lambda queue: queue in queues, most)
        settle_unlocked([Outcome.completed(data.draw(st.sampled_from(self.claims)))], self.process, handover)
        taken = [one.id for one in handover.jobs]
        # They have their slots, and wait for a claim.
        let_in = set(Job.objects.filter(status="pending", slots__waits=False).values_list("pk", flat=True))
        for queue in QUEUES:
            ids = [one.id for one in handover.jobs if one.queue == queue]
            expected = [one for one in self._may_run(queue, taken) if one not in let_in]
            assert ids == expected[: len(ids)], dump_rows()
            assert queue in queues or not ids
        assert len(taken) <= most
        self._check_limits(taken)
        self.claims += handover.jobs

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        release([data.draw(st.sampled_from(self.claims))])

    @rule()
    def kill_and_rescue(self) -> None:
        rescue_process(self.process)
        self._register()

    @rule()
    def promote(self) -> None:
        promote()

    @rule(
        data=st.data(), move=st.sampled_from(["cancel", "replay", "run now", "priority", "queue", "depend", "delete"])
    )
    def operate(self, data: st.DataObject, move: str) -> None:
        names = sorted(Job.objects.values_list("pk", flat=True))
        if not names:
            return
        one = data.draw(st.sampled_from(names))
        if move == "delete":
            Job.objects.filter(pk=one).delete()
            sweep()
        elif move == "depend":
            self._depend(one, data.draw(st.sampled_from(names)))
        else:
            moves = {
                "cancel": lambda: cancel([one]),
                "replay": lambda: replay([one]),
                "run now": lambda: run_now([one]),
                "priority": lambda: change([one], priority=data.draw(st.integers(4, 6))),
                "queue": lambda: change([one], queue=data.draw(st.sampled_from(QUEUES))),
            }
            moves[move]()

    def _depend(self, one: str, other: str) -> None:
        if one < other and Job.objects.filter(pk=other, status__in=("pending", "scheduled", "running")).exists():
            row = Job.objects.get(pk=other)
            if row.status in ("pending", "scheduled") and one not in row.depends_on:
                row.add_dependency(one, on_failure="run")

    @rule(job_type=st.sampled_from([KEYED, TOTAL]), most=st.sampled_from([None, 1, 2, 3]))
    def change_a_limit(self, job_type: str, most: int | None) -> None:
        set_limit(f"type:{job_type}", concurrency=most)
        self.most[job_type] = most

    @rule()
    def start_a_process(self) -> None:
        write_declared()

    # What must hold after each.

    @invariant()
    def slots_are_those_of_jobs_that_run_or_wait(self) -> None:
        slots: dict[str, set[tuple[str, bool]]] = {}
        for job_id, scope, waits in LimitSlot.objects.values_list("job_id", "scope", "waits"):
            slots.setdefault(job_id, set()).add((scope, waits))
        for one in Job.objects.all():
            found = slots.get(one.pk, set())
            if one.status == "running":
                lifted = {(scope, False) for scope, _ in found if self.most.get(scope.split()[0][5:], 0) is None}
                assert found - lifted == {(scope, False) for scope in self._scopes(one)}, f"{one.pk}\n{dump_rows()}"
            elif one.pending_limits:
                assert len(found) == 1, f"{one.pk}: {found}\n{dump_rows()}"
                assert all(waits and scope in self._scopes(one) for scope, waits in found), f"{one.pk}: {found}"
            elif one.status == "pending":
                assert not any(waits for _, waits in found), f"{one.pk}: {found}"
            else:
                assert not found, f"{one.pk} is {one.status}: {found}\n{dump_rows()}"


class Walk(Moves):
    """Leaves empty tables for the next walk."""

    def teardown(self) -> None:
        with connection.cursor() as cursor:
            for table in ("deadletter", "attempt", "jobdependency", "limitslot", "limit", "job", "workerprocess"):
                cursor.execute(f"DELETE FROM django_jobs_{table}")
        active_limits.forget_numbers()


@pytest.fixture(autouse=True)
def declared(settings: Any) -> Iterator[None]:
    by_key = {"limit": {"concurrency": OF_KEY, "key": "key"}}
    settings.DJANGO_JOBS = {"QUEUES": {"default": {"limit": {"concurrency": OF_QUEUE}}, "by-key": by_key}}
    job(KEYED, limit=Limit(concurrency=1, key="key"), base_delay=0)(lambda payload: None)
    job(TOTAL, limit=Limit(concurrency=2), base_delay=0)(lambda payload: None)
    yield
    registry.forget(KEYED)
    registry.forget(TOTAL)
    active_limits.forget_queues()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_random_walks_keep_the_limits_and_leave_nobody_behind() -> None:
    walk(Walk, 6, 40, derandomize=True)


@pytest.mark.fault
@pytest.mark.django_db(transaction=True)
def test_three_hundred_long_walks_keep_the_limits_and_leave_nobody_behind() -> None:
    walk(Walk, 300, 60, derandomize=False)
