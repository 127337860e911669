"""Delete: an operator removes finished jobs before their time, or discards jobs that wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django_jobs.db.transactions import transactional
from django_jobs.models import Job
from django_jobs.models.job import TERMINAL, WAITING

from .cancel import cancel_some
from .moved import Moved, key_chunks, lock_jobs
from .prune import delete_ended, may_go


def delete_finished(ids: Iterable[str]) -> Moved:
    """Delete jobs that are finished, with their attempts, dead letters and steps.

    Others are left, and so are those that something still needs: an open dead letter, a live dependent, a batch that goes on.
    """
    return sum((_delete_finished(chunk) for chunk in key_chunks(ids)), Moved([], {}))


@transactional
def _delete_finished(ids: Sequence[str]) -> Moved:
    jobs = lock_jobs(ids)
    done = _delete([job.pk for job in jobs.values() if job.status in TERMINAL])
    return Moved.of(ids, jobs, done, " and not to be deleted: it is not finished, or something still needs it")


def discard(ids: Iterable[str]) -> Moved:
    """Cancel jobs that wait, and delete them; running and finished ones are left.

    One that something still needs, such as its batch, stays as a cancelled job.
    """
    return sum((_discard(chunk) for chunk in key_chunks(ids)), Moved([], {}))


@transactional
def _discard(ids: Sequence[str]) -> Moved:
    jobs = lock_jobs(ids)
    waiting = cancel_some(job.pk for job in jobs.values() if job.status in WAITING).done
    _delete(waiting)
    return Moved.of(ids, jobs, waiting, "; only a waiting job can be discarded")


def _delete(ids: Sequence[str]) -> list[str]:
    return delete_ended(list(may_go(Job.objects.filter(pk__in=ids)).values_list("pk", flat=True)))
