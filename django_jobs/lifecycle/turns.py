"""Turns: the order in which the jobs of a queue are taken where some of them have a fair key.

Within a rank the keys take turns, one job each, in the order of the keys; jobs that have no key are one more key. `FairTurn`
says which key was served last, so a key that comes, or comes back, joins the running round and is owed nothing. Whoever takes
jobs of such a queue holds its lock until the commit. The jobs that wait for the slots of a limit are served in the same way, by a
turn of that scope's own, under the lock of the scope.

Where a queue has an ageing, that decides between ranks, by the oldest of the jobs whose turn is near.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from django_jobs.db import lines
from django_jobs.db.connections import jobs_alias
from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.words import aged_place
from django_jobs.db.lines import NO_KEY, InLine, Line
from django_jobs.db.transactions import database_now
from django_jobs.models import FairTurn

LOOK_SECONDS = 1.0  # how often a process looks whether a queue has jobs with keys, while it knows of none
MOST_KNOWN = 1_000
GROWTH = 4
KEPT_DAYS = 7
PRUNE_ROWS = 500


# --- which queues have keys


class _Known:
    """What this process knows of queues: until when it holds, and whether there are keys."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], tuple[float, bool]] = {}

    def get(self, queue: str) -> bool | None:
        until, keyed = self._of.get((jobs_alias(), queue), (0.0, False))
        return keyed if time.monotonic() < until else None

    def is_younger(self, queue: str, moment: float) -> bool:
        until, _ = self._of.get((jobs_alias(), queue), (0.0, False))
        return until - LOOK_SECONDS >= moment

    def keep(self, queue: str, keyed: bool) -> None:
        if len(self._of) >= MOST_KNOWN:  # a site may name a queue after each of its customers
            self._of.clear()
        self._of[jobs_alias(), queue] = time.monotonic() + LOOK_SECONDS, keyed

    def forget(self) -> None:
        self._of.clear()


_known = _Known()
forget_queues = _known.forget


def has_keys(queue: str) -> bool:
    """Say whether ready jobs of a queue have fair keys; it is looked up at most once in LOOK_SECONDS."""
    known = _known.get(queue)
    return look(queue) if known is None else known


def look(queue: str) -> bool:
    """Look now whether ready jobs of a queue have fair keys."""
    keyed = lines.has_keyed(queue)
    _known.keep(queue, keyed)
    return keyed


def look_again(queue: str, moment: float) -> bool:
    """Look whether keys have come since the last look, unless that was after a moment (`time.monotonic`)."""
    return not _known.is_younger(queue, moment) and look(queue)


def expect_keys(queue: str) -> None:
    """Take note that a queue may have jobs with keys, because this process has just submitted one."""
    _known.keep(queue, True)


# --- whose turn it is


def first_in_turn(line: Line, most: int, ageing: float | None = None) -> list[InLine]:
    """Return up to `most` jobs of a line in the order in which they are to be served."""
    served = turns_of(line)
    ranks = lines.ranks(line)
    if ageing is not None and len(ranks) > 1:
        by_rank = [_of_rank(line, rank, most, served.get(rank, NO_KEY)) for rank in ranks]
        return list(merged(by_rank, ageing))[:most]
    found: list[InLine] = []
    for rank in ranks:
        if len(found) < most:
            found += _of_rank(line, rank, most - len(found), served.get(rank, NO_KEY))
    return found


def merged(by_rank: Iterable[Sequence[InLine]], ageing: float) -> Iterator[InLine]:
    """Merge the jobs of ranks, each given in the order of its turns: a rank is as old as the oldest of those that still wait."""
    placed = []
    for jobs in by_rank:
        places: list[Any] = [aged_place(job.rank, job.since, job.id, ageing) for job in jobs]
        for number in range(len(places) - 2, -1, -1):
            places[number] = min(places[number], places[number + 1])
        placed.append(list(zip(places, jobs, strict=True)))
    return (job for _, job in heapq.merge(*placed))


