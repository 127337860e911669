"""django-ox: `manage.py ox_worker --concurrency N`, its own `--processes`, and `enqueue_many` for bulk.

No-op jobs run with --concurrency 4 (measured here 1, 4, 8, 32); I/O jobs with one slot for each job at a time.
"""

from collections.abc import Callable

from benchmarks.peers.django_peer import DjangoPeer


class Adapter(DjangoPeer):
    name = "django-ox"
    packages = ("django-ox", "Django")
    stores = ("postgresql", "sqlite", "mariadb")
    settings = "ox_worker --concurrency 4 --interval 0.1, CONN_MAX_AGE=None"
    bulk = "enqueue_many"

    def submit(self, job: str, count: int) -> None:
        from django_ox.bulk import enqueue_many

        enqueue_many(self.task(job), [((), {})] * count)

    def submitter(self, job: str) -> Callable[[int], object]:
        task = self.task(job)
        return task.enqueue if job == "stamp" else lambda number: task.enqueue()

    def commands(self, processes: int) -> list[list[str]]:
        slots = self.concurrency if self.load != "noop" else 4
        return [
            self.manage("ox_worker", "--concurrency", str(slots), "--interval", "0.1", "--verbosity", "0")
        ] * processes

    def remaining(self) -> int:
        return self.count("django_ox_oxtask", "status IN ('READY', 'RUNNING')")
