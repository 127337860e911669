"""What an edge costs: settle chains, fan-ins and fan-outs of growing size, and jobs without dependents beside them.

    DATABASE_URL=postgresql://… python -m benchmarks.graph [--sizes 1000,10000]

One thread claims and settles through the library's own moves, without handlers; the database is the one of the test project
and is emptied of jobs. Prints microseconds per job for each shape and size: flat cost per edge means equal columns.
"""

import argparse
import os
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")

import django

django.setup()

# ruff: noqa: E402  models are imported once Django is set up
from django.core.management import call_command

import django_jobs
from django_jobs import NewJob
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Completed
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Job, JobDependency, WorkerProcess

TYPE = "bench.node"
PROCESS = "bench"


@django_jobs.job(TYPE)
def node(payload: dict[str, object]) -> None:
    """Do nothing."""


def plain(size: int) -> list[NewJob]:
    return [NewJob(TYPE, job_id=f"n{number}") for number in range(size)]


def chain(size: int) -> list[NewJob]:
    return [NewJob(TYPE, job_id=f"n{n}", depends_on=[f"n{n - 1}"] if n else None) for n in range(size)]


def fan_in(size: int) -> list[NewJob]:
    return [*plain(size), NewJob(TYPE, job_id="last", depends_on=[f"n{number}" for number in range(size)])]


def fan_out(size: int) -> list[NewJob]:
    return [NewJob(TYPE, job_id="first"), *(NewJob(TYPE, job_id=f"n{n}", depends_on=["first"]) for n in range(size))]


def measure(jobs: list[NewJob]) -> float:
    """Return the seconds to claim and settle all of the jobs."""
    JobDependency.objects.all().delete()
    Job.objects.all().delete()
    WorkerProcess.objects.all().delete()
    processes.register(PROCESS, queues=[], threads=1)
    django_jobs.submit_many(jobs)
    started, done = time.perf_counter(), 0
    while batch := claim("default", 128, PROCESS):
        lost = settle([Completed(job.id, job.fence, None) for job in batch], [], PROCESS)
        assert not lost
        done += len(batch)
        if done % 1000 < len(batch):
            processes.beat(PROCESS)
    assert done == len(jobs), (done, len(jobs))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    call_command("migrate", verbosity=0)
    print("shape".ljust(10), *(f"{size:>8}" for size in sizes), " µs per job")
    for shape in (plain, fan_in, fan_out, chain):
        costs = [measure(shape(size)) / size * 1e6 for size in sizes]
        print(shape.__name__.ljust(10), *(f"{cost:8.0f}" for cost in costs))


if __name__ == "__main__":
    main()
