"""Lines: the jobs of a queue that wait, ready ones or those that wait for a limit's slots, by rank and fair key. Reads alone.

From a rank to the next and from a key to the next one entry of the index is read, so what a look costs is the number of ranks and
keys that it asks for, and not the number of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from .dialects import dialect
from .dialects.words import JOB, KEYED, KEYED_QUEUES, SLOT, UNKEYED

NO_KEY = ""  # stands for the key of the jobs that have none; it sorts before all others
KEYS_PER_STATEMENT = 100

# {source} has the line's rows under the name `line`, and {where} leaves those of one queue, with or without a key.
_HOPS = """
WITH RECURSIVE found(place, number) AS (
    SELECT (SELECT MIN(line.{column}) FROM {source} WHERE {where} {start}), 1
    UNION ALL
    SELECT (SELECT MIN(line.{column}) FROM {source} WHERE {where} AND line.{column} > found.place), found.number + 1
    FROM found WHERE found.place IS NOT NULL AND found.number < %s)
SELECT place FROM found WHERE place IS NOT NULL"""
_HEADS = (
    "SELECT {number}line.available_at AS since, line.{id} AS job_id FROM {source} {join}"
    " WHERE {where} AND line.rank = %s {key} ORDER BY line.available_at, line.{id} LIMIT %s"
)
_NUMBER = (
    "SELECT %s AS place, COUNT(*) FROM"
    " (SELECT 1 AS one FROM {source} WHERE {where} AND line.rank = %s AND line.fair_key = %s LIMIT %s) AS part"
)
_HELD_BACK = f"JOIN {JOB} AS held ON held.id = line.job_id AND held.pending_limits = 1"
MOST_RANKS = 201


class Line(NamedTuple):
    """The jobs of a queue that wait: for a slot in a scope, or, without one, for a claim."""

    queue: str
    scope: str = ""


class InLine(NamedTuple):
    """A job that waits."""

    rank: int
    since: datetime
    id: str
    key: str = NO_KEY


class _Part(NamedTuple):
    """Those jobs of a line that have a key, or those that have none, in SQL."""

    source: str
    where: str
    parameters: tuple[Any, ...]
    grouped: str  # the columns of the index before `rank`
    id: str
    join: str


def _part(line: Line, *, keyed: bool) -> _Part:
    speaker = dialect()
    if not line.scope:
        where = f"{KEYED if keyed else UNKEYED} AND line.queue = %s"
        grouped = "line.queue, line.status, line.pending_dependencies, line.pending_limits"
        return _Part(f"{JOB} AS line {speaker.ready_hint}", where, (line.queue,), grouped, "id", "")
    where = f"line.scope = %s AND line.waits = TRUE AND line.keyed = {'TRUE' if keyed else 'FALSE'} AND line.queue = %s"
    grouped = "line.scope, line.waits, line.keyed, line.queue"
    source = f"{SLOT} AS line {speaker.slot_hint}"
    return _Part(source, where, (line.scope, line.queue), grouped, "job_id", _HELD_BACK)


def has_keyed(queue: str) -> bool:
    """Say whether a queue has a ready job with a fair key."""
    if dialect().groups:  # one entry for each rank; a plain look would read every ready job that has no key
        part = _part(Line(queue), keyed=True)
        columns = f"{part.grouped}, line.rank, line.fair_key"
        statement = f"SELECT DISTINCT {columns} FROM {part.source} WHERE {part.where} LIMIT 1"
        return bool(dialect().read(statement, part.parameters))
    return bool(dialect().read(f"SELECT 1 FROM {JOB} WHERE {KEYED} AND queue = %s LIMIT 1", (queue,)))


def keyed_queues() -> list[str]:
    """Return the queues that have a ready job with a fair key."""
    if dialect().groups:  # one entry for each key
        part = _part(Line(""), keyed=True)
        statement = f"SELECT DISTINCT {part.grouped}, line.rank, line.fair_key FROM {part.source} WHERE {KEYED}"
        return sorted({row[0] for row in dialect().read(statement)})
    statement = f"WITH RECURSIVE {KEYED_QUEUES} SELECT queue FROM keyed WHERE queue IS NOT NULL"
    return sorted(queue for (queue,) in dialect().read(statement))


def keyed_lines_of_limits(most: int) -> list[Line]:
    """Return the lines in which jobs with a fair key wait for a slot, of `most` such jobs."""
    part = f"SELECT scope, queue FROM {SLOT} WHERE waits = TRUE AND keyed = TRUE LIMIT %s"
    rows = dialect().read(f"SELECT DISTINCT scope, queue FROM ({part}) AS capped", (most,))
    return [Line(queue, scope) for scope, queue in sorted(rows)]


def ranks(line: Line) -> list[int]:
    """Return the ranks of the jobs in a line, the first to be served first."""
    return sorted({rank for keyed in (False, True) for rank in _ranks(_part(line, keyed=keyed))})


def _ranks(part: _Part) -> list[int]:
    if dialect().groups:
        statement = f"SELECT DISTINCT {part.grouped}, line.rank FROM {part.source} WHERE {part.where}"
        return [row[-1] for row in dialect().read(statement, part.parameters)]
    statement = _HOPS.format(column="rank", source=part.source, where=part.where, start="")
    return [rank for (rank,) in dialect().read(statement, (*part.parameters, *part.parameters, MOST_RANKS))]


def keys(line: Line, rank: int, after: str, most: int) -> list[str]:
    """Return the first keys behind one, in their order, up to `most`, of the jobs of a rank that have a key."""
    part = _part(line, keyed=True)
    given = (*part.parameters, rank, after)
    where = f"{part.where} AND line.rank = %s"
    if dialect().groups:
        columns = f"{part.grouped}, line.rank, line.fair_key"
        statement = f"SELECT DISTINCT {columns} FROM {part.source} WHERE {where} AND line.fair_key > %s LIMIT %s"
        return [row[-1] for row in dialect().read(statement, (*given, most))]
    statement = _HOPS.format(column="fair_key", source=part.source, where=where, start="AND line.fair_key > %s")
    return [key for (key,) in dialect().read(statement, (*given, *part.parameters, rank, most))]


def heads(line: Line, rank: int, wanted: Sequence[str], most: int) -> dict[str, list[InLine]]:
    """Return the first `most` jobs of each of these keys, in claim order; keys that have none are left out."""
    found: dict[str, list[InLine]] = {}
    if NO_KEY in wanted:
        part = _part(line, keyed=False)
        statement = _heads(part, number="", key="AND line.fair_key = ''" if line.scope else "")
        _add(found, rank, ((NO_KEY, *row) for row in dialect().read(statement, (*part.parameters, rank, most))))
    _add(found, rank, _keyed_heads(line, rank, [key for key in wanted if key != NO_KEY], most))
    return found


def _heads(part: _Part, *, number: str, key: str) -> str:
    return _HEADS.format(number=number, id=part.id, source=part.source, join=part.join, where=part.where, key=key)


def _keyed_heads(line: Line, rank: int, wanted: Sequence[str], most: int) -> Iterator[tuple[str, Any, str]]:
    part, speaker = _part(line, keyed=True), dialect()
    for start in range(0, len(wanted), KEYS_PER_STATEMENT):
        chunk = wanted[start : start + KEYS_PER_STATEMENT]
        if speaker.has_lateral:  # one plan for all keys
            one = _heads(part, number="", key="AND line.fair_key = given.key")
            statement = f"SELECT given.key, part.* FROM unnest(%s::text[]) AS given(key), LATERAL ({one}) AS part"
            yield from speaker.read(statement, (list(chunk), *part.parameters, rank, most))
            continue
        parts = (
            speaker.union_part.format(part=_heads(part, number=f"{number} AS number, ", key="AND line.fair_key = %s"))
            for number in range(len(chunk))
        )
        values = [value for key in chunk for value in (*part.parameters, rank, key, most)]
        for number, since, job_id in speaker.read(" UNION ALL ".join(parts), values):
            yield chunk[number], since, job_id


def numbers(line: Line, rank: int, wanted: Sequence[str], most: int) -> dict[str, int]:
    """Return how many jobs of a rank each of these keys has, counted up to `most`."""
    part, found = _part(line, keyed=True), dict[str, int]()
    one = _NUMBER.format(source=part.source, where=part.where)
    for start in range(0, len(wanted), KEYS_PER_STATEMENT):
        chunk = wanted[start : start + KEYS_PER_STATEMENT]
        values = [value for place, key in enumerate(chunk) for value in (place, *part.parameters, rank, key, most)]
        for place, number in dialect().read(" UNION ALL ".join([one] * len(chunk)), values):
            found[chunk[place]] = number
    return found


def _add(found: dict[str, list[InLine]], rank: int, rows: Iterator[tuple[str, Any, str]]) -> None:
    to_datetime = dialect().to_datetime
    for key, since, job_id in rows:
        found.setdefault(key, []).append(InLine(rank, to_datetime(since), job_id, key))
    for some in found.values():
        some.sort()
