"""Each fence and lock is needed: a check holds with it, and fails once it is taken out."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import pytest
from django.db import connection, connections, transaction
from django.db.models import F
from django.test import override_settings

from django_jobs import NewJob, batch, submit
from django_jobs.db.dialects import dialect, mariadb, postgresql, sqlite
from django_jobs.db.notify import listen_in_process
from django_jobs.lifecycle import batches, leases, prune, release, replay, rescue
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import complete_in_transaction, settle
from django_jobs.models import (
    AttemptOutcome,
    Batch,
    DeadLetter,
    DeadLetterReason,
    Job,
    JobStatus,
    Schedule,
    ScheduleTick,
    WorkerProcess,
)
from django_jobs.models.fields import DbNow
from django_jobs.scheduling import ticks
from django_jobs.scheduling.store import create_schedule
from tests.support.databases import Database
from tests.support.guards import EVERYWHERE, SERVERS, each_guard
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
TYPE = "effects.record"
BLOCKED_SECONDS = (
    0.4  # who has not answered by then waits for a lock; a slow machine only makes a broken guard look whole
)
LOOK_LOCK = "FOR UPDATE SKIP LOCKED"
SQL = {"postgresql": postgresql, "mariadb": mariadb, "sqlite": sqlite}


# What takes a guard out.


@contextmanager
def statement_without(database: Database, name: str, *guards: str) -> Iterator[None]:
    """Cut the first of `guards` that the statement has."""
    module = SQL[database.vendor]
    statement: str = getattr(module, name)
    (guard, *_) = [guard for guard in guards if guard in statement]
    with mock.patch.object(module, name, statement.replace(guard, "")):
        yield


@contextmanager
def without_fence_in_complete(database: Database) -> Iterator[None]:
    fence = " AND job.fence = done.fence", " AND django_jobs_job.fence = done.value ->> 1"
    with statement_without(database, "_COMPLETE", *fence):
        yield


@contextmanager
def without_fence_in_end(database: Database) -> Iterator[None]:
    def all_of_them(self: Any, fences: list[tuple[str, int]]) -> set[str]:
        return {job_id for job_id, _ in fences}

    fence = " AND job.fence = ended.fence", " AND django_jobs_job.fence = ended.fence"
    with (
        statement_without(database, "_END", *fence),
        mock.patch.object(mariadb.MariaDB, "_lock_with_fence", all_of_them),
    ):
        yield


@contextmanager
def without_fence_in_release(database: Database) -> Iterator[None]:
    def back(jobs: list[ClaimedJob]) -> int:
        rows = Job.objects.filter(pk__in=[job.id for job in jobs], status="running")
        return rows.update(status="pending", fence=F("fence") + 1)

    with mock.patch.object(release, "_release", back):
        yield


@contextmanager
def without_lock_in_claim(database: Database) -> Iterator[None]:
    with statement_without(database, "_PICK" if database.vendor == "mariadb" else "_CLAIM", " FOR UPDATE SKIP LOCKED"):
        yield


@contextmanager
def without_skip_locked(database: Database) -> Iterator[None]:
    with statement_without(database, "_PICK" if database.vendor == "mariadb" else "_CLAIM", " SKIP LOCKED"):
        yield


@contextmanager
def without_lease_in_claim(database: Database) -> Iterator[None]:
    module = SQL[database.vendor]
    guard = f" AND lease_expires_at > {module.NOW}"
    with statement_without(database, "_PICK" if database.vendor == "mariadb" else "_CLAIM", guard):
        yield


@contextmanager
def without_lock_in_wake(database: Database) -> Iterator[None]:
    with mock.patch.object(type(dialect()), "write_lock", ""):
        yield


@contextmanager
def without_share_lock_in_submit(database: Database) -> Iterator[None]:
    with mock.patch.object(type(dialect()), "share_lock", ""):
        yield


@contextmanager
def without_lock_on_the_open_member(database: Database) -> Iterator[None]:
    kind = type(dialect())
    locked = kind._each_batch
    with mock.patch.object(kind, "_each_batch", lambda self, number: locked(self, number).replace(LOOK_LOCK, "")):
        yield


@contextmanager
def without_lock_on_the_batch(database: Database) -> Iterator[None]:
    with mock.patch.object(batches, "_locked", lambda batch_id: Batch.objects.unfinished().filter(pk=batch_id).first()):
        yield


@contextmanager
def without_look_under_lock_in_prune(database: Database) -> Iterator[None]:
    with mock.patch.object(prune, "_unneeded", list):
        yield


@contextmanager
def without_beat_in_rescue(database: Database) -> Iterator[None]:
    declare = rescue._declare_dead
    with mock.patch.object(rescue, "_declare_dead", lambda process_id, beat: declare(process_id, None)):
        yield


@contextmanager
def without_lock_in_tick(database: Database) -> Iterator[None]:
    def found(rows: Any, *, skip_locked: bool) -> Any:
        return rows.annotate(now=DbNow()).first()

    with mock.patch.object(ticks, "_locked", found):
        yield


@contextmanager
def without_unique_ticks(database: Database) -> Iterator[None]:
    (unique,) = [one for one in ScheduleTick._meta.constraints if getattr(one, "fields", None)]
    with connection.schema_editor() as editor:
        editor.remove_constraint(ScheduleTick, unique)
    try:
        yield
    finally:
        ScheduleTick.objects.all().delete()
        with connection.schema_editor() as editor:
            editor.add_constraint(ScheduleTick, unique)


# What each is for.


def _register(*names: str) -> None:
    for name in names:
        leases.register(name, queues=[], threads=1)


def _twice_claimed() -> tuple[ClaimedJob, Job]:
    """Return the claim of a process whose job was released and claimed by another one, and the row of that second run."""
    _register("one", "two")
    submit(TYPE, {}, job_id="job")
    (stale,) = claim("default", 1, "one")
    release.release_process("one")
    claim("default", 1, "two")
    return stale, Job.objects.get()


def _meanwhile(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run `second` on another connection while the transaction of `first` is open; return what both returned."""
    returned: list[Any] = []

    def run() -> None:
        try:
            returned.append(second())
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    with transaction.atomic():
        result = first()
        thread.start()
        thread.join(BLOCKED_SECONDS)
    thread.join(60)
    assert returned, "the other one failed"
    return result, returned[0]


