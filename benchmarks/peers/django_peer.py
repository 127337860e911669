"""What the adapters of Django queues share: tables by `migrate`, commands by `python -m django`."""

import os
from abc import ABC
from typing import Any

from benchmarks.peer import Peer, module

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.djangosite.settings"  # for this process and its workers


class DjangoPeer(Peer, ABC):
    """A queue that lives in a Django site's database; connections are persistent (CONN_MAX_AGE=None)."""

    def prepare(self) -> None:
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0, run_syncdb=True)

    def connect(self) -> None:
        import django

        django.setup()

    def manage(self, *arguments: str) -> list[str]:
        """Return the command line of a management command."""
        return module("django", *arguments)

    def count(self, table: str, condition: str) -> int:
        """Return the rows of `table` for which `condition` holds."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {table} WHERE {condition}")
            return int(cursor.fetchone()[0])

    @staticmethod
    def task(job: str) -> Any:
        """Return the benchmark's `django.tasks` task of that name."""
        from benchmarks.djangosite import tasks

        return getattr(tasks, job)
