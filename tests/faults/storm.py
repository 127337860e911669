"""A kill storm: many jobs, several worker processes, and SIGKILLs of random ones; and what came of it, as figures."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

from django_jobs import NewJob, submit_many
from django_jobs.models import Attempt, Job
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.proc import children
from tests.support.processes import Workers, spawn_workers
from tests.support.waiting import wait_until

SETTINGS = {"LEASE_SECONDS": 4, "BASE_DELAY": 0.05, "MAX_DELAY": 0.2}


@dataclass(frozen=True)
class Figures:
    """What a storm did. `in_flight` are the runs that a kill ended, `duplicates` the starts beyond the first."""

    jobs: int
    kills: int
    lost: int
    in_flight: int
    duplicates: int
    atomic_jobs: int
    atomic_effects: int
    open_at_last_kill: int
    seconds_after_last_kill: float

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def submit_storm(count: int, seconds: float = 0.005) -> list[str]:
    """Submit `count` jobs: a fifth atomic, a tenth with three dependencies each; return their ids."""
    jobs = [
        NewJob(
            "effects.record_atomic" if number % 5 == 0 else "effects.sleep",
            {"seconds": seconds},
            job_id=f"storm-{number}",
            depends_on=[f"storm-{number - back}" for back in (1, 2, 3)] if number % 10 == 9 else [],
        )
        for number in range(count)
    ]
    return [job.pk for job in submit_many(jobs)]


def open_jobs() -> int:
    """Return how many jobs are not finished."""
    return Job.objects.live().count()


def kill_a_child(workers: Workers) -> bool:
    """SIGKILL a random child of the supervisor; return False when there is none, or it has just ended."""
    living = children(workers.pid)
    if not living:
        return False
    try:
        os.kill(random.choice(living), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def keep_killing(
    workers: Workers, *, every: float, lasts: float, as_long_as: Callable[[], object] = lambda: True
) -> int:
    """Kill a child every so many seconds, for `lasts` seconds at most; return how many were killed."""
    kills, end = 0, time.monotonic() + lasts
    while time.monotonic() < end and as_long_as():
        time.sleep(every)  # the storm's own rhythm
        kills += kill_a_child(workers)
    return kills


def run_storm(
    *, jobs: int, processes: int, threads: int, every: float, lasts: float, patience: float, job_seconds: float = 0.005
) -> Figures:
    """Kill a random child of the supervisor every `every` seconds for `lasts` seconds, then wait until all is done.

    Raises AssertionError when an invariant is broken, or when jobs are open `patience` seconds after the last kill.
    """
    submitted = submit_storm(jobs, job_seconds)
    with spawn_workers("--processes", str(processes), "--threads", str(threads), settings=SETTINGS) as workers:
        workers.wait_ready(timeout=60)
        kills = keep_killing(workers, every=every, lasts=lasts)
        last_kill = time.monotonic()
        open_then = open_jobs()
        wait_until(lambda: open_jobs() == 0, patience, "the end of all jobs")
        after = time.monotonic() - last_kill
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(submitted, output=workers.output())
    assert Job.objects.exclude(status="completed").count() == 0, "nothing but SIGKILL happened to these jobs"
    atomic = Job.objects.filter(job_type="effects.record_atomic").values_list("pk", flat=True)
    starts = Counter(Effect.objects.exclude(job_id__in=list(atomic)).values_list("job_id", flat=True))
    return Figures(
        jobs=jobs,
        kills=kills,
        lost=jobs - Job.objects.filter(status="completed").count(),
        in_flight=Attempt.objects.filter(outcome="crashed").count(),
        duplicates=sum(starts.values()) - len(starts),
        atomic_jobs=len(atomic),
        atomic_effects=Effect.objects.filter(job_id__in=list(atomic)).count(),
        open_at_last_kill=open_then,
        seconds_after_last_kill=round(after, 1),
    )
