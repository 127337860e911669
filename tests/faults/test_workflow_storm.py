"""SIGKILLs of random worker processes under workflows: effects of atomic steps once, no recorded step again, all completed."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from django.db import connection
from django.db.models import F

from django_jobs import NewJob, emit, submit_many
from django_jobs.models import Attempt, Event, Job, JobStep
from tests.support.databases import Database
from tests.support.effects.models import Effect
from tests.support.effects.workflows import ATOMIC
from tests.support.invariants import check_drained
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until

from .storm import SETTINGS, kill_a_child, open_jobs

STEPS = 6


Restart = Callable[[Workers], object]


def run_storm(
    *,
    workflows: int,
    processes: int,
    every: float,
    lasts: float,
    patience: float,
    sleep: float,
    restarts: Sequence[Restart] = (),
) -> str:
    """Kill a random worker process now and then while workflows run; return figures.

    Args:
        restarts: called one after the other in between, spread over `lasts` seconds: of a server, or of all workers.
    """
    payload = {"sleep": sleep, "rows": 50}
    ids = [job.pk for job in submit_many([NewJob("workflows.storm", payload) for _ in range(workflows)])]
    random.shuffle(ids)
    unsent, kills = list(ids), 0
    left = [(lasts * number / (len(restarts) + 1), restart) for number, restart in enumerate(restarts, 1)]
    with ExitStack() as stack:
        workers = stack.enter_context(_workers(processes))
        workers.wait_ready(timeout=60)
        began = next_kill = time.monotonic()
        while (now := time.monotonic()) < began + lasts or unsent or left:
            if left and now >= began + left[0][0]:
                left.pop(0)[1](workers)
                if not workers.is_running():
                    workers = stack.enter_context(_workers(processes))
            due = int(len(ids) * (now - began) / lasts)
            while unsent and len(ids) - len(unsent) < due:
                job_id = unsent.pop()
                emit("workflows.go", key=job_id, payload={"for": job_id})
            if now >= next_kill and now < began + lasts and kill_a_child(workers):
                next_kill = now + every
                kills += 1
            time.sleep(0.02)
        ended = time.monotonic()
        wait_until(lambda: open_jobs() == 0, patience, "the end of all workflows")
        after = time.monotonic() - ended
        wait_until(lambda: not Event.objects.filter(delivered_at=None).exists(), 60, "the last look at each event")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(ids, output=workers.output())
    assert [*_problems()] == []
    crashed = Attempt.objects.filter(outcome="crashed").count()
    plain = Effect.objects.filter(kind="step plain").count()
    figures = {
        "workflows": workflows,
        "kills": kills,
        "restarts": len(restarts),
        "runs that a kill ended": crashed,
        "plain steps twice": plain - workflows,
    }
    return json.dumps({**figures, "seconds after the last kill": round(after, 1)})


def _workers(processes: int) -> AbstractContextManager[Workers]:
    return spawn_workers("--processes", str(processes), "--threads", "4", settings=SETTINGS)


def _problems() -> Any:
    for job in Job.objects.exclude(status="completed")[:20]:
        yield f"{job.pk} is {job.status}: {job.error}"
    for job_id, result in Job.objects.values_list("pk", "result"):
        if result != {"for": job_id}:
            yield f"{job_id} got {result}"
    effects = Counter(Effect.objects.filter(kind__in=ATOMIC).values_list("job_id", "kind"))
    for job_id in Job.objects.values_list("pk", flat=True):
        for kind in ATOMIC:
            if effects[job_id, kind] != 1:
                yield f"{job_id} has {effects[job_id, kind]} effects of {kind}"
    for job_id, number in Counter(JobStep.objects.values_list("job_id", flat=True)).items():
        if number != STEPS:
            yield f"{job_id} has {number} records"
    recorded = dict(JobStep.objects.filter(name="plain").values_list("job_id", "ended_at"))
    for job_id, at in Effect.objects.filter(kind="step plain").values_list("job_id", "at"):
        if at > recorded[job_id]:
            yield f"{job_id} ran its plain step again after that was recorded"
    yield from (f"{step} has not ended" for step in JobStep.objects.filter(ended_at=None)[:20])
    yield from (
        f"{step} ended before its time" for step in JobStep.objects.filter(kind="sleep", ended_at__lt=F("due_at"))
    )
    yield from (f"{event} was not delivered" for event in Event.objects.filter(delivered_at=None)[:20])


@pytest.mark.django_db(transaction=True)
@pytest.mark.quick("postgresql", "mariadb")
@pytest.mark.slow
def test_a_short_storm_repeats_no_recorded_step() -> None:
    run_storm(workflows=60, processes=2, every=0.7, lasts=3, patience=90, sleep=0.3)


@pytest.mark.fault
@pytest.mark.django_db(transaction=True)
def test_a_full_storm_repeats_no_recorded_step(database: Database) -> None:
    print(f"\n{database.vendor}: {_full_storm()}")


@pytest.mark.fault
def test_a_full_storm_beside_two_restarts_of_the_server(private_server: PrivateServer) -> None:
    """The first in order, the second after a SIGKILL of the server."""

    def in_order(workers: Workers) -> None:
        private_server.restart()
        connection.close()

    def killed(workers: Workers) -> None:
        private_server.kill()
        time.sleep(2)  # the outage
        private_server.start()
        connection.close()

    print(f"\n{connection.vendor}: {_full_storm([in_order, killed])}")


@pytest.mark.fault
@pytest.mark.databases("sqlite")
@pytest.mark.django_db(transaction=True)
def test_a_full_storm_beside_two_kills_of_all_processes() -> None:
    """SQLite has no server: its processes, the supervisor too, die at the same moment."""
    print(f"\n{connection.vendor}: {_full_storm([Workers.kill, Workers.kill])}")


def _full_storm(restarts: Sequence[Restart] = ()) -> str:
    return run_storm(workflows=2_000, processes=4, every=0.5, lasts=60, patience=300, sleep=1, restarts=restarts)
