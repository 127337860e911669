"""Reads: statistics of queues and of the newest jobs. Each question is bounded: by an index, a cap, or the newest jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Count, FloatField, Func, IntegerField, Min

from django_jobs.db import lines
from django_jobs.db.dialects import dialect
from django_jobs.db.lines import NO_KEY, Line
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.active_limits import NO_LIMITS, active_limits, declared_limits
from django_jobs.lifecycle.starts import windows
from django_jobs.limit import name_of_scope, parse_rate, scope_of, value_of_scope
from django_jobs.models import GoneProcess, Job, JobStatus, Limit, LimitSlot, LimitTurn, Queue, WorkerProcess

WINDOW = 100_000
SHORT_WINDOW = 50_000  # for the pages that refresh themselves every few seconds
SAMPLE = 2_000
RUNS = 10_000
MOST_KEYS = 1_000
LARGE = 100  # jobs of a key; those that have more are counted on
MOST_OF_KEY = 10_000
MOST_HELD_BACK = 100_000  # jobs that are counted one by one
MOST_SCOPES = 1_000
ENOUGH = 20  # runs of a type, before its usual time is known


@dataclass(kw_only=True)
class QueueStats:
    """One queue now. `ready` stops at 10,001; `oldest` is when the job that waits longest became due."""

    name: str
    ready: int = 0
    oldest: datetime | None = None
    running: int = 0
    paused_at: datetime | None = None
    waits: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def waited(self, now: datetime) -> float:
        """Return how long the job that is ready longest has waited (seconds); 0 without one."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


def queue_stats(names: Sequence[str] = ()) -> dict[str, QueueStats]:
    """Return stats by queue: of the named ones, those with a ready or running job, and those with a row."""
    stats = {name: QueueStats(name=name) for name in names}

    def of(name: str) -> QueueStats:
        return stats.setdefault(name, QueueStats(name=name))

    for name, oldest in dialect().oldest_ready():
        one = of(name)
        one.oldest = min(oldest, one.oldest or oldest)
    waiting = [name for name, one in stats.items() if one.oldest]
    for name, number in zip(waiting, dialect().count_ready(waiting), strict=True):
        of(name).ready = number
    running = Job.objects.filter(status=JobStatus.RUNNING).order_by().values_list("queue")
    for name, number in running.annotate(number=Count("pk")):
        of(name).running = number
    for name, paused_at in Queue.objects.values_list("name", "paused_at"):
        of(name).paused_at = paused_at
    return dict(sorted(stats.items()))


class Minute(Func):
    """The minute of a time, as the number of minutes since 1970."""

    output_field = IntegerField()
    arity = 1

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="STRFTIME('%%%%s', %(expressions)s) / 60", **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "FLOOR(DATE_PART('epoch', %(expressions)s) / 60)::integer"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "TIMESTAMPDIFF(MINUTE, '1970-01-01', %(expressions)s)"
        return self.as_sql(compiler, connection, template=template, **extra)


class Seconds(Func):
    """The seconds from one time to another. To read both and subtract them here takes most of the time for 10,000 rows."""

    output_field = FloatField()
    arity = 2

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self._reversed().as_sql(compiler, connection, template="django_timestamp_diff(%(expressions)s) / 1e6")

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "DATE_PART('epoch', %(expressions)s)"
        return self._reversed().as_sql(compiler, connection, template=template, arg_joiner=" - ")

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="TIMESTAMPDIFF(MICROSECOND, %(expressions)s) / 1e6")

    def _reversed(self) -> Seconds:
        other = self.copy()
        other.set_source_expressions(self.get_source_expressions()[::-1])
        return other


@dataclass(frozen=True, kw_only=True)
class Newest:
    """What is known from the newest jobs: how many ended in each minute of the last day, well and badly.

    `since` is when the oldest of them was submitted, when there are more jobs than that.
    """

    minutes: dict[datetime, tuple[int, int]]
    since: datetime | None


Floor = tuple[str, datetime] | None


def newest_stats(now: datetime, floor: Floor) -> Newest:
    """Count the jobs that ended in the last 24 hours, by minute, among the newest jobs, from the floor on."""
    jobs = Job.objects.filter(finished_at__gte=now - timedelta(days=1))
    if floor is not None:
        jobs = jobs.filter(pk__gte=floor[0])
    minutes: dict[datetime, tuple[int, int]] = {}
    counted = jobs.exclude(status=JobStatus.CANCELLED).order_by().values_list(Minute("finished_at"), "status")
    for since_1970, status, number in counted.annotate(number=Count("pk")):
        minute = datetime.fromtimestamp(since_1970 * 60, tz=UTC)
        good, bad = minutes.get(minute, (0, 0))
        minutes[minute] = (good + number, bad) if status == JobStatus.COMPLETED else (good, bad + number)
    return Newest(minutes=minutes, since=floor[1] if floor else None)


