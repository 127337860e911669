"""How long each page of the console takes on a site with a past: 1,000,000 jobs, 100,000 dead letters, 10,000 attempts.

    python benchmarks/console.py [postgresql://… | mysql://…] [--jobs 1000000] [--keep]

The database is created, filled by bulk SQL, and dropped unless --keep. Each page is opened by Django's test client, once to warm
up and then three times; the middle time and the number of queries are printed. The exit code says whether each page took at most
300 ms, and the overview at most 150.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import django

ALLOWED, ALLOWED_OVERVIEW = 0.3, 0.15  # seconds
ROUNDS = 3
DAYS = 30  # in which the jobs were submitted, evenly
PENDING, SCHEDULED, RUNNING = 3_000, 1_500, 40  # the newest ones
CAUSES, HOSTS, PROCESSES = 40, 4, 200
ROOT = "/admin/django_jobs/"


class Filler:
    """Fills a table with copies of one row, made by the ORM, in which some columns are expressions of a number `n`."""

    def __init__(self, vendor: str, jobs: int) -> None:
        self.vendor = vendor
        self.jobs = jobs

    def ago(self, seconds: str) -> str:
        """Return the time that was so many seconds ago, given as an expression."""
        if self.vendor == "postgresql":
            return f"(now() - interval '1 second' * ({seconds}))"
        return f"(UTC_TIMESTAMP(6) - INTERVAL ({seconds}) SECOND)"

    def key(self, number: str) -> str:
        """Return the id of the job with a number: 36 characters, in the order of the numbers."""
        return f"LPAD(CONCAT({number}), 36, '0')"

    def json(self, text: str) -> str:
        """Return a JSON column's value of text."""
        return f"CAST({text} AS jsonb)" if self.vendor == "postgresql" else text

    def copy(self, row: Any, number: int, **columns: str) -> None:
        """Write the row's copies 1 to `number`, and delete the row."""
        from django.db import connection

        fields = [field for field in row._meta.concrete_fields if not field.primary_key or field.column in columns]
        names = ", ".join(connection.ops.quote_name(field.column) for field in fields)
        values = ", ".join(
            columns.get(field.column, f"t.{connection.ops.quote_name(field.column)}") for field in fields
        )
        table = connection.ops.quote_name(row._meta.db_table)
        series = (
            f"generate_series(1, {number}) AS s(n)"
            if self.vendor == "postgresql"
            else f"(SELECT seq AS n FROM seq_1_to_{number}) AS s"
        )
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} AS t CROSS JOIN {series} WHERE t.{row._meta.pk.column} = %s",  # noqa: E501
                [row.pk],
            )
        type(row).objects.filter(pk=row.pk).delete()


