"""A shop's site with a past, for those who come to it at night: what is wrong there, and everything that is told of it.

30,000 jobs of two weeks, 500 open dead letters of 12 causes, a worker that died with what it held, two that live, releases,
a queue that nobody serves, a schedule that broke, operators' acts, a replay that came to nothing and one that goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.utils import timezone

from django_jobs.lifecycle.causes import note_cause
from django_jobs.lifecycle.operations import begin
from django_jobs.models import (
    Alert,
    Attempt,
    DeadLetter,
    GoneProcess,
    Job,
    JobLog,
    Operation,
    OperationKind,
    Queue,
    Schedule,
    ScheduleTick,
    WorkerProcess,
)
from django_jobs.scheduling.store import create_schedule

JOBS, DAYS = 30_000, 14
OLD, BROKEN = "2026.11.2", "2026.11.3"  # releases
TYPES = (
    "shop.charge", "shop.invoice", "shop.ship", "shop.welcome", "mail.send", "mail.digest", "search.reindex",
    "catalogue.scan", "catalogue.thumbnail", "reports.monthly", "reports.export", "stock.sync",
)  # fmt: skip
SLOW = "reports.monthly"  # it takes 2 s, and 6 s today
ERRORS = (
    "KeyError: 'iban'", "TimeoutError: the bank did not answer within 30 s", "ConnectionResetError: peer closed",
    "ValueError: no such currency: 'XXX'", "smtplib.SMTPServerDisconnected: try again", "PermissionError: read only",
    "AssertionError: the index is behind", "OSError: disk quota exceeded", "DecodeError: not a JPEG",
    "ZeroDivisionError: division by zero", "LookupError: no column 'net'", "RuntimeError: the stock is locked",
)  # fmt: skip
WORST = 200  # dead letters of the first cause, which came with the broken release; the others share the rest
ACTOR, TENANT = "ursula", "acme"
TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3/site-packages/requests/api.py", line 59, in request
  File "/srv/shop/{module}.py", line {line}, in {function}
{error}
"""


@dataclass(frozen=True, kw_only=True)
class Night:
    """The rows that answers name."""

    cause: str  # the fingerprint of the worst one
    tenants: frozenset[str]  # ids of the jobs of TENANT
    dead_worker: str
    held: tuple[str, ...]  # ids of the jobs that it held
    logged: DeadLetter  # the newest one, whose job has a log
    broken: Schedule
    nightly: Schedule
    operation: Operation


def seed() -> Night:
    """Write the site."""
    now = timezone.now()
    ursula = User.objects.create_user(ACTOR, is_staff=True)
    WorkerProcess.objects.bulk_create(_alive(number, now) for number in (1, 2))
    tenants = _past(now)
    letters = _dead(now)
    gone, held = _dead_worker(now)
    _replayed(letters[0].fingerprint, now, ursula)
    logged = DeadLetter.objects.select_related("job").order_by("-pk")[0]
    began, order = logged.job.started_at or now, logged.job.payload["order"]
    said = f"{began:%H:%M:%S} INFO asking the bank for order {order}\n{began + timedelta(seconds=30):%H:%M:%S} ERROR no answer\n"
    JobLog.objects.create(job=logged.job, number=4, text=said)
    nightly = _schedules(now)
    note_cause(letters[-1].fingerprint, note="the bank is told, ticket 4711", by=ursula)
    _acts(ursula, letters)
    Queue.objects.create(name="mail", paused_at=now - timedelta(hours=2))
    Alert.objects.create(
        key=f"cause:{letters[0].fingerprint}", told_at=now - timedelta(minutes=40),
        text=f"dead letters of job type {TYPES[0]}: {WORST} in the last day, KeyError (retries exhausted)",
    )  # fmt: skip
    operation = begin(
        OperationKind.REPLAY_DEAD_LETTERS, filters={"fingerprint": letters[-1].fingerprint}, per_second=0.5, by=ursula,
        address=f"fingerprint={letters[-1].fingerprint}",
    )  # fmt: skip
    Operation.objects.filter(pk=operation.pk).update(done=9, started_at=now - timedelta(seconds=20))
    return Night(
        cause=letters[0].fingerprint,
        tenants=tenants,
        dead_worker=gone.pk,
        held=held,
        logged=logged,
        broken=Schedule.objects.get(enabled=False),
        nightly=nightly,
        operation=operation,
    )


