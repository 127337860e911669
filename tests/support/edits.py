"""Rows as a hand with SQL may leave them: one of each kind that is about to be used, and values that no code of ours writes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import connection, models

from django_jobs import emit
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.operations import begin
from django_jobs.models import (
    Alert,
    Batch,
    BatchMember,
    Cause,
    DeadLetter,
    FairTurn,
    GoneProcess,
    Job,
    JobLog,
    Limit,
    LimitSlot,
    LimitStart,
    LimitTurn,
    OperationKind,
    Schedule,
    ScheduleTick,
)

from .factories import (
    AttemptFactory,
    DeadLetterFactory,
    JobDependencyFactory,
    JobFactory,
    QueueFactory,
    WorkerProcessFactory,
)
from .workflows import add_step

INTEGERS = ("-1", "0", "32767", "2147483647", "9223372036854775807", "-9223372036854775808")
FLOATS = {
    "postgresql": ("'NaN'", "'Infinity'", "'-Infinity'", "-1", "1e308"),
    "mysql": ("-1", "0", "1e308"),
    "sqlite": ("-1", "0", "9e999", "-9e999", "1e308", "'soon'"),
}
TIMES = {
    "postgresql": ("'infinity'", "'-infinity'", "'0001-01-01'", "'4000-01-01 BC'", "'9999-12-31'", "'20000-01-01'"),
    "mysql": ("'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'0000-00-00'", "'2024-00-00'"),
    "sqlite": (
        *("'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'20000-01-01 00:00:00'", "'2024-02-31 00:00:00'"),
        *("'2024-01-01 00:00:00+00:00'", "'2024-01-01T00:00:00'", "'2024-01-01 00:00:00.5x'", "'2024-01-01 00:00:00.'"),
        *("'2024-01-01 00:00:00.1234567'", "'soon'", "''", "7", "x'ff'"),
    ),
}
CALLBACK = {"job_type": "effects.record", "payload": {}, "rank": 0, "options": {}}
DEEP = "[" * 990 + "]" * 990  # deeper than Python reads; SQLite takes no more than 1,000
JSONS = (
    *("'null'", "'[]'", "'7'", "'\"text\"'", "'{\"a\": 1e400}'", '\'{"": [{"x": {}}, null]}\'', f"'{DEEP}'"),
    '\'{"command": 7, "job_type": [], "payload": 5}\'',
)
NO_JSONS = {
    "postgresql": (),
    "mysql": ("'not JSON'", "''", "'{\"a\": NaN}'"),
    "sqlite": ("'not JSON'", "''", "'{\"a\": NaN}'", "7", "x'ff'"),
}


def columns() -> Iterator[models.Field[Any, Any]]:
    """Yield each column of each table of ours."""
    for model in apps.get_app_config("django_jobs").get_models():
        if not model._meta.proxy and model._meta.managed:
            yield from model._meta.concrete_fields


def odd_values(field: models.Field[Any, Any]) -> Iterator[str]:
    """Yield SQL of what a hand might write into a column."""
    vendor = connection.vendor
    kind = field.target_field if field.remote_field else field
    yield "NULL"
    if isinstance(kind, models.JSONField):
        yield from (*JSONS, *NO_JSONS[vendor])
    elif isinstance(kind, models.DateTimeField):
        yield from TIMES[vendor]
    elif isinstance(kind, models.FloatField):
        yield from FLOATS[vendor]
    elif isinstance(kind, models.BooleanField):
        yield from ("TRUE", "FALSE", *(("7", "'x'") if vendor == "sqlite" else ()))
    elif isinstance(kind, models.IntegerField):
        yield from (*INTEGERS, *(("'many'", "x'ff'", "1.5") if vendor == "sqlite" else ()))
    else:
        length = kind.max_length or 100_000
        yield from (
            "''",
            "'nobody knows it'",
            f"'{'x' * length}'",
            "'a' || chr(1)" if vendor == "postgresql" else "'a\x01'",
        )
        if vendor == "sqlite":
            yield from ("x'ff'", "7", f"'{'x' * (length + 1000)}'", "'a' || char(0)")


def edits() -> Iterator[tuple[models.Field[Any, Any], str]]:
    """Yield each column with each odd value."""
    for field in columns():
        for value in odd_values(field):
            yield field, value


def edit(field: models.Field[Any, Any], value: str) -> int:
    """Write a value into a column of every row, as an operator's SQL would; return how many rows it changed."""
    table, column = connection.ops.quote_name(field.model._meta.db_table), connection.ops.quote_name(field.column)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {column} = {value}".replace("%", "%%"))
        return cursor.rowcount


