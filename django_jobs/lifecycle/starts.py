"""Starts: the log by which rates are counted, and the turns of those that wait for one.

A rate is about starts of handlers, and a claimed job starts later than its claim: in a moment, or after a second where it runs in
a child of its own. So a claim is not counted as a start. From its claim on, a job counts as one that starts this very moment
(`LimitSlot.starts`); right before its handler is called, `record_start` writes down that it does. Who is killed in between has
started nothing, and nothing is left of it. The log does not refer to the job: a start counts also when its job was pruned, was
deleted or runs again.

What is written down is the latest moment at which the handler can have begun: a little later than now (`Rate.late`) until the
job is settled; then it began before that (`began_by_now`). So one that its handler sees late does not come too near to others,
and a rate of short jobs loses nothing by it.

When a rate lets nobody start, the first moment at which it will is known, and kept as the scope's turn. Workers look at the turns
and not at the jobs that wait for them. They let jobs in a moment before (EARLY_SECONDS), and claims take them then, each with the
moment before which it must not start: to let in and to claim takes time, which the rate would lose.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Max, Min

from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_turn
from django_jobs.db.transactions import database_now, transactional
from django_jobs.limit import Rate, name_of_scope
from django_jobs.models import LimitStart, LimitTurn
from django_jobs.models.fields import DbNow

from .active_limits import ActiveLimits, active_limits, is_removed

EARLY_SECONDS = 0.05
MOST_EARLY = 500
MOST_TURNS = 50
MOST_LOOKED_AT = 5000  # some may be of limits that only other processes know
MOST_RECORDS = 3  # of one start, as long as each takes so long that it is not true any more
AGAIN_SECONDS = 0.25  # until another process lets in whom one was about to let in that died
OVERDUE_SECONDS = 1.0
CLOCK_SECONDS = 5.0  # a start so much later than now is none that a clock that goes on has written
PRUNE_ROWS = 500


class Window(NamedTuple):
    """The starts that a rate counts now.

    `first` is the oldest of them. `leaving` are those that count only for a moment more, each as the time when it does not.
    `is_ahead` says that some lie in the future, because the clock was set back.
    """

    number: int = 0
    first: datetime | None = None
    leaving: tuple[datetime, ...] = ()
    is_ahead: bool = False


# --- the log


def record_start(job_id: str, fence: int, scopes: Sequence[str]) -> bool:
    """Record in scopes with a rate that the handler of a claimed job is about to be called; return False if the job was lost.

    Where the record itself took long (a slow disk, a busy host), it is made anew, so that it is true when this returns.
    """
    limits = active_limits()
    rates = {scope: rate for scope in scopes if (rate := limits.rate(scope)) is not None}
    patience = min((rate.late / 2 for rate in rates.values()), default=0.0)
    for number in range(MOST_RECORDS):
        began = time.monotonic()
        if not (_record_again(job_id, fence, rates) if number else _record(job_id, fence, rates)):
            return False
        if time.monotonic() - began <= patience:
            break
    return True


@transactional
def _record(job_id: str, fence: int, rates: Mapping[str, Rate]) -> bool:
    scopes = {scope: (rate.late, rate.kept) for scope, rate in rates.items()}
    return dialect().record_start(job_id, fence, _name(job_id, fence), scopes)


@transactional
def _record_again(job_id: str, fence: int, rates: Mapping[str, Rate]) -> bool:
    now = database_now()
    for scope, rate in rates.items():
        late = timedelta(seconds=rate.late)
        lately = LimitStart.objects.filter(scope=scope, started_at__gt=now - timedelta(minutes=1))
        lately.filter(run=_name(job_id, fence)).update(started_at=now + late)
    return True


def _name(job_id: str, fence: int) -> str:
    """Return what names a run in the log."""
    return f"{job_id} {fence}"


def began_by_now(runs: Iterable[tuple[str, int, Sequence[str]]]) -> None:
    """Let the starts of runs that have ended, given as job id, fence and scopes, count as of now at the latest."""
    of_runs = [(_name(job_id, fence), scopes) for job_id, fence, scopes in runs if scopes]
    if of_runs:
        scopes = {scope for _, some in of_runs for scope in some}
        names = [name for name, _ in of_runs]
        LimitStart.objects.filter(scope__in=scopes, started_at__gt=DbNow(), run__in=names).update(started_at=DbNow())


def windows(rates: Mapping[str, Rate], now: datetime) -> dict[str, Window]:
    """Return the starts that count at a time, which a caller that locks the scopes reads after that."""
    by_seconds: dict[int, list[str]] = {}
    for scope, rate in rates.items():
        by_seconds.setdefault(rate.seconds, []).append(scope)
    found = dict.fromkeys(rates, Window())
    for seconds, scopes in by_seconds.items():
        length = timedelta(seconds=seconds)
        soon = now - length + timedelta(seconds=EARLY_SECONDS)
        counted = LimitStart.objects.filter(started_at__gt=now - length)
        rows = counted.filter(scope__in=scopes).values_list("scope")
        for scope, number, first, last in rows.annotate(Count("pk"), Min("started_at"), Max("started_at")):
            found[scope] = Window(number, first, is_ahead=last > now + timedelta(seconds=CLOCK_SECONDS))
        leaving: dict[str, list[datetime]] = {}
        if some := [scope for scope in scopes if (first := found[scope].first) is not None and first <= soon]:
            first_ones = counted.filter(scope__in=some, started_at__lte=soon).order_by("started_at")
            for scope, moment in first_ones.values_list("scope", "started_at")[:MOST_EARLY]:
                leaving.setdefault(scope, []).append(moment + length)
        for scope, moments in leaving.items():
            found[scope] = found[scope]._replace(leaving=tuple(moments))
    return found


def mend(scopes: Sequence[str]) -> None:
    """Let starts that lie ahead, because the database's clock was set back, count as of now: they would count for hours."""
    LimitStart.objects.filter(scope__in=scopes, started_at__gt=DbNow()).update(started_at=DbNow())


