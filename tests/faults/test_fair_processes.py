"""Fair keys over several processes: no key that waits is passed over for more than two rounds, by the order of the claims.

By that of the handlers the bound is one on the machine as well: what a process has claimed waits where it gets no processor.
After a while it hands that back, which costs its keys the turn; they are left out. With few processes and slow jobs both hold.
"""

import pytest

from django_jobs import NewJob, submit_many
from django_jobs.models import Job
from tests.support.databases import Database
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
FAIR = 2  # rounds
CLAIMED_ONCE = 2  # the fence of a job that was claimed and settled, and not handed back in between


def most_between(*, keys: int, of_each: int, processes: int, seconds: float, patience: float) -> tuple[int, str]:
    """Run so many jobs of each key in several processes; return how many others started between two of one key at most.

    The jobs of a key are submitted together, and one key's after the other's. Raises AssertionError where a key had to wait for
    longer than FAIR rounds by the order of the claims. Returns the figures in words, too.
    """
    new = [
        NewJob("effects.sleep", {"seconds": seconds}, fair_key=f"tenant-{key}")
        for key in range(keys)
        for _ in range(of_each)
    ]
    for start in range(0, len(new), 1_000):
        submit_many(new[start : start + 1_000])
    with spawn_workers("--processes", str(processes), "--threads", "4") as workers:
        workers.wait_ready(timeout=60)
        wait_until(lambda: not Job.objects.live().exists(), patience, "the end of all jobs")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(output=workers.output())
    claimed = list(Job.objects.order_by("started_at", "pk").values_list("pk", "fair_key"))
    key_of, started = dict(claimed), list(Effect.objects.order_by("at", "id").values_list("job_id", flat=True))
    assert len(started) == len(claimed) == len(new)
    handed_back = set(Job.objects.filter(fence__gt=CLAIMED_ONCE).values_list("fair_key", flat=True))
    most = _most_between([key for _, key in claimed], handed_back)
    most_started = _most_between([key_of[job_id] for job_id in started], set())
    took_part = len(set(Job.objects.values_list("worker_id", flat=True)))
    figures = (
        f"{took_part} processes, {len(new)} jobs of {keys} keys: at most {most} claims and {most_started} starts between two"
        f" of a key; jobs of {len(handed_back)} keys were handed back"
    )
    assert len(handed_back) < keys, figures
    assert took_part == processes, figures
    assert most <= FAIR * keys, figures
    return most_started, figures


def _most_between(order: list[str | None], besides: set[str | None]) -> int:
    """Return how many others come between two of one key at most, or before its first; `besides` are not looked at."""
    last: dict[str | None, int] = {}
    between = [0]
    for place, key in enumerate(order):
        if key not in besides:
            between.append(place - last.get(key, -1) - 1)
        last[key] = place
    return max(between)


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_keys_take_turns_over_processes(database: Database) -> None:
    most_started, figures = most_between(keys=150, of_each=6, processes=2, seconds=0.01, patience=90)
    print(f"\n{database.vendor}: {figures}")
    assert most_started <= FAIR * 150, figures


@pytest.mark.fault
def test_a_thousand_keys_take_turns_over_processes(database: Database) -> None:
    _, figures = most_between(keys=1_000, of_each=10, processes=4, seconds=0.002, patience=240)
    print(f"\n{database.vendor}: {figures}")