def fill(filler: Filler) -> None:
    """Write the site's past."""
    from django.contrib.auth.models import User
    from django.utils import timezone

    from django_jobs.lifecycle.operations import begin
    from django_jobs.models import Attempt, DeadLetter, GoneProcess, Job, OperationKind, Schedule, WorkerProcess

    now, jobs = timezone.now(), filler.jobs
    spacing = DAYS * 86_400 / jobs
    first_live = jobs - PENDING - SCHEDULED - RUNNING
    age = f"({jobs} - n) * {spacing}"
    status = (
        f"CASE WHEN n > {jobs - PENDING} THEN 'pending' WHEN n > {jobs - PENDING - SCHEDULED} THEN 'scheduled'"
        f" WHEN n > {first_live} THEN 'running' WHEN MOD(n, 10) = 0 THEN 'dead' WHEN MOD(n, 97) = 1 THEN 'failed'"
        " ELSE 'completed' END"
    )
    gone = f"CONCAT('host-', MOD(n, {HOSTS}), ':', MOD(n, {PROCESSES}), ':abcdef')"
    template = Job(id="template", job_type="t", created_at=now, updated_at=now, available_at=now, rank=0)
    template.save(force_insert=True)
    filler.copy(
        template, jobs, id=filler.key("n"), status=status,
        job_type="CONCAT('shop.type_', MOD(n, 20))", queue="CONCAT('queue-', MOD(n, 5))",
        payload=filler.json("""CONCAT('{"account": ', MOD(n, 5000), ', "text": "', REPEAT('words of an order ', 10), '"}')"""),
        result=filler.json("""CONCAT('{"invoice": ', n, '}')"""),
        metadata=filler.json("""CONCAT('{"tenant": "t', MOD(n, 50), '"}')"""),
        error=f"CASE WHEN n <= {first_live} AND (MOD(n, 10) = 0 OR MOD(n, 97) = 1) THEN CONCAT('TimeoutError: no ', n) END",
        created_at=filler.ago(age), updated_at=filler.ago(age), available_at=filler.ago(age),
        started_at=f"CASE WHEN n <= {jobs - PENDING - SCHEDULED} THEN {filler.ago(f'{age} - 1')} END",
        finished_at=f"CASE WHEN n <= {first_live} THEN {filler.ago(f'{age} - 1 - MOD(n, 30)')} END",
        worker_id=f"CASE WHEN n > {jobs - PENDING - SCHEDULED} THEN NULL WHEN n > {first_live}"
        f" THEN CONCAT('alive:', MOD(n, 4)) ELSE {gone} END",
    )  # fmt: skip
    owner = User.objects.create_superuser("operator")
    job = Job.objects.filter(status="dead").order_by("-pk")[0]
    letter = DeadLetter.objects.create(
        job=job, job_type="", reason="retries exhausted", error="TimeoutError: no answer", died_at=now, replayed_by=owner,
        traceback='File "/srv/shop/bank.py", line 7, in charge\n' * 8 + "TimeoutError: no answer",
    )  # fmt: skip
    dead = f"({jobs} - n * 10) * {spacing}"
    filler.copy(
        letter, first_live // 10, job_id=filler.key("n * 10"),
        job_type="CONCAT('shop.type_', MOD(n * 10, 20))", fingerprint=f"CONCAT('cause-', MOD(n * 7, {CAUSES}))",
        died_at=filler.ago(dead), acknowledged_at=f"CASE WHEN MOD(n, 10) = 1 THEN {filler.ago(dead)} END",
        replayed_at=f"CASE WHEN MOD(n, 10) IN (2, 3, 4) THEN {filler.ago(dead)} END",
    )  # fmt: skip
    attempt = Attempt.objects.create(job=job, number=1, started_at=now, ended_at=now, outcome="crashed", error="killed")
    filler.copy(attempt, 10_000, job_id=filler.key(f"n * {jobs // 10_000 - 1}"), worker_id=gone)
    times = {"started_at": now, "heartbeat_at": now}
    process = GoneProcess.objects.create(id="template", host="host-0", pid=1, ended_at=now, ending="killed", **times)
    filler.copy(process, PROCESSES, id=gone)
    for number in range(4):
        lease = now + timedelta(days=1)
        WorkerProcess.objects.create(
            id=f"alive:{number}", host="h", pid=1, queues=[], threads=16, lease_expires_at=lease, **times
        )
    Schedule.objects.create(
        name="nightly", job_type="shop.type_1", kind="interval", interval_seconds=60, next_run_at=lease
    )
    begin(OperationKind.REPLAY, filters={"status": "dead", "queue": "queue-0"}, by=owner).pause()


