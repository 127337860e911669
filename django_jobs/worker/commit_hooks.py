"""What an atomic handler passed to `transaction.on_commit`. It is called after the commit, when the job is completed already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.lifecycle.settle import note_error_after_commit

logger = logging.getLogger("django_jobs")


class CommitHooks:
    """The functions that one run passes to `on_commit`, from the making of this object on.

    An error in one of them can fail nothing any more: it is logged, and noted in the completed job. As Django does, the later
    ones are not called then; those that were passed with `robust=True` are, and so are our own, which wake other workers.
    """

    def __init__(self, jobs: Sequence[ClaimedJob], connection: BaseDatabaseWrapper) -> None:
        self._jobs = jobs
        self._error: BaseException | None = None
        self._connection = connection
        self._first = len(connection.run_on_commit)

    def guard(self) -> None:
        """Let an error in one of them go no further; called when the handler has returned."""
        hooks: list[Any] = self._connection.run_on_commit  # (savepoints, function, robust); the stubs know two of these
        hooks[self._first :] = [
            (savepoints, call if robust else self._guarded(call), robust)
            for savepoints, call, robust in hooks[self._first :]
        ]

    def _guarded(self, call: Callable[[], object]) -> Callable[[], None]:
        def guarded() -> None:
            if self._error is not None:
                return
            try:
                call()
            except BaseException as error:  # as in a handler: SystemExit too
                self._error = error
                self._report(error)

        return guarded

    def _report(self, error: BaseException) -> None:
        for job in self._jobs:
            self._report_of(job, error)

    def _report_of(self, job: ClaimedJob, error: BaseException) -> None:
        logger.error(
            "job %s (%s) is completed, but what its handler passed to on_commit failed: %r",
            job.id,
            job.job_type,
            error,
            exc_info=error,
            extra={"job_id": job.id, "job_type": job.job_type, "queue": job.queue, "retry_count": job.retry_count},
        )
        try:
            note_error_after_commit(job, error)
        except DatabaseError:
            logger.exception("this could not be noted in job %s", job.id)
