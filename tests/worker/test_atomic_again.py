"""An atomic run that the database undid is run again from its beginning, without spending a retry."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.db.models import F, Q

from django_jobs import Limit, job, submit
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits
from django_jobs.models import Attempt, Job, LimitStart
from django_jobs.testing import advance_time
from django_jobs.worker.executor import AGAIN
from tests.support.effects.models import Effect
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
DEADLOCK = OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite there is one writer, so nobody waits for anybody
@pytest.mark.slow
def test_two_atomic_handlers_that_deadlock_both_complete_without_a_retry(bench: Bench) -> None:
    for row in (1, 2):
        Effect.objects.create(job_id=f"row-{row}", fence=0, kind="row", at="2026-01-01T00:00Z")
    both_hold_one = threading.Barrier(2)
    starts: Counter[str] = Counter()

    def lock_both(context: Any, payload: dict[str, Any]) -> None:
        starts[context.job_id] += 1
        for place, row in enumerate(payload["rows"]):
            Effect.objects.filter(job_id=f"row-{row}").update(fence=F("fence") + 1)
            if place == 0 and starts[context.job_id] == 1:
                both_hold_one.wait(60)

    bench.handle("t.lock", lock_both, takes_context=True, atomic=True, max_retries=0)
    jobs = [bench.submit("t.lock", {"rows": rows}, job_id=f"job-{rows[0]}") for rows in ([1, 2], [2, 1])]
    assert bench.run(*jobs, threads=2, timeout=60) == ["completed", "completed"]
    assert [*Job.objects.values_list("retry_count", "crash_count")] == [(0, 0), (0, 0)]
    assert [*Effect.objects.values_list("fence", flat=True)] == [2, 2], "each job has counted each row once"
    undone = Attempt.objects.filter(outcome="released", error__contains="undid its transaction")
    assert undone.count() == Attempt.objects.count() == sum(starts.values()) - 2 >= 1


@pytest.mark.slow
def test_a_transaction_that_is_always_undone_fails_in_the_end(bench: Bench) -> None:
    starts = []

    def refuse(payload: dict[str, Any]) -> None:
        starts.append(1)
        raise DEADLOCK

    bench.handle("t.refused", refuse, atomic=True, max_retries=0)
    assert bench.run(bench.submit("t.refused"), timeout=60) == ["dead"]
    assert len(starts) == AGAIN + 1
    assert Counter(Attempt.objects.values_list("outcome", flat=True)) == {"released": AGAIN, "failed": 1}


@pytest.fixture
def forgotten() -> Iterator[None]:
    yield
    registry.forget("t.rated")
    active_limits.forget_queues()


@pytest.mark.usefixtures("forgotten")
def test_a_run_that_a_rate_counts_waits_for_its_next_start(bench: Bench) -> None:
    starts = []

    @job("t.rated", limit=Limit(rate="1/h"), atomic=True, max_retries=0)
    def undone_once(payload: dict[str, Any]) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise DEADLOCK

    one = submit("t.rated")
    process = bench.start()
    waits = Q(pending_limits__gt=0, status="pending")
    wait_until(
        lambda: starts and Job.objects.filter(waits | Q(status="completed")).exists(), 60, "it waits for its rate"
    )
    row = Job.objects.get()
    assert (row.status, row.retry_count, row.crash_count, len(starts)) == ("pending", 0, 0, 1)
    attempt = Attempt.objects.get()
    assert attempt.outcome == "released"
    assert "undid its transaction" in attempt.error
    assert LimitStart.objects.count() == 1
    process.stop(grace=10)
    advance_time(timedelta(hours=1))
    assert bench.run(one) == ["completed"]
    assert (len(starts), LimitStart.objects.count(), Attempt.objects.count()) == (2, 2, 1)


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite nobody can take it away while its transaction is open
def test_a_run_that_was_taken_away_is_not_run_again(bench: Bench) -> None:
    starts = []

    def lose(context: Any, payload: dict[str, Any]) -> None:
        starts.append(1)
        run_in_threads(lambda: Job.objects.filter(pk=context.job_id).update(fence=5, worker_id="other"))
        raise DEADLOCK

    bench.handle("t.lost", lose, takes_context=True, atomic=True, max_retries=0)
    bench.submit("t.lost", job_id="lost")
    bench.handle("t.next", lambda payload: 1)
    assert bench.run(bench.submit("t.next")) == ["completed"]
    row = Job.objects.get(pk="lost")
    assert (row.status, row.fence, len(starts)) == ("running", 5, 1)
    assert not Attempt.objects.exists()