def a_stale_completion_writes_nothing() -> None:
    stale, row = _twice_claimed()
    assert settle([Outcome.completed(stale)], "one") == {"job"}
    assert (
        Job.objects.values().get()
        == Job.objects.filter(fence=row.fence, worker_id="two", status="running").values().get()
    )


def a_stale_atomic_completion_writes_nothing() -> None:
    stale, row = _twice_claimed()
    with transaction.atomic():
        assert not complete_in_transaction([Outcome.completed(stale)], "one")
    assert Job.objects.get().fence == row.fence


def a_stale_failure_writes_nothing() -> None:
    stale, row = _twice_claimed()
    outcome = Outcome(stale, JobStatus.SCHEDULED, AttemptOutcome.FAILED, spends_retry=True)
    assert settle([outcome], "one") == {"job"}
    assert (Job.objects.get().fence, Job.objects.get().status) == (row.fence, "running")


def a_stale_release_takes_no_job_away() -> None:
    stale, row = _twice_claimed()
    assert release.release([stale]) == 0
    assert (Job.objects.get().fence, Job.objects.get().status) == (row.fence, "running")


def two_claims_share_nothing() -> None:
    _register("one", "two")
    submit(TYPE, {}, job_id="job")
    first, second = _meanwhile(lambda: claim("default", 1, "one"), lambda: claim("default", 1, "two"))
    assert [job.id for job in first] == ["job"]
    assert second == []


def a_claim_passes_by_a_job_that_somebody_has_locked() -> None:
    _register("two")
    submit(TYPE, {}, job_id="locked", priority=9)
    submit(TYPE, {}, job_id="free")
    answered = threading.Event()

    def second() -> list[ClaimedJob]:
        jobs = claim("default", 1, "two")
        answered.set()
        return jobs

    with transaction.atomic():
        Job.objects.select_for_update().get(pk="locked")
        thread = threading.Thread(target=lambda: (second(), connections.close_all()), daemon=True)
        thread.start()
        in_time = answered.wait(BLOCKED_SECONDS * 10)
    thread.join(60)
    assert in_time, "the claim waited for somebody else's lock"


def a_process_declared_dead_claims_nothing() -> None:
    _register("one")
    submit(TYPE, {}, job_id="job")
    WorkerProcess.objects.update(lease_expires_at=None)
    assert claim("default", 1, "one") == []


