"""django_jobs: `manage.py runworkers --threads N`, one worker command per process, default settings.

No-op jobs run in 2 threads (measured 1, 2, 3, 4 and 8: while one waits for the database, another runs jobs; more take turns);
I/O jobs in one thread for each job at a time, coroutines with ASYNC_CONCURRENCY at that number and the same 2 threads. Bulk
submit is `submit_many`.
"""

import os
from collections.abc import Callable

from benchmarks.peers.django_peer import DjangoPeer

THREADS = os.environ.get("BENCH_DJANGO_JOBS_THREADS", "2")


class Adapter(DjangoPeer):
    name = "django_jobs"
    packages = ("Django",)
    stores = ("postgresql", "sqlite", "mariadb")
    settings = f"runworkers --threads {THREADS}, else default settings, CONN_MAX_AGE=None"
    bulk = "submit_many"

    def submit(self, job: str, count: int) -> None:
        from django_jobs import NewJob, submit_many

        for start in range(0, count, 10_000):
            submit_many([NewJob(f"bench.{job}", {}) for _ in range(min(10_000, count - start))])

    def submitter(self, job: str) -> Callable[[int], object]:
        from django_jobs import submit

        return lambda number: submit(f"bench.{job}", {"number": number})

    def commands(self, processes: int) -> list[list[str]]:
        threads = str(self.concurrency) if self.load == "io" else THREADS
        return [self.manage("runworkers", "--threads", threads)] * processes

    def remaining(self) -> int:
        return self.count("django_jobs_job", "status IN ('pending', 'scheduled', 'running')")

    def versions(self) -> dict[str, str]:
        import django_jobs

        return super().versions() | {"django_jobs": str(getattr(django_jobs, "__version__", "this checkout"))}