def _job(now: datetime, pk: str, **values: Any) -> Job:
    created: datetime = values.pop("created_at", now)
    return Job(**{"id": pk, "created_at": created, "updated_at": created, "available_at": created, "rank": 0, **values})


def _alive(number: int, now: datetime) -> WorkerProcess:
    return WorkerProcess(
        id=f"web-{number}:71{number}:cafe0{number}", host=f"web-{number}", pid=710 + number, release=BROKEN, threads=16,
        queues=["default", "mail", "reports"], jobs_done=4_000, jobs_per_second=3.5, memory_mb=180,
        started_at=now - timedelta(hours=9), heartbeat_at=now, lease_expires_at=now + timedelta(days=1),
    )  # fmt: skip


def _past(now: datetime) -> frozenset[str]:
    """Write the jobs of two weeks, most of them well; return those of the tenant."""
    jobs, tenants = [], set()
    spacing = timedelta(days=DAYS) / JOBS
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for n in range(JOBS):
        created = now - (JOBS - n) * spacing
        job_type = TYPES[n % len(TYPES)]
        usual = 2.0 + n % 5 / 10 if job_type == SLOW else 0.05 + n % 7 / 20
        ran = usual * (3 if job_type == SLOW and created >= midnight else 1)
        pk = f"{n:036d}"
        started = created + timedelta(seconds=n % 11 / 10)
        if n % 1_500 == 7:
            tenants.add(pk)
        jobs.append(
            _job(
                now, pk, job_type=job_type, status="completed" if n % 200 else "cancelled", created_at=created,
                payload={"order": n, "account": n % 900}, result={"invoice": n} if n % 200 else None,
                metadata={"tenant": TENANT if n % 1_500 == 7 else f"tenant-{n % 40}"}, started_at=started,
                finished_at=started + timedelta(seconds=ran), worker_id=f"web-{n % 2 + 1}:71{n % 2 + 1}:cafe",
                queue="reports" if job_type.startswith("reports") else "default",
            )
        )  # fmt: skip
    today = (now - midnight) / 41  # enough runs of today, however early it is
    slow = [
        _job(
            now, f"{JOBS + n:036d}", job_type=SLOW, queue="reports", status="completed", worker_id="web-1:711:cafe01",
            created_at=midnight + n * today - timedelta(seconds=7), started_at=midnight + n * today - timedelta(seconds=6.6),
            finished_at=midnight + n * today,
        )
        for n in range(1, 41)
    ]  # fmt: skip
    waiting = [
        *(_job(now, f"a{n:035d}", job_type="mail.send", queue="mial", created_at=now - timedelta(minutes=5)) for n in range(12)),
        *(_job(now, f"b{n:035d}", job_type="mail.send", queue="mail", created_at=now - timedelta(hours=1)) for n in range(40)),
        _job(
            now, f"c{0:035d}", job_type="search.reindex", status="running", created_at=now - timedelta(hours=3),
            started_at=now - timedelta(hours=3), worker_id="web-1:711:cafe01", progress=0.4, progress_message="12,000 of 30,000",
        ),
    ]  # fmt: skip
    Job.objects.bulk_create([*jobs, *slow, *waiting], batch_size=2_000)
    return frozenset(tenants)


def _dead(now: datetime) -> list[DeadLetter]:
    """Write 500 dead letters: the worst cause since a deploy today, eleven others since days; the newest one last."""
    jobs, letters = [], []
    for n in range(500):
        cause = 0 if n < WORST else 1 + n % 11
        died = now - (timedelta(minutes=8 * 60 - 2 * n) if cause == 0 else timedelta(minutes=19 * (500 - n)))
        pk = f"d{n:035d}"
        error = ERRORS[cause]
        jobs.append(
            _job(
                now, pk, job_type=TYPES[cause], status="dead", created_at=died - timedelta(minutes=2), error=error,
                payload={"order": 40_000 + n, "account": n % 900}, metadata={"tenant": f"tenant-{n % 40}"}, retry_count=3,
                started_at=died, finished_at=died + timedelta(seconds=30), worker_id="web-2:712:cafe02",
            )
        )  # fmt: skip
        module, _dot, function = TYPES[cause].partition(".")
        letters.append(
            DeadLetter(
                job_id=pk, job_type=TYPES[cause], reason="retries exhausted", error=error, died_at=died,
                release=BROKEN if cause == 0 else OLD, fingerprint=f"{cause:032x}",
                traceback=TRACEBACK.format(module=module, line=40 + cause, function=function, error=error),
            )
        )  # fmt: skip
    Job.objects.bulk_create(jobs)
    DeadLetter.objects.bulk_create(letters)
    return list(DeadLetter.objects.select_related("job").order_by("pk"))


