"""Fair keys over several processes: no key that waits is passed over for more than two rounds, by the records of the handlers."""

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


def most_between(*, keys: int, of_each: int, processes: int, seconds: float, patience: float) -> str:
    """Run so many jobs of each key in several processes; return how many starts lay between two of one key at most.

    The jobs of a key are submitted together, and one key's after the other's. Raises AssertionError where a key had to wait for
    longer than FAIR rounds.
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
    key_of = dict(Job.objects.values_list("pk", "fair_key"))
    order = [key_of[job_id] for job_id in Effect.objects.order_by("at", "id").values_list("job_id", flat=True)]
    assert len(order) == len(new)
    last: dict[str, int] = {}
    between: list[int] = []
    for place, key in enumerate(order):
        between.append(place - last.get(key, -1) - 1)
        last[key] = place
    took_part = len(set(Job.objects.values_list("worker_id", flat=True)))
    figures = (
        f"{took_part} processes, {len(new)} jobs of {keys} keys: at most {max(between)} starts between two of a key"
    )
    assert took_part == processes, figures
    assert max(between) <= FAIR * keys, figures
    return figures


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_keys_take_turns_over_processes(database: Database) -> None:
    print(f"\n{database.vendor}: {most_between(keys=150, of_each=6, processes=2, seconds=0.01, patience=90)}")


@pytest.mark.fault
def test_a_thousand_keys_take_turns_over_processes(database: Database) -> None:
    print(f"\n{database.vendor}: {most_between(keys=1_000, of_each=10, processes=4, seconds=0.002, patience=240)}")
