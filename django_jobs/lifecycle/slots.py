"""Slots: which claimed jobs a limit lets run, which it holds back, and who is let in when there is room.

A running job has a slot in each of its scopes: its row says that it runs, and its LimitSlot rows say where that counts. A claim
decides under the lock of the scopes; a job that gets no slot is held back, out of the index that claims read. Whatever ends a run
lets the first one that waits in again, under the same lock and in the same transaction, and a claim decides anew. So where a slot
is free and jobs wait, the first one of each queue has been let in: no slot is reserved for a queue that nobody serves.

Where a limit has a rate, a claim counts the starts of late as well (`starts`), and the first that wait are let in when their turn
has come: `take_turns`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, NamedTuple, Protocol, TypeVar

from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.limits import SLOT_COLUMNS
from django_jobs.db.dialects.words import SLOT
from django_jobs.db.lines import NO_KEY, InLine, Line
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import after_commit, database_now, transactional
from django_jobs.handlers import registry
from django_jobs.limit import MOST_AT_ONCE, Rate, name_of_scope
from django_jobs.models import Job, JobStatus, LimitSlot, LimitTurn

from . import starts, turns
from .active_limits import NO_LIMITS, ActiveLimits, active_limits, is_removed

MOST_COMPARED = 200  # with more free slots than this, who is first does not matter
MOST_AHEAD = 1_000
STEP = 500
SCOPES_PER_STATEMENT = 50
SCOPES_PER_SWEEP = 1_000
T = TypeVar("T")


class Claimed(Protocol):
    """What is asked of a claimed job: a ClaimedJob."""

    @property
    def id(self) -> str: ...
    @property
    def job_type(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def available_at(self) -> Any: ...
    @property
    def fair_key(self) -> str: ...


class Admitted(NamedTuple):
    """A job that may run: its scopes with a rate, and the time (`time.monotonic`) before which it must not start."""

    rated: tuple[str, ...]
    not_before: float


class Slot(NamedTuple):
    """What a LimitSlot says of a job: it runs, or may, or waits in a scope; and whether a start is to come that a rate counts."""

    scope: str
    waits: bool
    starts: bool


class Waiter(NamedTuple):
    """A job that waits for a slot; without a type where turns or ageing choose who is next."""

    rank: int
    since: Any
    id: str
    job_type: str = ""
    limit_key: str | None = None
    queue_limit_key: str | None = None
    is_overtaken: bool | None = None  # by a ready job that was not let in; None: nobody has looked


class Taker(NamedTuple):
    """A worker thread that settles, has no other job to run, and takes who is next in the same transaction.

    `takes` says whether it runs jobs of a queue, `most` how many it takes.
    """

    process_id: str
    takes: Callable[[str], bool]
    most: int


SlotRow = tuple[
    str, str, bool, bool, str, int, Any, str | None
]  # job id, scope, waits, starts, queue, rank, since, fair key


# --- who gets a slot


def admit(
    jobs: Sequence[Claimed], limits: ActiveLimits, process_id: str, *, overtakes: bool = False
) -> dict[str, Admitted]:
    """Give slots to jobs of one queue that a process has claimed, in claim order; hold the others back.

    Args:
        jobs: claimed jobs that a limit may hold.
        overtakes: whether they go before others that wait in the same queue and come first in claim order.

    Returns those that may run, by id. What is not the process's any more is left as it is.
    """
    keys = {job_id: of_job for job_id, *of_job in dialect().limit_keys([job.id for job in jobs], process_id)}
    ours = [job for job in jobs if job.id in keys]
    wanted = {job.id: limits.scopes(job.job_type, job.queue, *keys[job.id][:2]) for job in ours}
    fair_keys = {job_id: fair_key for job_id, (_, _, fair_key) in keys.items()}
    scopes = _Scopes(limits, (scope for scopes in wanted.values() for scope in scopes))
    there = _slots_of([*wanted])  # under the lock: what is read before it may be old on MariaDB
    scopes.hand_back(slot for slots in there.values() for slot in slots)
    if ours and not overtakes:
        scopes.see_who_comes_first(ours)
    slots: dict[str, set[Slot]] = {}
    held: list[str] = []
    for job in ours:
        full = scopes.take(job, wanted[job.id])
        taken = wanted[job.id] if full is None else [full]
        slots[job.id] = {Slot(scope, full is not None, limits.rate(scope) is not None) for scope in taken}
        if full is not None:
            held.append(job.id)
    _write_slots(ours, there, slots, fair_keys)
    if held:
        dialect().undo_claim(held, pending_limits=1)
    scopes.serve_turns()
    scopes.let_in()
    if scopes.have_turns and held:
        _tell_turns(held)
    now = (database_now(), time.monotonic()) if scopes.not_before else None
    return {
        job_id: Admitted(
            tuple(scope for scope in wanted[job_id] if limits.rate(scope) is not None),
            _monotonic(scopes.not_before[job_id], *now) if now and job_id in scopes.not_before else 0.0,
        )
        for job_id in keys.keys() - set(held)
    }


def _monotonic(moment: datetime, now: datetime, monotonic: float) -> float:
    return monotonic + (moment - now).total_seconds()


def _tell_turns(held: Sequence[str]) -> None:
    """Write into jobs that wait for a rate when it lets the first of them start: nobody decides by that, and people see it."""
    turn = LimitTurn.objects.filter(scope=OuterRef("scope")).values("due_at")
    waits = (
        LimitSlot.objects.filter(job=OuterRef("pk"), waits=True).annotate(due_at=Subquery(turn)).values("due_at")[:1]
    )
    Job.objects.filter(pk__in=held).update(scheduled_at=Coalesce(Subquery(waits), F("scheduled_at")))


def put_back(ids: Sequence[str]) -> None:
    """Make jobs ready again that the open transaction has claimed and admitted."""
    if ids:
        dialect().undo_claim(ids, pending_limits=0)
        dialect().delete_slots(ids)


def _slots_of(ids: Sequence[str]) -> dict[str, set[Slot]]:
    """Return the slots of jobs that have some: those that were let in."""
    found: dict[str, set[Slot]] = {}
    for job_id, scope, waits, has_yet_to_start in dialect().slots_of(ids) if ids else ():
        found.setdefault(job_id, set()).add(Slot(scope, waits, has_yet_to_start))
    return found


def _write_slots(
    jobs: Iterable[Claimed],
    there: Mapping[str, set[Slot]],
    wanted: Mapping[str, set[Slot]],
    fair_keys: Mapping[str, str | None],
) -> None:
    """Write the slots of jobs, whose rows the caller has locked, where they are other ones than are there."""
    changed = [job for job in jobs if there.get(job.id, set()) != wanted[job.id]]
    if old := [job.id for job in changed if job.id in there]:
        dialect().delete_slots(old)
    insert_slots(
        (job.id, *slot, job.queue, job.rank, job.available_at, fair_keys[job.id])
        for job in changed
        for slot in wanted[job.id]
    )


def insert_slots(rows: Iterable[SlotRow]) -> None:
    """Write slots."""
    values = [
        (job_id, scope, int(waits), int(has_yet_to_start), *rest, _text(available), int(key is not None), key or NO_KEY)
        for job_id, scope, waits, has_yet_to_start, *rest, available, key in rows
    ]
    if values:
        dialect().insert_rows(SLOT, SLOT_COLUMNS, values)


def _text(moment: datetime | str) -> str:
    """Return a time as `insert_rows` takes it: text, in UTC, without its zone."""
    if isinstance(moment, str):
        return moment
    return str(moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None))


def may_run(job: Job) -> bool:
    """Say whether there are slots for a waiting job now, as far as that can be said without a lock."""
    limits = active_limits()
    rooms = _rooms(limits, limits.scopes(job.job_type, job.queue, job.limit_key, job.queue_limit_key))
    return all(room.left > 0 for room in rooms.values())


class _Room:
    """How much of a scope is free: slots, and starts of its rate."""

    def __init__(self, concurrency: int, rate: Rate | None) -> None:
        self.slots = concurrency
        self.rate = rate
        self.starts = MOST_AT_ONCE if rate is None else rate.number
        self.about_to_start = 0
        self.window = starts.Window()
        self.let_in: dict[str, int] = {}  # by queue

    @property
    def left(self) -> int:
        """How many jobs may be claimed, to start now or in a moment."""
        return min(self.slots, self.starts_soon)

    @property
    def starts_soon(self) -> int:
        """How many starts its rate has room for, now or in a moment."""
        return self.starts + len(self.window.leaving)

    @property
    def last_may_start_at(self) -> datetime | None:
        """When the job that was counted last may start; None: at once."""
        return None if self.starts >= 0 else self.window.leaving[-self.starts - 1]

    def take(self, number: int, starting: int) -> None:
        """Count jobs that run, and those of them that have yet to start."""
        self.slots -= number
        if self.rate is not None:
            self.starts -= starting
            self.about_to_start += starting

    def count(self, window: starts.Window) -> None:
        """Count the starts of the time of its rate."""
        self.window = window
        self.starts -= window.number


def _rooms(limits: ActiveLimits, scopes: Iterable[str]) -> dict[str, _Room]:
    """Return what is free in those of the scopes whose limits are known."""
    known = {scope: number for scope in scopes if (number := limits.concurrency(scope)) is not None}
    while True:
        rooms = {scope: _Room(number, limits.rate(scope)) for scope, number in known.items()}
        for chunk in _chunks([*rooms]):
            for scope, queue, running, let_in, starting in dialect().slots_taken(chunk):
                rooms[scope].take(running, starting)
                rooms[scope].let_in[queue] = let_in
        rates = {scope: room.rate for scope, room in rooms.items() if room.rate is not None}
        if not rates:
            return rooms
        windows = starts.windows(rates, database_now())
        yet_to_start = {scope: rooms[scope].about_to_start for scope in rates if rooms[scope].about_to_start}
        # A job that has started in between was counted as both; nobody else is let in while the scopes are locked.
        if yet_to_start == _about_to_start([*yet_to_start]):
            for scope, window in windows.items():
                rooms[scope].count(window)
            return rooms


def _about_to_start(scopes: Sequence[str]) -> dict[str, int]:
    """Return how many jobs have yet to start in those of the scopes that have some."""
    found: Counter[str] = Counter()
    for chunk in _chunks(scopes):
        for scope, _, _, _, starting in dialect().slots_taken(chunk):
            found[scope] += starting
    return {scope: number for scope, number in found.items() if number}


class _Scopes:
    """Scopes whose limits are known, locked until the transaction ends: how much room there is in each, and who waits."""

    def __init__(self, limits: ActiveLimits, scopes: Iterable[str]) -> None:
        known = [scope for scope in sorted(set(scopes)) if limits.concurrency(scope) is not None]
        # The first and the last queue where somebody waits, without a fair key and with one.
        self._waiters: dict[str, list[_Queues]] = {}
        self._ahead: dict[str, list[tuple[Any, ...]]] = {}
        self._in_turn: dict[str, _InTurn] = {}  # where those of the claimed jobs' queue are served in turn
        self._limits = limits
        if known:
            dialect().lock_scopes(known)
        self._rooms = _rooms(limits, known)
        if ahead := [scope for scope, room in self._rooms.items() if room.window.is_ahead]:
            starts.mend(ahead)
            self._rooms = _rooms(limits, known)
        self._awaited: set[str] = set()  # scopes in which one has just been held back
        self.have_turns = False
        self.not_before: dict[str, datetime] = {}  # by job id
        for chunk in _chunks(known):
            for scope, (first, last, first_keyed, last_keyed) in zip(
                chunk, dialect().queues_of_waiters(chunk), strict=True
            ):
                for keyed, start, end in ((False, first, last), (True, first_keyed, last_keyed)):
                    if start is not None and end is not None:
                        self._waiters.setdefault(scope, []).append(_Queues(start, end, keyed))

    def hand_back(self, slots: Iterable[Slot]) -> None:
        """Count slots as free that were counted as taken: those with which jobs were let in that are claimed only now."""
        for slot in slots:
            if not slot.waits and slot.scope in self._rooms:
                self._rooms[slot.scope].take(-1, -int(slot.starts))

    def see_who_comes_first(self, claimed: Sequence[Claimed]) -> None:
        """See which jobs come before the claimed ones of a queue: they wait for a slot, or another claim has taken them."""
        last = claimed[-1]
        contested = {scope: room.left for scope, room in self._rooms.items() if 0 < room.left <= MOST_COMPARED}
        if not contested:
            return
        ageing = registry.queue_settings(last.queue).ageing
        keyed = any(job.fair_key != NO_KEY for job in claimed)
        for scope, free in list(contested.items()):
            if ageing is not None or keyed or last.queue in self._queues_of_waiters(scope, keyed=True):
                self._in_turn[scope] = _InTurn(Line(last.queue, scope), free, ageing, [job.id for job in claimed])
                del contested[scope]
        if not contested:
            return
        self._ahead = {
            scope: [job[:3] for job in jobs]
            for (scope, _), jobs in _first_that_wait(
                [(scope, last.queue, free) for scope, free in contested.items() if scope in self._waiters]
            ).items()
        }
        order = (last.rank, last.available_at, last.id)
        for job_id, job_type, key, queue_key, *since in dialect().ready_ahead(last.queue, order, MOST_AHEAD):
            for scope in self._limits.scopes(job_type, last.queue, key, queue_key):
                if scope in contested:
                    self._ahead.setdefault(scope, []).append((*since, job_id))

    def take(self, job: Claimed, scopes: Sequence[str]) -> str | None:
        """Take a slot in each scope, or in none: then return the one that is full, or where others come first."""
        for scope in scopes:
            if not self._has_room(scope, job):
                self._awaited.add(scope)
                return scope
        for scope in scopes:
            room = self._rooms[scope]
            room.take(1, 1)
            if scope in self._in_turn:
                self._in_turn[scope].take(job)
            if (moment := room.last_may_start_at) is not None:
                self.not_before[job.id] = max(moment, self.not_before.get(job.id, moment))
        return None

    def serve_turns(self) -> None:
        """Keep whose turns the jobs have taken that got a slot."""
        for in_turn in self._in_turn.values():
            in_turn.serve()

    def _has_room(self, scope: str, job: Claimed) -> bool:
        if scope in self._in_turn:
            return self._rooms[scope].left > 0 and self._in_turn[scope].has_room(job)
        order = (job.rank, job.available_at, job.id)
        ahead = sum(other < order for other in self._ahead.get(scope, ()))
        return ahead < self._rooms[scope].left

    def let_in(self, taker: Taker | None = None) -> list[tuple[Any, ...]]:
        """Let those in who are first where there is room: as many in each queue as there is room for; set the turns of others.

        Those that a `taker` takes are claimed instead; returns their rows, as a claim does.
        """
        wanted: list[tuple[str, str, int]] = []
        found: dict[tuple[str, str], list[Waiter]] = {}
        for scope in self._waiters:
            room = self._rooms[scope]
            if room.left <= 0:
                continue
            keyed = {*self._queues_of_waiters(scope, keyed=True)}
            for queue in {*self._queues_of_waiters(scope, keyed=False), *keyed}:
                number = min(room.left, STEP) - room.let_in.get(queue, 0)
                ageing = registry.queue_settings(queue).ageing
                if number > 0 and (queue in keyed or ageing is not None):
                    found[scope, queue] = [
                        Waiter(job.rank, job.since, job.id)
                        for job in turns.first_in_turn(Line(queue, scope), number, ageing)
                    ]
                elif number > 0:
                    wanted.append((scope, queue, number))
        found |= _first_that_wait(wanted)
        left = {scope: room.slots if room.rate is None else 0 for scope, room in self._rooms.items()}
        claimed = _go_on(found, taker, self._limits, left)
        self._set_turns()
        return claimed

    def _set_turns(self) -> None:
        """Keep when the next may start in scopes where somebody waits, and the rate lets nobody start now."""
        rated = {scope: room for scope, room in self._rooms.items() if room.rate is not None}
        if not rated:
            return
        now = database_now()
        due: dict[str, datetime | None] = dict.fromkeys(rated)
        for scope, room in rated.items():
            if room.rate is not None and room.starts_soon <= 0 and (scope in self._waiters or scope in self._awaited):
                due[scope] = starts.turn_of(scope, room.rate, room.window, room.about_to_start, now)
        starts.write_turns(due, now)
        self.have_turns = any(due.values())

    def _queues_of_waiters(self, scope: str, *, keyed: bool) -> Iterator[str]:
        for queues in self._waiters.get(scope, ()):
            if queues.keyed == keyed:
                queue: str | None = queues.first
                while queue is not None:
                    yield queue
                    is_last = queue >= queues.last
                    queue = None if is_last else dialect().next_queue_of_waiters(scope, queue, keyed=keyed)


def _go_on(
    found: Mapping[tuple[str, str], Sequence[Waiter]],
    taker: Taker | None,
    limits: ActiveLimits,
    left: dict[str, int],
) -> list[tuple[Any, ...]]:
    """Let those in who are first, given by scope and queue; return the rows of those that were claimed for a `taker` instead.

    `left` says how many may be claimed in a scope, over all queues.
    """
    claimed = [] if taker is None else _claim_for(taker, found, limits, left)
    taken = {row[0] for row in claimed}
    if ids := sorted({job.id for jobs in found.values() for job in jobs if job.id not in taken}):
        dialect().let_in(ids)
    for queue in {queue for (_, queue), jobs in found.items() if any(job.id not in taken for job in jobs)}:
        notify_work(queue)
    return claimed


def _claim_for(
    taker: Taker, found: Mapping[tuple[str, str], Sequence[Waiter]], limits: ActiveLimits, left: dict[str, int]
) -> list[tuple[Any, ...]]:
    """Claim those of the jobs who are next that come first in their queue as well, and that have this limit alone.

    So a freed slot costs its next job neither a commit nor a look of its own. Where another job comes first, a claim decides.
    """
    chosen: dict[tuple[str, str], list[Waiter]] = {}
    most = taker.most
    for (scope, queue), jobs in found.items():

        def is_plain(job: Waiter, scope: str = scope, queue: str = queue) -> bool:
            scopes = limits.scopes(job.job_type, queue, job.limit_key, job.queue_limit_key)
            return bool(job.job_type) and scopes == (scope,) and not job.is_overtaken

        some = list(takewhile(is_plain, jobs[: min(most, left[scope])])) if taker.takes(queue) else []
        if some:
            chosen[scope, queue] = some
            most -= len(some)
            left[scope] -= len(some)
    unknown = [(*where, *jobs[-1][:3]) for where, jobs in chosen.items() if jobs[-1].is_overtaken is None]
    overtaken = {unknown[number][:2] for number in dialect().overtaken(unknown)} if unknown else set()
    by_queue: dict[str, list[str]] = {}
    for (scope, queue), jobs in chosen.items():
        if (scope, queue) not in overtaken:
            by_queue.setdefault(queue, []).extend(job.id for job in jobs)
    return [row for queue, ids in by_queue.items() for row in dialect().claim_held(queue, ids, taker.process_id)]


def _next_in_one_queue(limits: ActiveLimits, scopes: Sequence[str]) -> dict[tuple[str, str], list[Waiter]] | None:
    """Lock scopes and return who is next by scope and queue, found in one look; None where that does not do.

    It does where no rate, no fair key and no ageing counts, and where all jobs of a scope are in one queue.
    """
    if any(limits.rate(scope) is not None for scope in scopes):
        return None
    dialect().lock_scopes(scopes)
    rows = dialect().next_in_one_queue([(scope, min(limits.concurrency(scope) or 0, STEP)) for scope in scopes])
    if rows is None or any(
        is_more or registry.queue_settings(queue).ageing is not None for _, queue, is_more, *_ in rows
    ):
        return None
    found: dict[tuple[str, str], list[Waiter]] = {}
    for number, queue, _, *job in rows:
        if job[2] is not None:
            found.setdefault((scopes[number], queue), []).append(Waiter(*job))
    for jobs in found.values():
        jobs.sort(key=lambda job: job[:3])
    return found


class _Queues(NamedTuple):
    """The first and the last queue, by name, in which jobs wait that have a fair key, or that have none."""

    first: str
    last: str
    keyed: bool


class _InTurn:
    """Who comes first in a scope among the jobs of one queue, where turns or ageing decide about that."""

    def __init__(self, line: Line, free: int, ageing: float | None, claimed: Sequence[str]) -> None:
        self._line = line
        self._ageing = ageing
        self._free = free
        self._served = turns.turns_of(line)
        # Those that wait, and those that were let in and are not among the claimed ones.
        let_in = LimitSlot.objects.filter(
            scope=line.scope, waits=False, queue=line.queue, job__status=JobStatus.PENDING
        )
        rows = let_in.exclude(job__in=claimed).values_list("rank", "available_at", "job_id", "fair_key")
        self._others = [*turns.first_in_turn(line, free, ageing), *(InLine(*row) for row in rows[:MOST_AHEAD])]
        self._taken: list[InLine] = []

    def has_room(self, job: Claimed) -> bool:
        served = self._served.get(job.rank, NO_KEY)
        return turns.number_ahead(_waiting(job), [*self._others, *self._taken], served, self._ageing) < self._free

    def take(self, job: Claimed) -> None:
        self._taken.append(_waiting(job))

    def serve(self) -> None:
        turns.serve(self._line, [(job.rank, job.key) for job in self._taken])


def _waiting(job: Claimed) -> InLine:
    return InLine(job.rank, dialect().to_datetime(job.available_at), job.id, job.fair_key)


def _first_that_wait(wanted: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str], list[Waiter]]:
    """Return the first waiting jobs, in order, by scope and queue; `wanted` also says how many of each."""
    found: dict[tuple[str, str], list[Waiter]] = {}
    for chunk in _chunks(wanted):
        for number, *columns in dialect().first_that_wait(chunk):
            scope, queue, _ = chunk[number]
            found.setdefault((scope, queue), []).append(Waiter(*columns))
    for jobs in found.values():
        jobs.sort(key=lambda job: job[:3])
    return found


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), SCOPES_PER_STATEMENT):
        yield values[start : start + SCOPES_PER_STATEMENT]


class Held(NamedTuple):
    """A job that is held back from its submit: where, and after how many seconds it can start by a rate, at the earliest."""

    scope: str
    seconds: int
    is_rated: bool


def held_at_submit(jobs: Iterable[tuple[str, str, int, Sequence[str], str | None]]) -> dict[str, Held]:
    """Return which ready jobs of a batch are held back from the start: those behind as many as may run.

    Given are id, queue, rank, scopes and fair key. The first ones of each scope and queue are not, so that nobody waits beside a
    free slot; to claim a hundred thousand others only to hold them back would take half a minute. A job of two scopes is not,
    either.
    """
    limits = active_limits()
    by_scope: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    turn_of_key: Counter[tuple[str, str, int, str | None]] = Counter()
    for job_id, queue, rank, scopes, key in jobs:
        if len(scopes) == 1:
            turn = 0
            if key is not None:
                turn_of_key[scopes[0], queue, rank, key] += 1
                turn = turn_of_key[scopes[0], queue, rank, key]
            by_scope.setdefault((scopes[0], queue), []).append((rank, turn, job_id))
    held: dict[str, Held] = {}
    for (scope, _), some in by_scope.items():
        rate, most = limits.rate(scope), limits.most_at_once(scope)
        for place, (_, _, job_id) in enumerate(sorted(some)[most:], most):
            seconds = 0 if rate is None else place // rate.number * rate.seconds
            held[job_id] = Held(scope, seconds, rate is not None)
    return held


# --- who is next


def give_on(ids: Collection[str], taker: Taker | None = None) -> list[tuple[Any, ...]]:
    """Delete the slots of jobs that do not run any more, and let in who is next, or claim that for a `taker`.

    Call it last in the transaction that has locked and moved the jobs: it locks their scopes until the end. Returns the rows of
    the jobs that were claimed.
    """
    deleted = dialect().delete_slots([*ids]) if ids else set()
    limits = active_limits()
    # Where there is a rate alone, the end of a run that has started makes no room.
    scopes = {scope for scope, starts in deleted if starts or limits.concurrency(scope) != MOST_AT_ONCE}
    known = sorted(scope for scope in scopes if limits.concurrency(scope) is not None)
    if not known:
        return []
    found = _next_in_one_queue(limits, known)
    if found is None:
        return _Scopes(limits, known).let_in(taker)
    return _go_on(found, taker, limits, {scope: len(jobs) for (scope, _), jobs in found.items()})


@transactional
def _let_in(scopes: Iterable[str]) -> None:
    _Scopes(active_limits(), scopes).let_in()


def leave(jobs: Iterable[Job]) -> None:
    """Take jobs, which wait and whose rows the caller has locked, out of their scopes; others are let in after the commit.

    The caller sets their `pending_limits` to 0.
    """
    limits = active_limits()
    concerned = [job for job in jobs if limits is not NO_LIMITS or job.pending_limits]
    if concerned:
        scopes = {scope for scope, _ in dialect().delete_slots([job.pk for job in concerned])}
        # A ready one may have no slot yet, and others of its submit wait behind it: they count on its claim.
        ready = (job for job in concerned if job.status == JobStatus.PENDING and not job.pending_limits)
        for job in ready:
            scopes.update(limits.scopes(job.job_type, job.queue, job.limit_key, job.queue_limit_key))
        if scopes:
            after_commit(lambda: _let_in(scopes))


# --- turns


def take_turns() -> float | None:
    """Let in whose turn has come by a rate; return the seconds until the next turn, None when nobody waits for one."""
    seconds = starts.seconds_until_turn()
    if seconds is None or seconds > 0:
        return seconds
    scopes = starts.take_due_turns()
    if not scopes:
        return starts.EARLY_SECONDS  # other processes are at it
    _let_in(scopes)
    return starts.seconds_until_turn()


# --- the safety net


def sweep(after: str = "", most: int | None = None) -> str:
    """Let in who waits in a scope without a reason, scope by scope; return the last one that was looked at, "" at the end.

    What settles, rescues, releases and cancels lets others in by itself. This is for rows that were deleted, and for limits
    that were raised or removed.
    """
    scopes: list[str] = []
    scope = dialect().next_waited_for(after)
    while scope is not None and (most is None or len(scopes) < most):
        scopes.append(scope)
        scope = dialect().next_waited_for(scope)
    for chunk in _chunks(scopes):
        _sweep(chunk)
    return scopes[-1] if scope is not None else ""


def _sweep(scopes: Sequence[str]) -> None:
    limits = active_limits()
    known: list[str] = []
    for scope in scopes:
        most, rate = limits.concurrency(scope), limits.rate(scope)
        is_lifted = most == MOST_AT_ONCE and rate is None
        if is_lifted or (most is None and is_removed(name_of_scope(scope))):
            while _free(scope):
                pass
            starts.forget_turn(scope)
        elif most is not None:
            known.append(scope)
    if known:
        _let_in(known)


@transactional
def _free(scope: str) -> int:
    """Make some jobs ready that wait in a scope whose limit was removed or lifted; return how many there were."""
    waiting = Job.objects.filter(slots__scope=scope, slots__waits=True, pending_limits=1)
    queues = dict(waiting.values_list("pk", "queue")[:STEP])
    freed = dialect().let_in(sorted(queues)) if queues else 0
    for queue in set(queues.values()):
        notify_work(queue)
    return freed


def count_running() -> None:
    """Give slots to jobs that processes without these limits have claimed and run now; a sweep lets others in after them.

    A limit with a key does not hold them: nobody asked for their key.
    """
    limits = active_limits()
    running = Job.objects.filter(status=JobStatus.RUNNING)
    for column, of in (("job_type", limits.types), ("queue", limits.queues)):
        for owner, limit in of.items():
            if not limit.keyed and limit.concurrency is not None:
                uncounted = running.filter(**{column: owner}).exclude(slots__scope=limit.name)
                LimitSlot.objects.bulk_create(
                    (
                        LimitSlot(
                            job=job,
                            scope=limit.name,
                            waits=False,
                            starts=False,
                            queue=job.queue,
                            rank=job.rank,
                            available_at=job.available_at,
                        )
                        for job in uncounted.only("queue", "rank", "available_at")
                    ),
                    ignore_conflicts=True,
                )