def in_turn(jobs: Iterable[InLine], served: Mapping[int, str], ageing: float | None) -> list[InLine]:
    """Return all jobs of a line in the order in which they are to be served; `served` is the last key by rank."""
    by_rank: dict[int, dict[str, list[InLine]]] = {}
    for job in sorted(jobs):
        by_rank.setdefault(job.rank, {}).setdefault(job.key, []).append(job)
    in_ranks = [
        list(rounds([by_key[key] for key in sorted(by_key, key=lambda key: in_ring(key, served.get(rank, NO_KEY)))]))
        for rank, by_key in sorted(by_rank.items())
    ]
    return list(chain.from_iterable(in_ranks) if ageing is None else merged(in_ranks, ageing))


def turns_of(line: Line) -> dict[int, str]:
    """Return the key that was served last, by rank."""
    return dict(FairTurn.objects.filter(scope=line.scope, queue=line.queue).values_list("rank", "key"))


def _of_rank(line: Line, rank: int, most: int, served: str) -> list[InLine]:
    keys = _in_ring(line, rank, served, most)
    share = -(-most // len(keys))
    while True:
        found = lines.heads(line, rank, keys, share)
        number = sum(map(len, found.values()))
        if number >= most or share >= most or all(len(some) < share for some in found.values()):
            break
        share = min(share * GROWTH, most)  # some keys have fewer jobs than their share
    return list(rounds([found[key] for key in keys if key in found]))[:most]


def _in_ring(line: Line, rank: int, served: str, most: int) -> list[str]:
    """Return the next keys in the order of their turns, from the one behind that which was served last, round to that one."""
    keys = lines.keys(line, rank, served, most)
    if len(keys) < most:
        keys.append(NO_KEY)  # perhaps nobody waits without a key, which the next statement shows
        if served != NO_KEY:
            keys += [key for key in lines.keys(line, rank, NO_KEY, most) if key <= served]
    return keys


def rounds(by_key: Sequence[Sequence[InLine]]) -> Iterator[InLine]:
    """Yield one job of each key, then the next one of each."""
    for place in range(max(map(len, by_key), default=0)):
        for jobs in by_key:
            if place < len(jobs):
                yield jobs[place]


def number_ahead(job: InLine, others: Collection[InLine], served: str, ageing: float | None) -> int:
    """Return how many of the others are served before a job, which is none of them; `served` is the last key of its rank."""
    number, own, by_key = 0, 0, dict[str, int]()
    for other in others:
        if other.rank != job.rank:
            number += _weighs_more(other, job, ageing)
        elif other.key != job.key:
            by_key[other.key] = by_key.get(other.key, 0) + 1
        else:
            own += other < job
    comes_first = {key: in_ring(key, served) < in_ring(job.key, served) for key in by_key}
    return number + own + sum(min(many, own + comes_first[key]) for key, many in by_key.items())


def _weighs_more(other: InLine, job: InLine, ageing: float | None) -> bool:
    if ageing is None:
        return other.rank < job.rank
    return aged_place(other.rank, other.since, other.id, ageing) < aged_place(job.rank, job.since, job.id, ageing)


def in_ring(key: str, served: str) -> tuple[bool, str]:
    """Return the place of a key in the round that begins behind the one that was served last."""
    return key <= served, key


def serve(line: Line, served: Iterable[tuple[int, str]]) -> None:
    """Keep whose turn it was, given as rank and key in the order of their turns."""
    last = dict(served)
    if not last:
        return
    now, connection = database_now(), dialect().connection
    FairTurn.objects.bulk_create(
        [
            FairTurn(scope=line.scope, queue=line.queue, rank=rank, key=key, used_at=now)
            for rank, key in sorted(last.items())
        ],
        update_conflicts=True,
        update_fields=["key", "used_at"],
        unique_fields=["scope", "queue", "rank"] if connection.features.supports_update_conflicts_with_target else None,
    )


def prune_turns() -> int:
    """Delete some turns that nobody has taken for days; return how many."""
    old = FairTurn.objects.filter(used_at__lt=database_now() - timedelta(days=KEPT_DAYS)).order_by("used_at")
    ids = list(old.values_list("pk", flat=True)[:PRUNE_ROWS])
    return FairTurn.objects.filter(pk__in=ids).delete()[0] if ids else 0
