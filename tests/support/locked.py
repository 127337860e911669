"""Rows that the site has locked in a long transaction of its own."""

import threading

from django.db import connections, transaction

from django_jobs.models import Job


class Locked:
    """Hold the locks of jobs' rows in a thread of its own, until the block ends."""

    def __init__(self, *job_ids: str) -> None:
        self._held, self._release = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=job_ids, daemon=True)

    def _hold(self, *job_ids: str) -> None:
        with transaction.atomic():
            locked = Job.objects.select_for_update().filter(pk__in=job_ids).order_by("pk")
            assert [one.pk for one in locked] == sorted(job_ids)
            self._held.set()
            self._release.wait(60)
        connections.close_all()

    def __enter__(self) -> None:
        self._thread.start()
        assert self._held.wait(60)

    def __exit__(self, *error: object) -> None:
        self._release.set()
        self._thread.join(60)
