"""A connection that fails at the n-th statement of a move, for every n: all of it is done or nothing, and once more works."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import Error

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.connections import discard_connection
from django_jobs.db.transactions import database_now
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases
from django_jobs.lifecycle.acknowledge import acknowledge
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.cascade import continue_cascade
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.prune import prune_batch
from django_jobs.lifecycle.release import release_process, release_started
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import Handover, settle, settle_again, settle_unlocked
from django_jobs.models import (
    Attempt,
    AttemptOutcome,
    DeadLetter,
    DeadLetterReason,
    Job,
    JobDependency,
    JobStatus,
    LimitSlot,
    Schedule,
    ScheduleTick,
    WorkerProcess,
)
from django_jobs.scheduling.store import create_schedule
from django_jobs.scheduling.ticks import tick
from tests.support.invariants import check_invariants
from tests.support.statements import broken_connection

pytestmark = pytest.mark.django_db(transaction=True)
MOST_STATEMENTS = 80
MADE_ID = re.compile(r"[0-9a-f-]{32,}")
LIMITED = "limited.broken"


@pytest.fixture(autouse=True)
def no_limit_is_left() -> Iterator[None]:
    yield
    registry.forget(LIMITED)
    active_limits.forget_queues()


@dataclass(frozen=True)
class Move:
    """How to make the rows that a move wants, the move, and how a caller does it again after an error."""

    prepare: Callable[[], Any]
    act: Callable[[Any], object]
    again: Callable[[Any], object] | None = None
    steps: bool = False  # more than one transaction: what is done halfway is legal, and finished by the next time


def _claimed(*jobs: NewJob) -> list[ClaimedJob]:
    leases.register("one", queues=[], threads=1)
    submit_many(jobs)
    return claim("default", 100, "one")


def _batch() -> list[Outcome]:
    """Four runs: one completed and waited for, one to be tried again, one dead and waited for, one cancelled."""
    jobs = _claimed(
        *(NewJob("catalogue.changes", job_id=name) for name in ("done", "flaky", "bad", "stopped")),
        NewJob("catalogue.changes", job_id="after-done", depends_on=["done"]),
        NewJob("catalogue.changes", job_id="after-bad", depends_on=["bad"]),
        NewJob("catalogue.changes", job_id="after-both", depends_on=["done", "bad"], on_dependency_failure="run"),
        NewJob("catalogue.changes", job_id="last", depends_on=["after-bad"]),
    )
    named = {job.id: job for job in jobs}
    return [
        Outcome.completed(named["done"], '{"n": 1}'),
        _outcome(named["flaky"], "scheduled", "failed"),
        _outcome(named["bad"], "dead", "failed", DeadLetterReason.RETRIES_EXHAUSTED),
        _outcome(named["stopped"], "cancelled", "cancelled"),
    ]


def _link() -> list[Outcome]:
    return [
        Outcome.completed(job)
        for job in _claimed(
            NewJob("catalogue.changes", job_id="first"),
            NewJob("catalogue.changes", job_id="next", depends_on=["first"]),
        )
    ]


def _held_back() -> list[Outcome]:
    if registry.find(LIMITED) is None:
        job(LIMITED, limit=Limit(concurrency=1))(lambda payload: None)
    return [
        Outcome.completed(one)
        for one in _claimed(*(NewJob(LIMITED, job_id=name) for name in ("first", "next", "last")))
    ]


def _outcome(job: ClaimedJob, status: str, attempt: str, reason: DeadLetterReason | None = None) -> Outcome:
    return Outcome(job, JobStatus(status), AttemptOutcome(attempt), reason=reason, error="the error")


def _dead_tree() -> None:
    settle(_batch(), "one")
    while continue_cascade():
        pass


def _half_failed() -> None:
    settle(_batch(), "one")


def _due_schedule() -> None:
    create_schedule("hourly", "catalogue.changes", every=3600)
    Schedule.objects.update(next_run_at=database_now() - timedelta(seconds=1))


def _old_jobs() -> None:
    _dead_tree()
    DeadLetter.objects.update(acknowledged_at=database_now())
    Job.objects.filter(finished_at__isnull=False).update(finished_at=database_now() - timedelta(days=400))
    create_schedule("hourly", "catalogue.changes", every=3600)
    ScheduleTick.objects.create(schedule=Schedule.objects.get(), due_at=database_now(), job_id="done")


def _scheduled() -> None:
    submit_many([NewJob("catalogue.changes", job_id=f"job-{n}", delay=timedelta(hours=1)) for n in range(3)])
    Job.objects.update(available_at=database_now() - timedelta(seconds=1))


def _submit(_: Any) -> None:
    submit("catalogue.changes", {}, job_id="new", unique_key="key")


def _submit_dependent(_: Any) -> None:
    submit("catalogue.changes", {}, job_id="new", depends_on=["waiting"], delay=timedelta(hours=1))


def _submit_many(_: Any) -> None:
    submit_many(
        [
            NewJob("catalogue.changes", job_id=f"new-{n}", depends_on=["waiting", *(["new-0"] if n else [])])
            for n in range(5)
        ]
    )


def _nothing() -> None:
    pass


def _waiting() -> None:
    submit("catalogue.changes", {}, job_id="waiting")


MOVES = {
    "submit": Move(_nothing, _submit),
    "submit of a dependent": Move(_waiting, _submit_dependent),
    "submit_many": Move(_waiting, _submit_many),
    "promote": Move(_scheduled, lambda _: promote()),
    "claim": Move(
        lambda: (leases.register("one", queues=[], threads=1), _waiting()), lambda _: claim("default", 5, "one")
    ),
    "settle": Move(_batch, lambda batch: settle(batch, "one"), lambda batch: settle_again(batch, "one")),
    "settle with the next link": Move(_link, lambda batch: settle_unlocked(batch, "one", Handover(lambda queue: True))),
    "settle with who waits": Move(
        _held_back, lambda batch: settle_unlocked(batch, "one", Handover(lambda queue: True))
    ),
    "release": Move(
        lambda: _claimed(NewJob("catalogue.changes", job_id="a"), NewJob("catalogue.changes", job_id="b")),
        lambda jobs: release_started(jobs, "one"),
    ),
    "leave": Move(
        lambda: _claimed(NewJob("catalogue.changes", job_id="a"), NewJob("catalogue.changes", job_id="b")),
        lambda _: release_process("one"),
        steps=True,
    ),
    "cascade": Move(_half_failed, lambda _: continue_cascade()),
    "cancel": Move(
        lambda: (_waiting(), submit("catalogue.changes", job_id="next", depends_on=["waiting"])),
        lambda _: cancel(["waiting"]).raise_if_left(),
    ),
    "replay": Move(_dead_tree, lambda _: replay(["bad"]).raise_if_left()),
    "acknowledge": Move(_dead_tree, lambda _: acknowledge([DeadLetter.objects.get().pk]).raise_if_left()),
    "rescue": Move(
        lambda: _claimed(*(NewJob("catalogue.changes", job_id=name) for name in "abc")),
        lambda _: rescue_process("one"),
        steps=True,
    ),
    "tick": Move(_due_schedule, lambda _: tick()),
    "prune": Move(_old_jobs, lambda _: prune_batch()),
    "register": Move(_nothing, lambda _: leases.register("one", queues=[], threads=1)),
}


LONG = ("replay", "rescue", "cancel", "leave")  # seconds each: not in the default run


@pytest.mark.quick("sqlite")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.fault] if name in LONG else []) for name in MOVES]
)
def test_a_move_that_is_cut_off_at_any_statement_is_done_whole_or_not_at_all(name: str) -> None:
    statements = _break_at_each(MOVES[name], reply_is_lost=False)
    print(f"{name}: {statements} statements")


@pytest.mark.fault
@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.parametrize("name", MOVES)
def test_a_move_whose_reply_is_lost_at_any_statement_is_done_whole_or_not_at_all(name: str) -> None:
    _break_at_each(MOVES[name], reply_is_lost=True)


def _break_at_each(move: Move, *, reply_is_lost: bool) -> int:
    """Do the move with the connection broken at its first statement, at its second, and so on; return how many it has."""
    given = move.prepare()
    before = _rows()
    move.act(given)
    done = _rows()
    assert done != before
    for at in range(1, MOST_STATEMENTS):
        _empty()
        given = move.prepare()
        with broken_connection(at, reply_is_lost=reply_is_lost) as breaker:
            try:
                move.act(given)
            except Error:
                assert breaker.has_broken
        discard_connection()
        now = _rows()
        if not breaker.has_broken:
            assert now == done
            return at - 1
        assert move.steps or now in (before, done), f"broken at statement {at}: {_difference(now, before)}"
        if now != done:
            (move.again or move.act)(given)
        else:
            _repeat(move, given)
        assert _rows() == done, f"broken at statement {at} and done again: {_difference(_rows(), done)}"
        check_invariants()
    raise AssertionError(f"no move takes {MOST_STATEMENTS} statements")


def _repeat(move: Move, given: Any) -> None:
    """Do what is done already once more, as a caller does who had no answer: it is refused, or changes nothing."""
    try:
        (move.again or move.act)(given)
    except InvalidJob:
        pass


def _empty() -> None:
    for model in (LimitSlot, JobDependency, Attempt, DeadLetter, ScheduleTick, Schedule, WorkerProcess, Job):
        model.objects.all()._raw_delete("default")


def _rows() -> dict[str, list[str]]:
    """Return what the tables say, without what differs each time: moments, and ids that are made anew."""
    return {
        "jobs": _values(
            Job.objects.all(),
            (
                "pk",
                "status",
                "fence",
                "retry_count",
                "crash_count",
                "pending_dependencies",
                "worker_id",
                "result",
                "error",
            ),
        ),
        "slots": _values(LimitSlot.objects.all(), ("job_id", "scope", "waits")),
        "edges": _values(JobDependency.objects.all(), ("job_id", "depends_on_id", "state")),
        "attempts": _values(Attempt.objects.all(), ("job_id", "number", "outcome", "worker_id")),
        "dead letters": _values(DeadLetter.objects.all(), ("job_id", "reason", "acknowledged_at", "replayed_at")),
        "ticks": _values(ScheduleTick.objects.all(), ("schedule__name", "job__status", "job_id")),
        "schedules": _values(Schedule.objects.all(), ("name", "enabled", "last_error", "last_run_at")),
        "processes": _values(WorkerProcess.objects.all(), ("pk", "lease_expires_at")),
    }


def _values(rows: Any, columns: Sequence[str]) -> list[str]:
    return sorted(str([_plain(value) for value in row]) for row in rows.values_list(*columns))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return "a moment"
    return "an id" if isinstance(value, str) and MADE_ID.fullmatch(value) else value


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}
