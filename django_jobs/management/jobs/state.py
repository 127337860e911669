"""The verb check: whether what the rows say of each other is true."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import DependencyState, JobDependency, JobStatus
from django_jobs.transfer import all_jobs

from .output import Output
from .verbs import Verbs

MOST_SHOWN = 20


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verbs.add("check", check, "recount what jobs wait for; exit code 1 when a count is wrong")


def check(options: dict[str, Any], out: Output) -> None:
    """Compare each job's count of open dependencies with its open edges."""
    edges = JobDependency.objects.using(jobs_alias()).filter(state=DependencyState.OPEN)
    own = edges.filter(job_id=OuterRef("pk"))
    count = own.order_by().values("job_id").annotate(number=Count("pk")).values("number")
    jobs = all_jobs().filter(Q(pending_dependencies__gt=0) | Exists(own)).annotate(open=Coalesce(Subquery(count), 0))
    wrong = jobs.exclude(pending_dependencies=F("open")).order_by("pk")
    late = edges.filter(depends_on__status=JobStatus.COMPLETED).order_by("pk")
    problems = [
        f"job {pk!r} counts {counted} open dependencies and has {number}"
        for pk, counted, number in wrong.values_list("pk", "pending_dependencies", "open").iterator()
    ]
    problems += [f"job {job!r} still waits for {on!r}, which is completed" for job, on in
                 late.values_list("job_id", "depends_on_id").iterator()]  # fmt: skip
    if out.as_json:
        out.json({"differences": len(problems)})
    else:
        out.line(f"{len(problems)} differences")
    if problems:
        raise CommandError("\n".join(problems[:MOST_SHOWN]))