def prune_starts() -> int:
    """Delete some starts that no rate counts any more; return how many."""
    expired = LimitStart.objects.filter(expires_at__lte=DbNow()).order_by("expires_at")
    ids = list(expired.values_list("pk", flat=True)[:PRUNE_ROWS])
    return LimitStart.objects.filter(pk__in=ids).delete()[0] if ids else 0


# --- turns


def turn_of(scope: str, rate: Rate, window: Window, about_to_start: int, now: datetime) -> datetime:
    """Return when those that wait are to be let in, where a rate lets nobody start now: a moment before the next may start."""
    over = window.number + about_to_start - rate.number
    length = timedelta(seconds=rate.seconds)
    first = window.first
    if first is None or over >= window.number:
        first = now  # one that has yet to start is the first to make room
    elif over > 0:
        counted = LimitStart.objects.filter(scope=scope, started_at__gt=now - length).order_by("started_at")
        first = next(iter(counted.values_list("started_at", flat=True)[over : over + 1]), now)
    return min(first, now) + length - timedelta(seconds=EARLY_SECONDS)  # `first` may lie ahead until its job is settled


def write_turns(turns: Mapping[str, datetime | None], now: datetime) -> None:
    """Keep the turns of scopes that the caller has locked; None: nobody waits for its rate."""
    there = dict(LimitTurn.objects.filter(scope__in=turns).values_list("scope", "due_at"))
    changed = {scope: due for scope, due in turns.items() if due is not None and there.get(scope) != due}
    if changed:
        connection_needs_target = dialect().connection.features.supports_update_conflicts_with_target
        LimitTurn.objects.bulk_create(
            [LimitTurn(scope=scope, due_at=due) for scope, due in sorted(changed.items())],
            update_conflicts=True,
            update_fields=["due_at"],
            unique_fields=["scope"] if connection_needs_target else None,
        )
        notify_turn((min(changed.values()) - now).total_seconds())
    if over := [scope for scope in there if turns[scope] is None]:
        LimitTurn.objects.filter(pk__in=over).delete()


@transactional
def take_due_turns() -> list[str]:
    """Return scopes whose turn has come, for the caller to let jobs in; other processes leave these to it for a moment."""
    due = LimitTurn.objects.filter(due_at__lte=DbNow()).order_by("due_at")
    limits = active_limits()
    found = list(due.values_list("pk", flat=True)[:MOST_LOOKED_AT])
    forget_turns(without_rate(found, limits))
    ours = [scope for scope in found if limits.rate(scope) is not None]
    free = due.filter(pk__in=ours).select_for_update(skip_locked=True)
    scopes = list(free.values_list("pk", flat=True)[:MOST_TURNS]) if ours else []
    if scopes:
        later = database_now() + timedelta(seconds=AGAIN_SECONDS)
        LimitTurn.objects.filter(pk__in=scopes).update(due_at=later)
    return scopes


def without_rate(scopes: Iterable[str], limits: ActiveLimits) -> list[str]:
    """Return the scopes where nobody waits for a rate: their limit has none, or was removed."""
    is_over: dict[str, bool] = {}  # by the limit's name, for that may be asked of the database
    some: list[str] = []
    for scope in scopes:
        name = name_of_scope(scope)
        if name not in is_over:
            is_over[name] = limits.rate(scope) is None and (name in limits.by_name or is_removed(name))
        if is_over[name]:
            some.append(scope)
    return some


def forget_turns(scopes: Sequence[str]) -> None:
    """Delete the turns of scopes that have no rate any more."""
    turns = LimitTurn.objects.filter(pk__in=scopes)
    if scopes and turns.exists():
        turns.delete()


def seconds_until_turn() -> float | None:
    """Return the seconds until the next turn, negative when it is overdue; None when nobody waits for one."""
    row = LimitTurn.objects.order_by("due_at").values_list("due_at", DbNow()).first()
    return None if row is None else float((row[0] - row[1]).total_seconds())
