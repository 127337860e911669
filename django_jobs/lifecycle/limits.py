"""Limits: moves on their rows, which say what the code declares and what an operator has set in its place."""

from __future__ import annotations

from django_jobs.conf import this_site
from django_jobs.db.transactions import after_commit, transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.limit import MOST_AT_ONCE, Limit, parse_rate
from django_jobs.models import Limit as LimitRow
from django_jobs.models.fields import DbNow
from django_jobs.names import did_you_mean
from django_jobs.numbers import is_integer
from django_jobs.text import shown

from .active_limits import declared_limits, forget_numbers
from .slots import count_running, sweep


@transactional
def write_declared() -> None:
    """Write the rows of the limits that the code declares, with its numbers; drop those it does not declare any more."""
    code = declared_limits()
    there = LimitRow.objects.in_bulk()
    for name, limit in sorted(code.items()):
        columns = _columns(limit)
        row = there.get(name)
        if row is None:
            LimitRow.objects.update_or_create(name=name, defaults=columns)
        elif any(getattr(row, key) != value for key, value in columns.items()):
            LimitRow.objects.filter(pk=name).update(**columns)
    removed = LimitRow.objects.filter(site=this_site()).exclude(pk__in=code)
    removed.filter(set_at__isnull=True).delete()
    removed.update(declared=False)
    after_commit(_count_by_new_numbers)


def _columns(limit: Limit) -> dict[str, object]:
    return {
        "key": limit.key_text[:200],
        "concurrency": limit.concurrency,
        "rate": limit.rate,
        "declared": True,
        "site": this_site(),
    }


class Keep:
    """In place of a number: leave it as it is."""


KEEP = Keep()


@transactional
def set_limit(name: str, *, concurrency: int | Keep | None = KEEP, rate: str | Keep | None = KEEP) -> None:
    """Set the numbers of a limit in place of the code's, until it is reset; None: any number may run, or start.

    Raises InvalidJob for a limit that nobody declares, or a number that is none.
    """
    if concurrency is not None and concurrency is not KEEP and not is_integer(concurrency, 1, MOST_AT_ONCE):
        raise InvalidJob(f"concurrency={shown(concurrency)}: give an integer from 1 to {MOST_AT_ONCE}, or none")
    if rate is not None and rate is not KEEP:
        parse_rate(rate)
    row = _lock_row(name)
    LimitRow.objects.filter(pk=name).update(
        set_at=DbNow(),
        set_concurrency=row.concurrency_now if concurrency is KEEP else concurrency,
        set_rate=row.rate_now if rate is KEEP else rate,
    )
    after_commit(_go_by_new_numbers)


@transactional
def reset_limit(name: str) -> None:
    """Let the code's numbers hold again. Raises InvalidJob for a limit that nobody declares."""
    _lock_row(name)
    LimitRow.objects.filter(pk=name).update(set_at=None, set_concurrency=None, set_rate=None)
    LimitRow.objects.filter(pk=name, declared=False).delete()
    after_commit(_go_by_new_numbers)


def _go_by_new_numbers() -> None:
    """Do so here at once; other processes do within FRESH_SECONDS."""
    _count_by_new_numbers()
    sweep()


def _count_by_new_numbers() -> None:
    forget_numbers()
    count_running()


def _lock_row(name: str) -> LimitRow:
    """Lock the row of a limit and return it; write it when only the code of this process knows of it."""
    if row := LimitRow.objects.filter(pk=name).select_for_update().first():
        return row
    limit = declared_limits().get(name)
    if limit is None:
        known = {*declared_limits(), *LimitRow.objects.values_list("pk", flat=True)}
        hint = did_you_mean(name, known) or " `manage.py jobs limits` lists them."
        raise InvalidJob(f"there is no limit {shown(name)}.{hint}")
    return LimitRow.objects.update_or_create(name=name, defaults=_columns(limit))[0]