def the_last_of_two_dependencies_tells_that_the_dependent_is_ready() -> None:
    _register("one")
    for name in ("a", "b"):
        submit(TYPE, {}, job_id=name)
    a, b = claim("default", 2, "one")
    submit(TYPE, {}, job_id="dependent", queue="later", depends_on=["a", "b"])
    notified: list[str] = []
    stop = listen_in_process(notified.append)
    try:
        _meanwhile(
            lambda: settle([Outcome.completed(a)], "one"),
            lambda: settle([Outcome.completed(b)], "one"),
        )
    finally:
        stop()
    assert Job.objects.get(pk="dependent").pending_dependencies == 0
    assert "later" in notified


def a_submit_beside_the_settle_of_its_dependency_waits_for_it() -> None:
    _register("one")
    submit(TYPE, {}, job_id="a")
    (a,) = claim("default", 1, "one")
    _meanwhile(
        lambda: settle([Outcome.completed(a)], "one"),
        lambda: submit(TYPE, {}, job_id="dependent", depends_on=["a"]),
    )
    assert Job.objects.get(pk="dependent").pending_dependencies == 0, "nobody is left to wake it"


def a_dependency_that_completes_beside_a_revival_wakes_its_dependent() -> None:
    _register("one")
    submit(TYPE, {}, job_id="a")
    submit(TYPE, {}, job_id="dependent", depends_on=["a"])
    (a,) = claim("default", 1, "one")
    dead = Outcome(a, JobStatus.DEAD, AttemptOutcome.FAILED, reason=DeadLetterReason.FAILED_BY_HANDLER)
    assert settle([dead], "one") == set()
    with (
        mock.patch.object(replay, "STEP", 0),
        mock.patch.object(replay, "revive_all"),
    ):  # as if it had many more dependents
        replay.replay(["a"]).raise_if_left()
    (a,) = claim("default", 1, "one")
    _meanwhile(replay.revive_step, lambda: settle([Outcome.completed(a)], "one"))
    dependent = Job.objects.get(pk="dependent")
    assert (dependent.status, dependent.pending_dependencies) == ("pending", 0), "nobody is left to wake it"


def _batch_of_running_jobs(number: int) -> tuple[Batch, list[ClaimedJob]]:
    _register("one")
    with batch(on_finish=NewJob(TYPE, queue="callbacks")) as begun:
        begun.submit_many([NewJob(TYPE)] * number)
    return begun, claim("default", number, "one")


def _ends(begun: Batch) -> tuple[str, int]:
    return Batch.objects.get(pk=begun.pk).status, Job.objects.filter(queue="callbacks").count()


def the_later_of_two_settles_finishes_the_batch() -> None:
    begun, (a, b) = _batch_of_running_jobs(2)
    _meanwhile(lambda: settle([Outcome.completed(a)], "one"), lambda: settle([Outcome.completed(b)], "one"))
    assert _ends(begun) == ("completed", 1)


def of_settles_that_look_at_the_same_moment_one_finishes_the_batch() -> None:
    begun, jobs = _batch_of_running_jobs(3)
    marked, looked = threading.Barrier(3, timeout=30), threading.Barrier(3)
    look, is_open = batches._held_open, batches._is_open

    def look_together(batch_ids: set[str]) -> set[str]:
        marked.wait()
        return look(batch_ids)

    def see_together(batch_id: str) -> bool:
        found = is_open(batch_id)
        with suppress(threading.BrokenBarrierError):
            looked.wait(BLOCKED_SECONDS)  # in vain where only one may look
        return found

    with mock.patch.object(batches, "_held_open", look_together), mock.patch.object(batches, "_is_open", see_together):
        run_in_threads([lambda job=job: settle([Outcome.completed(job)], "one") for job in jobs])
    assert _ends(begun) == ("completed", 1)


def a_member_that_is_added_beside_the_last_settle_is_waited_for() -> None:
    begun, (last,) = _batch_of_running_jobs(1)
    _meanwhile(lambda: begun.submit(TYPE), lambda: settle([Outcome.completed(last)], "one"))
    assert _ends(begun) == ("running", 0)


def a_prune_beside_a_submit_leaves_what_that_one_names() -> None:
    _register("one")
    submit(TYPE, {}, job_id="a")
    (a,) = claim("default", 1, "one")
    settle([Outcome.completed(a)], "one")
    with override_settings(DJANGO_JOBS={"RETENTION": {"completed": 0}}):
        _meanwhile(lambda: submit(TYPE, {}, job_id="dependent", depends_on=["a"]), prune.prune_batch)
    assert [edge.depends_on_id for edge in Job.objects.get(pk="dependent").dependencies.all()] == ["a"]


