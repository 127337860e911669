"""A job whose type this process does not know: left to another site or deploy for a while, then ended with a dead letter."""

from __future__ import annotations

import logging

from django.db.models import Q, Subquery
from django.db.models.functions import Coalesce

from django_jobs.conf import get_settings
from django_jobs.models import Attempt, AttemptOutcome, Schedule, WorkerProcess
from django_jobs.models.fields import DbNow

from .claim import ClaimedJob
from .outcome import Outcome

logger = logging.getLogger("django_jobs")

GRACE_BESIDE_OTHERS = 3600.0
SHORTEST_DELAY, LONGEST_DELAY = 1.0, 60.0
LEFT = "left to another deploy"


def without_handler(job: ClaimedJob, problem: str) -> Outcome:
    """Return the outcome of a claimed job whose type has no handler here: it waits again, or has waited long enough and fails.

    Each time it waits half as long as it has waited so far, from 1 to 60 seconds: short enough for a worker that knows the type,
    seldom enough for a type that nobody knows.
    """
    grace = grace_seconds()
    waited = _seconds_waited(job.id) if grace else 0.0
    if waited >= grace:
        return Outcome.no_handler(job, problem)
    logger.info("job %s is left to another deploy: %s", job.id, problem)
    return leave(job, problem, min(LONGEST_DELAY, max(SHORTEST_DELAY, waited / 2)))


def leave(job: ClaimedJob, problem: str, delay: float = SHORTEST_DELAY) -> Outcome:
    """Return the outcome of a job that is left to a process that knows its type."""
    return Outcome.released(job, f"{LEFT}: {problem}", delay)


def grace_seconds() -> float:
    """Return how long a job of an unknown type is left to others: the setting, else an hour where there is another site."""
    grace = get_settings().UNKNOWN_TYPE_GRACE_SECONDS
    if grace is not None:
        return grace
    others = WorkerProcess.objects.of_other_sites().exists() or Schedule.objects.declared_elsewhere().exists()
    return GRACE_BESIDE_OTHERS if others else 0.0


def _seconds_waited(job_id: str) -> float:
    """Return the seconds since the job was left for the first time after its last real attempt, 0 when it never was."""
    attempts = Attempt.objects.filter(job_id=job_id)
    left = Q(outcome=AttemptOutcome.RELEASED, error__startswith=LEFT)
    last_real = attempts.exclude(left).order_by("-pk").values("pk")[:1]
    first = (
        attempts.filter(left, pk__gt=Coalesce(Subquery(last_real), 0))
        .order_by("pk")
        .values_list("ended_at", DbNow())
        .first()
    )
    return 0.0 if first is None else max(0.0, (first[1] - first[0]).total_seconds())