def fill() -> None:
    """Write rows of each kind that the next worker process is about to use."""
    now = database_now()
    past, soon = now - timedelta(hours=1), now + timedelta(seconds=0.5)
    JobFactory(id="ready", payload={"value": 1})
    JobFactory(id="fair", fair_key="tenant")
    JobFactory(id="due", status="scheduled", scheduled_at=past)
    JobFactory(id="later", status="scheduled", scheduled_at=soon)
    WorkerProcessFactory(id="silent:1:a", lease_expires_at=past, heartbeat_at=past)
    WorkerProcessFactory(id="dead:1:a", lease_expires_at=None)
    GoneProcess.objects.create(
        id="gone:1:a", host="gone", pid=1, queues=[], started_at=past, heartbeat_at=past, ended_at=past, ending="left"
    )
    JobFactory(id="of-dead", status="running", worker_id="dead:1:a", fence=1)
    JobFactory(id="of-nobody", status="running", worker_id="nobody:1:a", fence=1)
    done = JobFactory(id="done", status="completed", result={"a": 1}, finished_at=past)
    dependent = JobFactory(id="dependent", pending_dependencies=1)
    JobDependencyFactory(job=dependent, depends_on=Job.objects.get(pk="ready"))
    dead = JobFactory(id="dead", status="dead", error="ValueError: x", finished_at=past)
    orphan = JobFactory(id="orphan", pending_dependencies=1)
    JobDependencyFactory(job=orphan, depends_on=dead)
    AttemptFactory(job=dead)
    DeadLetterFactory(job=dead, fingerprint="ab" * 16)
    replayed = JobFactory(id="old", status="completed", finished_at=past)
    DeadLetter.objects.create(
        job=replayed, reason="timeout", job_type="effects.record", error="x", died_at=past, replayed_at=past
    )
    JobLog.objects.create(job=done, number=1, text="a line")
    Alert.objects.create(key="queue:default", text="late", told_at=past)
    QueueFactory(name="default")
    Cause.objects.create(fingerprint="ab" * 16, note="", changed_at=past)
    schedule = Schedule.objects.create(
        name="each second", job_type="effects.record", kind="interval", interval_seconds=3600, next_run_at=past,
        payload={"value": 1}, queue="default", priority=5, max_retries=1, timeout_seconds=5, grace_seconds=86_400,
    )  # fmt: skip
    Schedule.objects.create(
        name="by cron", job_type="effects.record", kind="cron", cron="* * * * *", next_run_at=past, overlap="skip"
    )
    Schedule.objects.create(name="once", job_type="effects.record", kind="once", run_at=past, next_run_at=past)
    ScheduleTick.objects.create(schedule=schedule, due_at=past - timedelta(hours=5), job=done)
    batch = Batch.objects.create(id="batch", created_at=past, callbacks={"on_finish": CALLBACK})
    member = JobFactory(id="member", batch=batch)
    BatchMember.objects.create(job=member, batch=batch, place=1)
    waiting = JobFactory(id="waiting", status="scheduled", job_type="effects.workflow", scheduled_at=soon)
    add_step(waiting, "prepare", result=1)
    add_step(waiting, "order.approved", kind="event", ended_at=None, due_at=soon, event_name="order.approved")
    emit("order.approved", payload={"ok": True})
    Limit.objects.create(name="type:effects.record", concurrency=50)
    LimitSlot.objects.create(
        job_id="ready",
        scope="type:effects.record",
        waits=False,
        starts=False,
        queue="default",
        rank=0,
        available_at=past,
    )
    LimitStart.objects.create(scope="queue:x", run="done:1", started_at=past, expires_at=past)
    LimitTurn.objects.create(scope="queue:x", due_at=past)
    FairTurn.objects.create(queue="default", rank=0, key="", used_at=past)
    begin(OperationKind.ACKNOWLEDGE, filters={}, options={"note": "seen"}, address="")
