"""The verbs that keep the tables in order: check, encrypt, prune."""

from __future__ import annotations

from typing import Any

from django.core.checks import Error
from django.core.management.base import CommandError
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from django_jobs.checks import check_encryption
from django_jobs.lifecycle.encrypt import encrypt_stored
from django_jobs.lifecycle.prune import prune
from django_jobs.models import DependencyState, Job, JobDependency, JobStatus

from .output import Output
from .verbs import EACH, Verbs

MOST_SHOWN = 20


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    verbs.add("check", check, "recount what jobs wait for; exit code 1 when a count is wrong", over=EACH)
    verbs.add(
        "encrypt", encrypt,
        "encrypt what is stored with the first secret key: what older keys encrypted, and what is to be encrypted now",
        over=EACH,
    )  # fmt: skip
    verbs.add(
        "prune", prune_jobs, "delete finished jobs past the RETENTION setting", "prune --yes", asks=True, over=EACH
    )


def check(options: dict[str, Any], out: Output) -> None:
    """Compare each job's count of open dependencies with its open edges."""
    edges = JobDependency.objects.filter(state=DependencyState.OPEN)
    own = edges.filter(job_id=OuterRef("pk"))
    count = own.order_by().values("job_id").annotate(number=Count("pk")).values("number")
    jobs = Job.objects.filter(Q(pending_dependencies__gt=0) | Exists(own)).annotate(open=Coalesce(Subquery(count), 0))
    wrong = jobs.exclude(pending_dependencies=F("open")).order_by("pk")
    late = edges.filter(depends_on__status=JobStatus.COMPLETED).order_by("pk")
    problems = [
        f"job {job_id!r} counts {counted} open dependencies and has {number}"
        for job_id, counted, number in wrong.values_list("pk", "pending_dependencies", "open").iterator()
    ]
    problems += [
        f"job {job_id!r} still waits for {depends_on!r}, which is completed"
        for job_id, depends_on in late.values_list("job_id", "depends_on_id").iterator()
    ]
    out.result(f"{len(problems)} differences", differences=len(problems))
    if problems:
        raise CommandError("\n".join(problems[:MOST_SHOWN]))


def encrypt(options: dict[str, Any], out: Output) -> None:
    """Encrypt what is stored anew."""
    for problem in check_encryption():
        if isinstance(problem, Error):
            raise CommandError(f"{problem.msg} {problem.hint}")
    brought = encrypt_stored()
    out.result(f"{brought.changed} rows written anew", **brought._asdict())
    if brought.unreadable:
        raise CommandError(f"{brought.unreadable} rows cannot be read with the keys of this site")
    if brought.locked:
        raise CommandError(f"{brought.locked} rows were locked by somebody else; run this again")


def prune_jobs(options: dict[str, Any], out: Output) -> None:
    """Delete the jobs past their retention."""
    out.confirm("This deletes every finished job past its retention.")
    deleted = prune()
    out.result(f"{deleted} jobs deleted", deleted=deleted)