def window_floor(most: int = WINDOW) -> Floor:
    """Return id and time of the oldest of the newest jobs, or None when there are not more jobs than that."""
    # The key alone first, which the index tells: with the time, PostgreSQL reads the rows that it passes over, too.
    key = Job.objects.order_by("-pk").values_list("pk", flat=True)[most - 1 : most].first()
    return Job.objects.filter(pk=key).values_list("pk", "created_at").first() if key is not None else None


def add_times(stats: dict[str, QueueStats], runs: Iterable[Run]) -> None:
    """Fill in waits and runs, in seconds, of the runs that completed."""
    for run in runs:
        if run.is_good and run.wait is not None and run.run is not None:
            one = stats.setdefault(run.queue, QueueStats(name=run.queue))
            one.waits.append(run.wait)
            one.runs.append(run.run)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that `percent` of them do not exceed (nearest rank), or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The last run of a finished job; times as `Job` has them, `wait` and `run` in seconds (None: it never started)."""

    pk: str
    job_type: str
    queue: str
    is_good: bool
    finished_at: datetime
    wait: float | None
    run: float | None


def newest_runs(floor: Floor, job_type: str | None = None, limit: int = RUNS) -> list[Run]:
    """Return the newest finished jobs, of one type or of all, from the floor on; cancelled ones are no runs."""
    done = Job.objects.filter(status__in=(JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.DEAD))
    if floor is not None:
        done = done.filter(pk__gte=floor[0])
    if job_type is not None:
        done = done.filter(job_type=job_type)
    times = (Seconds("available_at", "started_at"), Seconds("started_at", "finished_at"))
    rows = done.order_by("-pk").values_list("pk", "job_type", "queue", "status", "finished_at", *times)[:limit]
    return [
        Run(
            pk=pk,
            job_type=name,
            queue=queue,
            is_good=status == JobStatus.COMPLETED,
            finished_at=finished_at,
            wait=max(0.0, wait) if wait is not None else None,
            run=run,
        )
        for pk, name, queue, status, finished_at, wait, run in rows
    ]


def deploys(since: datetime) -> list[tuple[datetime, str]]:
    """Return when the first worker process of each release started, of the releases that came after a time, in order.

    From the processes that are alive or have been gone for less than a week; a release that ran before is no deploy.
    """
    first: dict[str, datetime] = {}
    for rows in (WorkerProcess.objects.all(), GoneProcess.objects.all()):
        started = rows.exclude(release="").order_by().values_list("release").annotate(first=Min("started_at"))
        for release, at in started:
            first[release] = min(at, first.get(release, at))
    return sorted((at, release) for release, at in first.items() if at >= since)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What some runs have in common: how many, how many ended badly, and p50, p95 and p99 of waits and runs in seconds."""

    count: int
    bad: int
    wait: tuple[float | None, ...]
    run: tuple[float | None, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Summary:
        """Sum up runs. Only those that completed say how long a run takes."""
        waits = sorted(one.wait for one in runs if one.wait is not None)
        lasted = sorted(one.run for one in runs if one.run is not None and one.is_good)
        return cls(
            count=len(runs),
            bad=sum(not one.is_good for one in runs),
            wait=tuple(percentile(waits, percent) for percent in (50, 95, 99)),
            run=tuple(percentile(lasted, percent) for percent in (50, 95, 99)),
        )


def usual_runs(runs: Iterable[Run]) -> dict[str, float]:
    """Return by job type how long 95 of 100 runs take at most (seconds), of those with enough runs to tell."""
    by_type: dict[str, list[float]] = {}
    for one in runs:
        if one.is_good and one.run is not None:
            by_type.setdefault(one.job_type, []).append(one.run)
    usual = {name: percentile(lasted, 95) for name, lasted in by_type.items() if len(lasted) >= ENOUGH}
    return {name: longest for name, longest in usual.items() if longest is not None}


@dataclass(frozen=True, kw_only=True)
class LimitStats:
    """A limit, or one value of its key.

    A `concurrency` or `rate` of None: any number. `waiting` stops at 10,001 where more than 100,000 jobs are held back in all; of
    so many, the values of a key that are told of stop at 1,000. `started` counts the starts in the time of the rate,
    `next_start_at` says when the first that waits for it may start, and `set_at` when an operator set the limit.
    """

    name: str
    key: str | None
    concurrency: int | None
    rate: str | None
    running: int
    waiting: int
    started: int = 0
    next_start_at: datetime | None = None
    set_at: datetime | None = None

    @property
    def scope(self) -> str:
        """The limit and the value of its key in one."""
        return scope_of(self.name, self.key, keyed=False) or ""


def limit_stats() -> list[LimitStats]:
    """Return each limit without a key, and each value of a key under which jobs run or are held back."""
    code = declared_limits()
    rows = Limit.objects.in_bulk()
    keyed = {name for name, limit in code.items() if limit.key is not None}
    keyed |= {row.pk for row in rows.values() if row.key}
    scopes: dict[str, tuple[int, int]] = dict.fromkeys({*code, *rows} - keyed, (0, 0))
    taken = LimitSlot.objects.filter(waits=False, job__status=JobStatus.RUNNING).order_by()
    running, waiting = dict(taken.values_list("scope").annotate(Count("pk"))), _held_back()
    scopes |= {scope: (running.get(scope, 0), waiting.get(scope, 0)) for scope in {*running, *waiting}}
    found = [_limit_of(scope, *numbers, code, rows) for scope, numbers in sorted(scopes.items())]
    return _with_rates(found) if any(one.rate for one in found) else found


def _held_back() -> dict[str, int]:
    """Count the jobs that are held back by scope, all of them unless they are many."""
    found = dialect().count_held_back(MOST_HELD_BACK + 1)
    if sum(found.values()) <= MOST_HELD_BACK:
        return found
    return dialect().count_held_back_in(dialect().waited_for(MOST_SCOPES), MOST_OF_KEY + 1)


def _limit_of(scope: str, running: int, waiting: int, code: Mapping[str, Any], rows: Mapping[str, Limit]) -> LimitStats:
    name = name_of_scope(scope)
    row, limit = rows.get(name), code.get(name)
    return LimitStats(
        name=name,
        key=value_of_scope(scope),
        concurrency=row.concurrency_now if row else limit.concurrency if limit else None,
        rate=row.rate_now if row else limit.rate if limit else None,
        running=running,
        waiting=waiting,
        set_at=row.set_at if row else None,
    )


def _with_rates(limits: Sequence[LimitStats]) -> list[LimitStats]:
    """Return limits with what is known of their rates."""
    rates = {one.scope: parse_rate(one.rate) for one in limits if one.rate is not None}
    counted = windows(rates, database_now())
    turns = dict(LimitTurn.objects.values_list("scope", "due_at"))
    return [
        replace(one, started=counted[one.scope].number, next_start_at=turns.get(one.scope)) if one.rate else one
        for one in limits
    ]


@dataclass(frozen=True, kw_only=True)
class KeyStats:
    """The fair keys of a queue's jobs that are ready, or that a limit holds back.

    `keys` stops at 1,001. `largest` are some keys with the most such jobs, the largest first, each with their number, which
    stops at 10,001; of more than 1,000 keys only so many are looked at.
    """

    queue: str
    keys: int
    largest: list[tuple[str, int]]


def key_stats(largest: int = 3) -> list[KeyStats]:
    """Return, for each queue whose waiting jobs have fair keys, how many keys they have, and the keys with the most of them."""
    found = {queue: [Line(queue)] for queue in lines.keyed_queues()}
    if active_limits() is not NO_LIMITS:
        for line in lines.keyed_lines_of_limits(MOST_OF_KEY):
            found.setdefault(line.queue, []).append(line)
    return [_keys_of(queue, found[queue], largest) for queue in sorted(found)]


def _keys_of(queue: str, of_queue: Sequence[Line], largest: int) -> KeyStats:
    keys_at = {
        (line, rank): lines.keys(line, rank, NO_KEY, MOST_KEYS + 1) for line in of_queue for rank in lines.ranks(line)
    }
    known = {key for keys in keys_at.values() for key in keys}
    if largest == 0:
        return KeyStats(queue=queue, keys=min(len(known), MOST_KEYS + 1), largest=[])
    numbers = dict.fromkeys(known, 0)
    for (line, rank), keys in keys_at.items():
        for key, number in lines.numbers(line, rank, keys[:MOST_KEYS], LARGE + 1).items():
            numbers[key] += number
    first = sorted(known, key=lambda key: (-numbers[key], key))[: 3 * largest]
    if more := [key for key in first if numbers[key] > LARGE]:
        counted = [lines.numbers(line, rank, more, MOST_OF_KEY + 1) for line, rank in keys_at]
        numbers |= {key: min(sum(some[key] for some in counted), MOST_OF_KEY + 1) for key in more}
    first.sort(key=lambda key: (-numbers[key], key))
    return KeyStats(
        queue=queue, keys=min(len(known), MOST_KEYS + 1), largest=[(key, numbers[key]) for key in first[:largest]]
    )
