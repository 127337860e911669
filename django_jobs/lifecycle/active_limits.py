"""Which limits are in force in this process, and with which numbers. Nothing is changed here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from django_jobs.conf import JobsSettings, get_settings
from django_jobs.db.connections import jobs_alias
from django_jobs.handlers import registry
from django_jobs.limit import MOST_AT_ONCE, Limit, Rate, name_of_scope, parse_rate, queue_owner, scope_of, type_owner
from django_jobs.models import Limit as LimitRow
from django_jobs.submission import DEFAULT_QUEUE

FRESH_SECONDS = 2.0  # how old the numbers may be that a process goes by


class ActiveLimit(NamedTuple):
    """A limit in force. Without both numbers, an operator has lifted it."""

    name: str
    keyed: bool
    concurrency: int | None
    rate: Rate | None

    @property
    def holds(self) -> bool:
        """Whether it holds any job."""
        return self.concurrency is not None or self.rate is not None

    def scope(self, value: str | None) -> str | None:
        """Return the scope of a job with this value of the key; None when the limit does not hold it."""
        return scope_of(self.name, value, keyed=self.keyed) if self.holds else None


class ActiveLimits(NamedTuple):
    """The limits in force in this process."""

    types: Mapping[str, ActiveLimit]
    queues: Mapping[str, ActiveLimit]
    by_name: Mapping[str, ActiveLimit]

    def hold(self, job_type: str, queue: str) -> bool:
        """Say whether a limit may hold jobs of a type in a queue."""
        return job_type in self.types or queue in self.queues

    def scopes(self, job_type: str, queue: str, limit_key: str | None, queue_limit_key: str | None) -> tuple[str, ...]:
        """Return the scopes in which a job needs a slot: that of its queue and that of its type, as far as they hold it."""
        of_queue, of_type = self.queues.get(queue), self.types.get(job_type)
        # A submit may give the value for a type whose limit has no key; one for a queue is left over from a key that it had.
        scopes = (
            of_queue and of_queue.scope(queue_limit_key if of_queue.keyed else None),
            of_type and of_type.scope(limit_key),
        )
        return tuple(scope for scope in scopes if scope is not None)

    def rated(self, job_type: str, queue: str, limit_key: str | None, queue_limit_key: str | None) -> tuple[str, ...]:
        """Return those of the scopes of a job that have a rate."""
        scopes = self.scopes(job_type, queue, limit_key, queue_limit_key)
        return tuple(scope for scope in scopes if self.rate(scope) is not None)

    def concurrency(self, scope: str) -> int | None:
        """Return how many jobs of a scope may run at once; None when its limit is not known here."""
        limit = self.by_name.get(name_of_scope(scope))
        if limit is None:
            return None
        return MOST_AT_ONCE if limit.concurrency is None else limit.concurrency

    def rate(self, scope: str) -> Rate | None:
        """Return how many jobs of a scope may start in a time; None for any number, or when its limit is not known here."""
        limit = self.by_name.get(name_of_scope(scope))
        return None if limit is None else limit.rate

    def most_at_once(self, scope: str) -> int:
        """Return how many jobs of a scope may start now when none has lately."""
        rate = self.rate(scope)
        return min(self.concurrency(scope) or 0, MOST_AT_ONCE if rate is None else rate.number)

    @property
    def have_rates(self) -> bool:
        """Whether a limit in force has a rate."""
        return any(limit.rate is not None for limit in self.by_name.values())


NO_LIMITS = ActiveLimits({}, {}, {})


class _Known:
    """What this process knows: the limits of its code and settings, and the numbers of their rows as last read."""

    def __init__(self) -> None:
        self._of_queues: dict[str, dict[str, Limit]] = {}  # of JobQueue objects, by database
        self._types: dict[str, Limit] = {}
        self._queues: dict[str, Limit] = {}
        self._version = -1  # of the registry that these were read from
        self._settings: JobsSettings | None = None
        self._active: dict[str, tuple[float, ActiveLimits]] = {}
        # Those whose claims look out for limits from the start; jobs of a limited type may turn up in others.
        self.watched_queues: set[str] = set()

    def declared(self) -> tuple[dict[str, Limit], dict[str, Limit]]:
        """Return the limits that the code declares for the jobs of the current database, by type and by queue."""
        settings = get_settings()
        if self._version != registry.version or self._settings is not settings:
            limited = [handler for handler in registry if handler.limit is not None]
            self._types = {handler.job_type: handler.limit for handler in limited if handler.limit is not None}
            self._queues = {name: queue.limit for name, queue in settings.QUEUES.items() if queue.limit is not None}
            self.watched_queues = {*self._queues, *(handler.queue or DEFAULT_QUEUE for handler in limited)}
            self.watched_queues.update(*self._of_queues.values())
            self._version, self._settings = registry.version, settings
            self._active.clear()
        if not self._of_queues:
            return self._types, self._queues
        return self._types, {**self._queues, **self._of_queues.get(jobs_alias(), {})}

    def active(self) -> ActiveLimits:
        types, queues = self.declared()
        if not types and not queues:
            return NO_LIMITS
        alias = jobs_alias()
        read_at, found = self._active.get(alias, (float("-inf"), NO_LIMITS))
        if time.monotonic() - read_at > FRESH_SECONDS:
            found = _active_limits(types, queues, {row.name: row for row in LimitRow.objects.all()})
            self._active[alias] = (time.monotonic(), found)
        return found

    def declare_queue(self, queue: str, limit: Limit) -> None:
        limits = self._of_queues.setdefault(jobs_alias(), {})
        if limits.get(queue) != limit:
            limits[queue] = limit
            self._version = -1

    def of_queue(self, queue: str) -> Limit | None:
        return self.declared()[1].get(queue)

    def of_queue_object(self, queue: str) -> Limit | None:
        return self._of_queues.get(jobs_alias(), {}).get(queue) if self._of_queues else None

    def forget_numbers(self) -> None:
        self._active.clear()


def _active_limits(
    types: Mapping[str, Limit], queues: Mapping[str, Limit], rows: Mapping[str, LimitRow]
) -> ActiveLimits:
    def active(limit: Limit, owner: str) -> ActiveLimit:
        name = limit.full_name(owner)
        row = rows.get(name)
        concurrency, rate = (row.concurrency_now, row.rate_now) if row else (limit.concurrency, limit.rate)
        return ActiveLimit(name, limit.key is not None, concurrency, None if rate is None else parse_rate(rate))

    of_types = {name: active(limit, type_owner(name)) for name, limit in types.items()}
    of_queues = {name: active(limit, queue_owner(name)) for name, limit in queues.items()}
    return ActiveLimits(of_types, of_queues, {one.name: one for one in (*of_types.values(), *of_queues.values())})


_known = _Known()


def active_limits() -> ActiveLimits:
    """Return the limits in force, with numbers at most FRESH_SECONDS old; NO_LIMITS when the code declares none."""
    return _known.active()


def is_watched(queue: str) -> bool:
    """Say whether jobs that a limit may hold are to be expected in a queue; `active_limits` was asked before."""
    return queue in _known.watched_queues


def watch(queue: str) -> None:
    """Expect jobs that a limit may hold in a queue from now on."""
    _known.watched_queues.add(queue)


def declare_queue(queue: str, limit: Limit) -> None:
    """Let a limit hold for a queue of the current database in this process, as one of the settings does."""
    _known.declare_queue(queue, limit)


def limit_of_queue(queue: str) -> Limit | None:
    """Return the limit that this process declares for a queue of the current database."""
    return _known.of_queue(queue)


def limit_of_queue_object(queue: str) -> Limit | None:
    """Return the limit that this process alone declares for a queue of the current database, with a JobQueue."""
    return _known.of_queue_object(queue)


def declared_limits() -> dict[str, Limit]:
    """Return the limits that the code and the settings declare, by their full names."""
    types, queues = _known.declared()
    found = {limit.full_name(type_owner(name)): limit for name, limit in types.items()}
    return found | {limit.full_name(queue_owner(name)): limit for name, limit in queues.items()}


def forget_queues() -> None:
    """Forget the limits of JobQueue objects, and everything that was read; for tests."""
    _known.__init__()  # type: ignore[misc]


def forget_numbers() -> None:
    """Read the numbers anew when they are asked for next."""
    _known.forget_numbers()


def is_removed(name: str) -> bool:
    """Say whether a limit that this process does not know was removed: its type has none here, or no code declares it."""
    kind, _, owner = name.partition(":")
    if kind == "type" and registry.find(owner) is not None:
        return True
    return not LimitRow.objects.in_use().filter(pk=name).exists()
