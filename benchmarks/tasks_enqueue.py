"""What an enqueue through Django's tasks costs beside a bare `submit()`: the ratio, in turns on one database.

    python benchmarks/tasks_enqueue.py [sqlite:///path | postgresql://… | mysql://…] [--number 3000]

The database is created and dropped. The promise is a ratio of at most 1.15; the exit code says whether it held.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import django
from django.conf import settings

from testproject.database import database_from_url

ALLOWED = 1.15
WARM_UP = 100


def cost(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes, in a transaction of its own."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Measure call by call in turns, so that the machine's moods fall on both; compare the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="default: a SQLite file in a temporary directory")
    parser.add_argument("--number", type=int, default=3000, help="of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = options.url or f"sqlite:///{directory}/enqueue.sqlite3"
        settings.configure(
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_jobs"],
            DATABASES={"default": database_from_url(url)},
            TASKS={"default": {"BACKEND": "django_jobs.backends.JobsBackend"}},
            USE_TZ=True,
        )
        django.setup()
        from tests.support.databases import created_database

        with created_database(url):
            return measure(options.number)


def measure(number: int) -> int:
    """Print both costs and their ratio."""
    from benchmarks.tasks_work import as_job, as_task
    from django_jobs.models import Job

    payload = {"args": [7], "kwargs": {"text": "hello", "numbers": [1, 2, 3]}}
    works = {
        "submit": lambda: as_job.submit(payload),
        "enqueue": lambda: as_task.enqueue(7, text="hello", numbers=[1, 2, 3]),
    }
    costs: dict[str, list[float]] = {name: [] for name in works}
    for index in range(number + WARM_UP):
        for name in sorted(works, reverse=index % 2 == 1):  # neither always comes first
            seconds = cost(works[name])
            if index >= WARM_UP:
                costs[name].append(seconds)
    Job.objects.all().delete()
    medians = {name: statistics.median(times) for name, times in costs.items()}
    ratio = medians["enqueue"] / medians["submit"]
    print(
        f"submit {medians['submit'] * 1e6:.0f} µs, enqueue {medians['enqueue'] * 1e6:.0f} µs, ratio {ratio:.3f}"
        f" (allowed {ALLOWED})"
    )
    return 0 if ratio <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
