"""SIGKILLs beside a batch: members that add members, and nested batches; each callback once, and none before its time."""

from collections import Counter

import pytest

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Batch, BatchMember, Job, OpenMember
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import SETTINGS, keep_killing, open_jobs

pytestmark = pytest.mark.django_db(transaction=True)


def run_storm(members: int, nested: int, lasts: float, patience: float) -> None:
    """Kill a worker process every half second while a batch of `members` jobs, and `nested` batches in it, are run."""
    last = NewJob("effects.record", {"kind": "outer"}, priority=10)
    with django_jobs.batch("storm", on_finish=last, on_success=last) as outer:
        for start in range(0, members, 5000):
            kinds = ("effects.record", "effects.record_atomic", "effects.sleep")
            outer.submit_many(
                NewJob(kinds[number % 3], {"seconds": 0.002}) for number in range(start, min(start + 5000, members))
            )
        for _ in range(nested):
            with outer.batch(on_finish=NewJob("effects.record", {"kind": "inner"}, priority=10)) as inner:
                inner.submit_many([NewJob("effects.record"), NewJob("effects.record_atomic")])
    with spawn_workers("--processes", "4", "--threads", "2", settings=SETTINGS) as workers:
        workers.wait_ready(timeout=60)
        keep_killing(workers, every=0.5, lasts=lasts, as_long_as=open_jobs)
        wait_until(lambda: open_jobs() == 0, patience, "the end of all jobs")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(output=workers.output())
    assert not Batch.objects.exclude(status="completed").exists()
    callbacks = Job.objects.filter(membership=None)
    told = Counter(payload["kind"] for payload in callbacks.values_list("payload", flat=True))
    assert told == Counter(outer=2, inner=nested)
    assert (OpenMember.objects.count(), BatchMember.objects.exclude(bad_end="").count()) == (0, 0)
    assert BatchMember.objects.count() == members + 2 * nested
    first_end = Effect.objects.filter(kind="outer").order_by("pk").values_list("pk", flat=True)[0]
    late = Effect.objects.filter(pk__gt=first_end).exclude(kind__in=("outer", "inner"))
    assert not late.exists(), "nothing starts after the callback but callbacks"


@pytest.mark.slow
def test_a_short_storm_beside_a_batch() -> None:
    run_storm(members=200, nested=10, lasts=2, patience=90)


@pytest.mark.fault
def test_a_storm_beside_ten_thousand_members() -> None:
    run_storm(members=10_000, nested=200, lasts=30, patience=300)


@pytest.mark.load
def test_a_storm_beside_a_hundred_thousand_members() -> None:
    run_storm(members=100_000, nested=1000, lasts=60, patience=1800)
