"""A row that the site has locked in a long transaction of its own."""

import threading

from django.db import connections, transaction

from django_jobs.models import Job


class Locked:
    """Hold the lock of a job's row in a thread of its own, until the block ends."""

    def __init__(self, job_id: str) -> None:
        self._held, self._release = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(job_id,), daemon=True)

    def _hold(self, job_id: str) -> None:
        with transaction.atomic():
            Job.objects.select_for_update().get(pk=job_id)
            self._held.set()
            self._release.wait(60)
        connections.close_all()

    def __enter__(self) -> None:
        self._thread.start()
        assert self._held.wait(60)

    def __exit__(self, *error: object) -> None:
        self._release.set()
        self._thread.join(60)