def pages() -> Iterator[tuple[str, str]]:
    """Yield (name, address) of every page."""
    from django_jobs.models import DeadLetter, GoneProcess, Job, Operation, Schedule, WorkerProcess

    lists = (
        "overview",
        "queue",
        "job",
        "deadletter",
        "workerprocess",
        "goneprocess",
        "schedule",
        "batch",
        "operation",
        "limit",
    )
    yield from ((name, f"{ROOT}{name}/") for name in lists)
    yield from ((f"job, {query}", f"{ROOT}job/?{query}") for query in (
        "status=dead", "status=pending", "status=pending&queue=none", "status=completed&queue=queue-1", "job_type=shop.type_3",
        "worker_id=host-1:1:abcdef", "age=24h", "sort=oldest", "sort=run", "sort=wait&status=completed", "schedule=nightly",
        "q=account:7", "q=error:timeout",
        "q=tenant:t7+status:dead", "q=nothing+like+this", "q=after:2026-01-01+type:shop.type_3",
    ))  # fmt: skip
    yield from ((f"deadletter, {query}", f"{ROOT}deadletter/?{query}") for query in (
        "state=all", "state=replayed", "age=24h", "job_type=shop.type_0", "fingerprint=cause-7", "sort=oldest", "q=error:timeout",
    ))  # fmt: skip
    yield "job types", f"{ROOT}job/_types/"
    yield "a job type", f"{ROOT}job/_types/shop.type__3/".replace("__", "_5F")
    yield "causes of a day", f"{ROOT}deadletter/causes/"
    yield "causes of all time", f"{ROOT}deadletter/causes/?age=all"
    yield "a cause", f"{ROOT}deadletter/causes/cause-7/"
    yield "what operators did", f"{ROOT}overview/acts/"
    rows = {
        "a completed job": Job.objects.filter(status="completed").order_by("-pk").first(),
        "a dead job": Job.objects.filter(status="dead").order_by("-pk").first(),
        "a dead letter": DeadLetter.objects.first(),
        "a worker process": WorkerProcess.objects.first(),
        "a worker that is gone": GoneProcess.objects.first(),
        "a schedule": Schedule.objects.first(),
        "an operation": Operation.objects.first(),
    }
    for name, row in rows.items():
        yield (
            name,
            f"{ROOT}{row._meta.model_name}/{row.pk.replace(':', '_3A') if isinstance(row.pk, str) else row.pk}/change/",
        )


def measure() -> int:
    """Print the time and the number of queries of each page; return 1 when one was too slow."""
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.get(username="operator"))
    slow = False
    for name, address in pages():
        with CaptureQueriesContext(connection) as queries:
            assert client.get(address).status_code == 200, address
        asked = list(queries.captured_queries)  # the next request forgets them
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            client.get(address)
            times.append(time.perf_counter() - started)
        took = statistics.median(times)
        is_slow = took > (ALLOWED_OVERVIEW if name == "overview" else ALLOWED)
        slow |= is_slow
        print(f"{1000 * took:7.0f} ms  {len(asked):3d} queries  {name}{'  SLOW' if is_slow else ''}", flush=True)
        if is_slow:
            worst = sorted(asked, key=lambda one: -float(one["time"]))[:3]
            for one in worst:
                print(f"             {1000 * float(one['time']):.0f} ms: {one['sql'][:1500]}")
    return int(slow)


def main() -> int:
    """Make the site, open its pages, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="postgresql://postgres@127.0.0.1:5432/jobs_console")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true", help="keep the database, and use it when it is there")
    options = parser.parse_args()
    os.environ |= {"DATABASE_URL": options.url, "DJANGO_SETTINGS_MODULE": "testproject.settings"}
    from benchmarks import stores

    kind = "postgresql" if options.url.startswith("postgres") else "mariadb"
    place = stores.Store(kind, options.url)
    django.setup()
    from django.core.management import call_command
    from django.db import connection, connections
    from django.db.utils import OperationalError

    try:
        connection.ensure_connection()
        is_there = options.keep and "django_jobs_job" in connection.introspection.table_names()
    except OperationalError:
        is_there = False
    if not is_there:
        connections.close_all()
        stores.recreate(place)
        call_command("migrate", verbosity=0)
        started = time.monotonic()
        fill(Filler(kind, options.jobs))
        stores.settle(place)
        print(
            f"filled in {time.monotonic() - started:.0f} s: {urlsplit(options.url).scheme}, {options.jobs:,} jobs",
            flush=True,
        )
    try:
        return measure()
    finally:
        connections.close_all()
        if not options.keep:
            stores.drop(place)


if __name__ == "__main__":
    sys.exit(main())