def _dead_worker(now: datetime) -> tuple[GoneProcess, tuple[str, ...]]:
    """Write a process that was killed, and the jobs that were taken back from it."""
    started = now - timedelta(days=6)
    gone = GoneProcess.objects.create(
        id="web-3:4711:dead01", host="web-3", pid=4711, release=OLD, threads=16, queues=["default"], jobs_done=12_345, held=3,
        started_at=started, heartbeat_at=now - timedelta(hours=5, seconds=40), ended_at=now - timedelta(hours=5), ending="silent",
    )  # fmt: skip
    held = tuple(
        Job.objects.filter(status="completed", created_at__lt=now - timedelta(hours=5))
        .order_by("-pk")
        .values_list("pk", flat=True)[:3]
    )
    Attempt.objects.bulk_create(
        Attempt(
            job_id=pk, number=1, worker_id=gone.pk, release=OLD, started_at=now - timedelta(hours=5, seconds=50),
            ended_at=now - timedelta(hours=5), outcome="crashed", error="the worker process was lost",
        )
        for pk in held
    )  # fmt: skip
    return gone, held


def _replayed(fingerprint: str, now: datetime, by: User) -> None:
    """Close 15 of a cause as replayed, and write the new dead letter of each of their jobs."""
    old = list(DeadLetter.objects.filter(fingerprint=fingerprint).order_by("pk")[:15])
    DeadLetter.objects.bulk_create(
        DeadLetter(
            job_id=one.job_id, job_type=one.job_type, reason=one.reason, error=one.error, traceback=one.traceback,
            fingerprint=fingerprint, release=BROKEN, died_at=now - timedelta(minutes=50),
        )
        for one in old
    )  # fmt: skip
    DeadLetter.objects.filter(pk__in=[one.pk for one in old]).update(
        replayed_at=now - timedelta(hours=1), replayed_by=by
    )


def _schedules(now: datetime) -> Schedule:
    row = create_schedule("broken", "effects.record", cron="0 4 * * *")
    Schedule.objects.filter(pk=row.pk).update(
        enabled=False, next_run_at=None, last_error="ZoneInfoNotFoundError: no time zone 'Europe/Atlantis'"
    )
    row = create_schedule("nightly", "effects.record", cron="0 3 * * *", timezone="Europe/Berlin")
    ran = Job.objects.filter(job_type="catalogue.scan", status="completed").order_by("-pk")
    keys = list(ran.values_list("pk", flat=True)[:9])
    due = row.next_run_at or now
    ScheduleTick.objects.bulk_create(
        ScheduleTick(schedule_id=row.pk, due_at=due - timedelta(days=number + 1), job_id=pk)
        for number, pk in enumerate(keys)
    )
    Schedule.objects.filter(pk=row.pk).update(last_run_at=due - timedelta(days=1))
    return Schedule.objects.get(pk=row.pk)


def _acts(by: User, letters: list[DeadLetter]) -> None:
    kind = ContentType.objects.get_for_model(DeadLetter)
    told = ["Replayed 15 dead letters.", *(f"Acknowledged dead letter #{letter.pk}." for letter in letters[:5])]
    others = User.objects.create_user("otto", is_staff=True)
    LogEntry.objects.bulk_create(
        LogEntry(
            user=who, content_type=kind, object_id=None, object_repr="15 dead letters", action_flag=CHANGE, change_message=text
        )
        for who, texts in ((by, told), (others, ["Paused queue mail."]))
        for text in texts
    )  # fmt: skip
