"""Encrypt: bring what is stored up to the site's first key, and encrypt what was stored in plain and is to be encrypted now.

Nothing is decrypted for good: this process may not know a type that another one encrypts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from django.db.models import Model

from django_jobs.conf import get_settings
from django_jobs.db.transactions import transactional
from django_jobs.encryption import KEY, as_stored, renewed, token_of
from django_jobs.exceptions import EncryptionError
from django_jobs.handlers import encrypts_type
from django_jobs.models import Batch, Event, Job, JobStep, Schedule
from django_jobs.payloads import sealed

CHUNK = 100  # rows, each of which may hold a payload and a result of 256 KiB


class Brought(NamedTuple):
    """How many rows were written anew, how many no key of the site reads, and how many somebody had locked."""

    changed: int = 0
    unreadable: int = 0
    locked: int = 0

    def __add__(self, other: object) -> Brought:
        if not isinstance(other, Brought):
            return NotImplemented
        return Brought(*(one + another for one, another in zip(self, other, strict=True)))


class _Table(NamedTuple):
    model: type[Model]
    type_of: str | None  # where the job type of a row is; None: the site says whether its rows are encrypted
    columns: tuple[str, ...]


_TABLES = (
    _Table(Job, "job_type", ("payload", "result")),
    _Table(JobStep, "job__job_type", ("result",)),
    _Table(Schedule, "job_type", ("payload",)),
    _Table(Event, None, ("payload",)),
    _Table(Batch, None, ("callbacks",)),
)


def encrypt_stored() -> Brought:
    """Go through all payloads and results and return what came of it; a row that somebody has locked is left as it is.

    What was written while this ran has the key of whoever wrote it.
    """
    return sum((_through(table) for table in _TABLES), Brought())


def _through(table: _Table) -> Brought:
    brought, last = Brought(), None
    while True:
        rows = table.model._default_manager.order_by("pk")
        with as_stored():
            page = list(
                (rows if last is None else rows.filter(pk__gt=last)).values_list(
                    "pk", *table.columns, *([table.type_of] if table.type_of else [])
                )[:CHUNK]
            )
        if not page:
            return brought
        last = page[-1][0]
        wanted = {row[0]: encrypts_type(row[-1]) if table.type_of else get_settings().ENCRYPT for row in page}
        news = {row[0]: _new(row[1:], table.columns, wanted[row[0]]) for row in page}
        brought += Brought(unreadable=sum(new is None for new in news.values()))
        if stale := [pk for pk, new in news.items() if new]:
            brought += _rewrite(table, stale, wanted)


@transactional
def _rewrite(table: _Table, keys: Collection[Any], wanted: Mapping[Any, bool]) -> Brought:
    """Write rows anew, as they are under their locks: a job may have ended meanwhile."""
    locked = table.model._default_manager.filter(pk__in=keys).order_by("pk").select_for_update(skip_locked=True)
    with as_stored():
        rows = list(locked.values_list("pk", *table.columns))
    changed = 0
    for key, *values in rows:
        if new := _new(values, table.columns, wanted[key]):
            changed += table.model._default_manager.filter(pk=key).update(**new)
    return Brought(changed, locked=len(keys) - len(rows))


def _new(values: Sequence[Any], columns: Sequence[str], is_wanted: bool) -> dict[str, Any] | None:
    """Return the columns of a row that are to be written anew; None when no key reads what is there."""
    new: dict[str, Any] = {}
    try:
        for name, value in zip(columns, values, strict=False):
            fresh = _new_callbacks(value) if name == "callbacks" else _new_value(value, is_wanted)
            if fresh is not None:
                new[name] = fresh
    except EncryptionError:
        return None
    return new


def _new_value(value: Any, is_wanted: bool) -> Any:
    """Return a value as it is to be stored instead; None when it may stay."""
    token = token_of(value)
    if token is None:
        return sealed(value) if is_wanted and value is not None else None
    fresh = renewed(token)
    return None if fresh is None else {KEY: fresh}


def _is_callback(value: Any) -> bool:
    """Say whether this is a callback, and nothing that a hand has written in its place."""
    return isinstance(value, dict) and {"payload", "job_type"} <= value.keys()


def _new_callbacks(callbacks: Any) -> dict[str, Any] | None:
    """Return the callbacks of a batch with their payloads as they are to be stored; None when they may stay."""
    if not isinstance(callbacks, dict):
        return None
    news = {
        name: fresh
        for name, callback in callbacks.items()
        if _is_callback(callback)
        and (fresh := _new_value(callback["payload"], encrypts_type(callback["job_type"]))) is not None
    }
    if not news:
        return None
    return {
        name: {**callback, "payload": news[name]} if name in news else callback for name, callback in callbacks.items()
    }