def a_process_that_has_beaten_since_the_look_is_not_rescued() -> None:
    _register("one")
    submit(TYPE, {}, job_id="job")
    claim("default", 1, "one")
    (seen,) = WorkerProcess.objects.snapshots()
    leases.beat("one")
    assert rescue.rescue_process("one", seen.beat) == 0
    assert Job.objects.get().status == "running"


def _due_schedule() -> Schedule:
    Schedule.objects.all().delete()
    row = create_schedule("each minute", TYPE, every=60)
    Schedule.objects.update(next_run_at=DbNow())
    return row


def two_ticks_at_once_leave_the_schedule_in_order() -> None:
    row = _due_schedule()
    _meanwhile(lambda: ticks._take(row.pk), lambda: ticks._tick_one(row.pk))
    assert Job.objects.count() == ScheduleTick.objects.count() == 1
    assert Schedule.objects.get().enabled


def one_tick_is_one_job_even_without_the_lock() -> None:
    row = _due_schedule()
    with without_lock_in_tick(None):  # type: ignore[arg-type]
        _meanwhile(lambda: ticks._take(row.pk), lambda: ticks._tick_one(row.pk))
    assert Job.objects.count() == 1


GUARDS: list[tuple[Callable[[Database], Any], Callable[[], None], tuple[str, ...]]] = [
    (without_fence_in_complete, a_stale_completion_writes_nothing, EVERYWHERE),
    (without_fence_in_complete, a_stale_atomic_completion_writes_nothing, EVERYWHERE),
    (without_fence_in_end, a_stale_failure_writes_nothing, EVERYWHERE),
    (without_fence_in_release, a_stale_release_takes_no_job_away, EVERYWHERE),
    (without_lease_in_claim, a_process_declared_dead_claims_nothing, EVERYWHERE),
    (without_beat_in_rescue, a_process_that_has_beaten_since_the_look_is_not_rescued, EVERYWHERE),
    (without_lock_in_claim, two_claims_share_nothing, SERVERS),
    (without_skip_locked, a_claim_passes_by_a_job_that_somebody_has_locked, SERVERS),
    # MariaDB's wake reads the count under the lock to see who is ready; PostgreSQL's has it from the UPDATE. The count itself
    # is right on MariaDB without it: an UPDATE subtracts from the row as it is, and a recount locks the edges that it counts.
    (without_lock_in_wake, the_last_of_two_dependencies_tells_that_the_dependent_is_ready, ("mariadb",)),
    (without_lock_in_wake, a_dependency_that_completes_beside_a_revival_wakes_its_dependent, ("postgresql",)),
    (without_share_lock_in_submit, a_submit_beside_the_settle_of_its_dependency_waits_for_it, SERVERS),
    (without_lock_on_the_open_member, the_later_of_two_settles_finishes_the_batch, SERVERS),
    (without_lock_on_the_batch, of_settles_that_look_at_the_same_moment_one_finishes_the_batch, SERVERS),
    (without_share_lock_in_submit, a_member_that_is_added_beside_the_last_settle_is_waited_for, SERVERS),
    (without_look_under_lock_in_prune, a_prune_beside_a_submit_leaves_what_that_one_names, SERVERS),
    (without_lock_in_tick, two_ticks_at_once_leave_the_schedule_in_order, SERVERS),
    (without_unique_ticks, one_tick_is_one_job_even_without_the_lock, SERVERS),
]


@pytest.mark.databases(*SERVERS)
@pytest.mark.slow
def test_the_last_of_two_dependencies_that_complete_at_once_tells_that_the_dependent_is_ready() -> None:
    the_last_of_two_dependencies_tells_that_the_dependent_is_ready()  # with no lock but the rows' own, which none takes away


@pytest.mark.quick("postgresql")
@pytest.mark.parametrize(("taken_out", "check"), [*each_guard(GUARDS)])
@pytest.mark.slow
def test_the_check_holds_and_fails_without_its_guard(
    database: Database, taken_out: Callable[[Database], Any], check: Callable[[], None]
) -> None:
    check()
    _empty()
    with taken_out(database), pytest.raises(AssertionError):
        check()


def _empty() -> None:
    DeadLetter.objects.all().delete()
    ScheduleTick.objects.all().delete()
    Job.objects.filter(dependencies__isnull=False).delete()
    Job.objects.all().delete()
    Batch.objects.all().delete()
    WorkerProcess.objects.all().delete()
