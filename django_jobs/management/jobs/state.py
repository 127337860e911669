"""Verbs that say whether all is well: check, health."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_jobs.lifecycle.figures import queue_figures
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import DependencyState, JobDependency, JobStatus, WorkerProcess
from django_jobs.transfer import all_jobs

from .output import Output
from .verbs import Verbs

MOST_SHOWN = 20


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    verbs.add("check", check, "recount what jobs wait for; exit code 1 when a count is wrong")
    parser = verbs.add(
        "health", health, "say whether workers live and keep up; exit code 1 when not", "health --max-wait 60"
    )
    parser.add_argument(
        "--max-wait", type=float, default=300.0, metavar="SECONDS",
        help="how long a ready job may wait in a queue that is not paused (default: 300)",
    )  # fmt: skip


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


def health(options: dict[str, Any], out: Output) -> None:
    """Look at what must be so while workers run."""
    now = timezone.now()
    workers = WorkerProcess.objects.using(jobs_alias()).alive().count()
    waits = {
        name: round((now - one.oldest).total_seconds(), 1)
        for name, one in queue_figures().items()
        if one.oldest is not None and one.paused_at is None
    }
    longest = max(waits.values(), default=0.0)
    problems = [] if workers else ["no worker process is alive"]
    problems += [
        f"queue {name!r}: a ready job has waited {seconds:g} s" for name, seconds in waits.items()
        if seconds > options["max_wait"]
    ]  # fmt: skip
    values = {"healthy": not problems, "workers": workers, "longest_wait_seconds": max(0.0, longest)}
    if out.as_json:
        out.json(values)
    else:
        out.line(f"{'healthy' if not problems else 'not healthy'}: {workers} workers, longest wait {longest:g} s")
    if problems:
        raise CommandError("\n".join(problems))
