"""django-tasks-db: `manage.py db_worker`, one task at a time per process (it has no concurrency option).

`--no-startup-delay` and `--interval 0.1` (default 1 s, which would only make its idle pickup slower) and persistent
connections. It has no bulk call: tasks are enqueued one by one in one transaction.
"""

from collections.abc import Callable

from benchmarks.peers.django_peer import DjangoPeer


class Adapter(DjangoPeer):
    name = "django-tasks-db"
    packages = ("django-tasks-db", "Django")
    stores = ("postgresql", "sqlite", "mariadb")
    settings = "db_worker --interval 0.1 --no-startup-delay, CONN_MAX_AGE=None"
    bulk = "one by one in one transaction: it has no bulk call"

    def submit(self, job: str, count: int) -> None:
        from django.db import transaction

        task = self.task(job)
        with transaction.atomic():
            for _ in range(count):
                task.enqueue()

    def submitter(self, job: str) -> Callable[[int], object]:
        task = self.task(job)
        return task.enqueue if job == "stamp" else lambda number: task.enqueue()

    def commands(self, processes: int) -> list[list[str]]:
        return [self.manage("db_worker", "--interval", "0.1", "--no-startup-delay", "--no-reload")] * processes

    def remaining(self) -> int:
        return self.count("django_tasks_database_dbtaskresult", "status IN ('READY', 'RUNNING')")
