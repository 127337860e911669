"""What must hold in the rows after every fault, race or end-to-end test, as far as rows can tell."""

from collections import Counter
from collections.abc import Iterable, Iterator

from django.db import connection
from django.db.models import Count, F, Q

from django_jobs.models import Batch, BatchMember, DeadLetter, Job, JobDependency, OpenMember, ScheduleTick
from django_jobs.models.job import ENDED_BADLY, TERMINAL
from tests.support.effects.models import Effect

from .waiting import dump_rows


def check_invariants(submitted: Iterable[str] = (), rolled_back: Iterable[str] = (), output: str = "") -> None:
    """Raise an AssertionError that lists all that is broken.

    `submitted` are ids whose submit was acknowledged, `rolled_back` such whose transaction was rolled back; `output` is
    what workers wrote.
    """
    _report([*_lost(submitted, rolled_back), *_rows(), *_sessions(), *_traceback(output)])


def check_drained(submitted: Iterable[str] = (), rolled_back: Iterable[str] = (), output: str = "") -> None:
    """Check the invariants, and that nothing is left that should have run."""
    _report([*_lost(submitted, rolled_back), *_left_over(), *_rows(), *_sessions(), *_traceback(output)])


def _report(broken: list[str]) -> None:
    if broken:
        raise AssertionError("\n".join([f"{len(broken)} invariants are broken:", *broken[:50], dump_rows()]))


def _lost(submitted: Iterable[str], rolled_back: Iterable[str]) -> Iterator[str]:
    stored = set(Job.objects.values_list("id", flat=True))
    yield from (f"job {job_id} was acknowledged and is lost" for job_id in sorted(set(submitted) - stored))
    yield from (f"job {job_id} was rolled back and is there" for job_id in sorted(set(rolled_back) & stored))


def _left_over() -> Iterator[str]:
    for kind, jobs in (
        ("is still running", Job.objects.filter(status="running")),
        ("is ready and was not run", Job.objects.ready()),
        ("is due and was not run", Job.objects.due()),
        ("is held back and was not run", Job.objects.held_back()),
        ("has a slot and is finished", Job.objects.finished().filter(slots__isnull=False)),
    ):
        yield from (f"job {job.id} {kind}" for job in jobs)


def _rows() -> Iterator[str]:
    yield from _effects()
    yield from _dead_letters()
    yield from _dependencies()
    yield from _batches()
    ticks = (
        ScheduleTick.objects.filter(job__isnull=False).values("job").annotate(number=Count("id")).filter(number__gt=1)
    )
    yield from (f"job {tick['job']} was made by {tick['number']} ticks" for tick in ticks)


def _effects() -> Iterator[str]:
    """Compare the starts that the handlers of `tests.support.effects` wrote down with what the jobs' rows say."""
    fences: dict[str, list[int]] = {}
    # A workflow's steps are no starts, and neither is an end.
    starts_of_handlers = Effect.objects.exclude(kind__startswith="step").exclude(kind="end").order_by("id")
    for job_id, fence in starts_of_handlers.values_list("job_id", "fence"):
        fences.setdefault(job_id, []).append(fence)
    jobs = Job.objects.filter(job_type__startswith="effects.").annotate(tries=Count("attempts"))
    for job_id, job_type, status, fence, tries in jobs.values_list("id", "job_type", "status", "fence", "tries"):
        starts = fences.pop(job_id, [])
        if status == "completed" and not starts:
            yield f"job {job_id} is completed and has no effect"
        if job_type == "effects.record_atomic":
            if len(starts) != (status == "completed"):
                yield f"atomic job {job_id} is {status} and has {len(starts)} effects"
        elif len(starts) > 1 + tries:
            yield f"job {job_id} started {len(starts)} times and has {tries} attempts"
        if len(set(starts)) < len(starts) or any(start > fence for start in starts):
            yield f"job {job_id} is at fence {fence} and started at {starts}: each start has a fence of its own"
    yield from (f"an effect names job {job_id}, which does not exist" for job_id in fences)


def _dead_letters() -> Iterator[str]:
    letters: dict[str, list[str]] = {}
    for job_id, reason in DeadLetter.objects.filter(replayed_at__isnull=True).values_list("job_id", "reason"):
        letters.setdefault(job_id, []).append(reason)
    buried = Job.objects.filter(Q(status="dead") | Q(id__in=letters)).values_list("id", "status")
    for job_id, status in buried:
        reasons = letters.get(job_id, [])
        fits = reasons == ["no handler"] if status == "failed" else status == "dead" and len(reasons) == 1
        if not fits:
            yield f"job {job_id} is {status} and has these dead letters, not replayed: {reasons}"


def _dependencies() -> Iterator[str]:
    open_edges = Counter(JobDependency.objects.filter(state="open").values_list("job_id", flat=True))
    jobs = Job.objects.filter(Q(pending_dependencies__gt=0) | Q(id__in=open_edges))
    for job_id, pending in jobs.values_list("id", "pending_dependencies"):
        if pending != open_edges[job_id]:
            yield f"job {job_id} has pending_dependencies={pending} and {open_edges[job_id]} open edges"
    early = JobDependency.objects.filter(
        depends_on__status="completed", job__started_at__lt=F("depends_on__finished_at")
    )
    yield from (f"job {edge.job_id} started before {edge.depends_on_id} finished" for edge in early)
    unfinished = JobDependency.objects.filter(state="open", depends_on__status="completed")
    yield from (f"{edge.depends_on_id} is completed and did not wake {edge.job_id}" for edge in unfinished)


def _batches() -> Iterator[str]:
    left: dict[str, int] = Counter()
    still_open = dict(OpenMember.objects.values_list("job", "batch"))
    for job_id, batch_id, bad_end, status in BatchMember.objects.values_list("job", "batch", "bad_end", "job__status"):
        if bad_end != (status if status in ENDED_BADLY else ""):
            yield f"job {job_id} is {status} and a member that is {bad_end or 'well'}"
        if still_open.pop(job_id, None) != (None if status in TERMINAL else batch_id):
            yield f"job {job_id} is {status}, and the open members of batch {batch_id} do not agree"
        left[batch_id] += status not in TERMINAL
    yield from (f"job {job_id} is an open member and no member" for job_id in still_open)
    batches = list(Batch.objects.values_list("id", "parent", "status"))
    for _, parent, status in batches:
        if parent is not None:
            left[parent] += status == "running"
    for batch_id, _, status in batches:
        if (status == "running") != bool(left[batch_id]):
            yield f"batch {batch_id} is {status} and {left[batch_id]} members have not ended"


def _sessions() -> Iterator[str]:
    """Look for sessions that sit in an open transaction, and for damage."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA integrity_check")
            yield from (f"integrity_check: {line}" for (line,) in cursor.fetchall() if line != "ok")
        elif connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%%' AND state_change < clock_timestamp() - interval '5 seconds'"
            )
            yield from (
                f"session {pid} is idle in a transaction after {query!r:.200}" for pid, query in cursor.fetchall()
            )
        else:
            cursor.execute(
                "SELECT p.id FROM information_schema.innodb_trx t JOIN information_schema.processlist p"
                " ON p.id = t.trx_mysql_thread_id WHERE p.command = 'Sleep' AND p.time >= 5 AND p.db = DATABASE()"
            )
            yield from (f"session {pid} is idle in a transaction" for (pid,) in cursor.fetchall())


def _traceback(output: str) -> Iterator[str]:
    if "Traceback (most recent call last)" in output:
        yield f"a worker wrote a traceback:\n{output[output.index('Traceback') :][:3000]}"
