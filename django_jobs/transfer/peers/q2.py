"""The schedules of django-q2, and what waits in its queue where that is in the database (its ORM broker)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone

from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import database_now
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.submit import submit
from django_jobs.scheduling.store import create_schedule
from django_jobs.text import shown

from .found import Found, payload_for, rows

MONTHS_APART = {"M": 1, "BM": 2, "Q": 3, "Y": 12}
SHORTEST_MONTH = 28
# Of a task's options: what only its result is for, and what is taken over. Others mean something that nobody here would do.
MEANINGLESS = {"save", "cached", "ack_failure", "started", "name", "cluster"}
TAKEN = {"id", "func", "args", "kwargs", "group", "timeout"}


def schedules_and_tasks() -> Iterator[Found]:
    """Find the schedules, then what waits."""
    for row in rows("django_q", "Schedule").order_by("pk"):
        found = partial(Found, "schedule", _name(row), row.func)
        if row.repeats == 0:
            yield found(why="it has ended there")
            continue
        try:
            timing = _timing(row)
        except InvalidJob as error:
            yield found(why=str(error))
        else:
            yield found(take=partial(_take_schedule, row, timing))
    yield from _waiting_tasks()


def _conf() -> Any:
    """Return the settings of django-q2, as it reads them."""
    from django_q.conf import Conf

    return Conf


def _name(row: Any) -> str:
    return row.name or f"{row.func} {row.pk}"


def _timing(row: Any) -> dict[str, Any]:
    """Return when it ticks, by the clock of its time zone where django-q2 goes by it."""
    if row.hook:
        raise InvalidJob(
            f"it calls {row.hook} with each result: let that depend on the job, and submit both in a handler"
        )
    if row.intended_date_kwarg:
        raise InvalidJob("its function gets the time of the tick: a job has it in its metadata, as `tick`")
    kind = row.schedule_type
    if kind != "O" and row.repeats > 0:
        raise InvalidJob(f"it is to run {row.repeats} more times, and schedules have no end here")
    if kind == "C":
        return {"cron": row.cron, "timezone": _conf().TIME_ZONE}
    if row.next_run is None:
        raise InvalidJob("it has no next run")
    if kind == "O":
        return {"at": row.next_run}
    if kind in ("I", "H"):
        return {"every": 3600 if kind == "H" else 60 * (row.minutes or 1)}
    if kind == "BW":
        raise InvalidJob(
            "every second week has no equal here: take every=timedelta(days=14), which does not follow the clocks' changes"
        )
    return {
        "cron": _cron(kind, timezone.localtime(row.next_run, ZoneInfo(_conf().TIME_ZONE))),
        "timezone": _conf().TIME_ZONE,
    }


def _cron(kind: str, first: datetime) -> str:
    """Return the expression of what runs at the time of day of its next run, on that day of the week, month or year."""
    at = f"{first.minute} {first.hour}"
    if kind == "D":
        return f"{at} * * *"
    if kind == "W":
        return f"{at} * * {first.isoweekday() % 7}"
    if first.day > SHORTEST_MONTH:
        raise InvalidJob(f"not every month has a day {first.day}")
    step = MONTHS_APART[kind]
    months = ",".join(str(month) for month in range(1, 13) if (month - first.month) % step == 0)
    return f"{at} {first.day} {'*' if step == 1 else months} *"


def _arguments(row: Any) -> tuple[list[Any], dict[str, Any]]:
    """Read what django-q2 reads: Python literals, keywords as a dict or as they stand in a call."""
    try:
        args = ast.literal_eval(row.args) if row.args else ()
        args = list(args) if isinstance(args, tuple) else [args]
        if not row.kwargs:
            return args, {}
        if row.kwargs.lstrip().startswith("{"):
            return args, dict(ast.literal_eval(row.kwargs))
        call = ast.parse(f"f({row.kwargs})", mode="eval").body
        assert isinstance(call, ast.Call)
        return args, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        raise InvalidJob(f"its arguments are no literals of Python: {shown([row.args, row.kwargs])}") from None


def _take_schedule(row: Any, timing: dict[str, Any]) -> None:
    args, kwargs = _arguments(row)
    options = kwargs.pop("q_options", {})
    if unlike := sorted(options.keys() - {"group", *MEANINGLESS}):
        raise InvalidJob(f"its options {', '.join(unlike)} are said at the handler here")
    payload = payload_for(registry.get(row.func), args, kwargs)
    ours = create_schedule(_name(row), row.func, payload=payload, queue=row.cluster or None, **timing)
    if "every" in timing:  # in step with its ticks there
        ours.next_run_at = row.next_run
        ours.save(using=jobs_alias())
    row.repeats = 0
    row.save(update_fields=["repeats"])


def _waiting_tasks() -> Iterator[Found]:
    """Find what no cluster has taken; it is read as a cluster reads it, by the signature of SECRET_KEY."""
    conf = _conf()
    if conf.ORM not in (None, jobs_alias()):
        raise InvalidJob(
            f"django_q waits in the database {conf.ORM!r}, and jobs are in {jobs_alias()!r}: one transaction covers one"
        )
    for row in rows("django_q", "OrmQ").filter(lock__lte=database_now()).order_by("pk"):
        task = row.task
        if "func" not in task:
            yield Found("job", str(row.pk), "", why=f"it cannot be read ({task['id'].lstrip('*')})")
            continue
        function = task["func"]
        job_type = function if isinstance(function, str) else f"{function.__module__}.{function.__qualname__}"
        queue = None if row.key == conf.PREFIX else row.key
        yield Found("job", task["id"], job_type, take=partial(_take_task, row, task, job_type, queue))


def _take_task(row: Any, task: dict[str, Any], job_type: str, queue: str | None) -> None:
    if unlike := sorted(name for name in task.keys() - MEANINGLESS - TAKEN if task[name]):
        raise InvalidJob(f"its {', '.join(unlike)} {shown([task[name] for name in unlike])} has no equal here")
    payload = payload_for(registry.get(job_type), list(task["args"]), task["kwargs"])
    options: dict[str, Any] = {"job_id": task["id"], "queue": queue, "timeout_seconds": task.get("timeout")}
    if task.get("group"):
        options["metadata"] = {"group": str(task["group"])}
    submit(job_type, payload, options={name: value for name, value in options.items() if value is not None})
    row.delete()
