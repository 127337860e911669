"""The statements of limits for PostgreSQL, which takes arrays, and plans one statement for all scopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .limits import FIRST_THAT_WAIT, IS_OVERTAKEN, QUEUES_OF_WAITERS, LimitStatements
from .words import JOB, SLOT

_AHEAD = "(job.rank, job.available_at, job.id) < ({at}.rank, {at}.available_at, {at}.id)"
_OVERTAKEN = f"""
SELECT given.number - 1
FROM unnest(%s::text[], %s::text[], %s::smallint[], %s::timestamptz[], %s::text[])
    WITH ORDINALITY AS given(scope, queue, rank, available_at, id, number)
WHERE {IS_OVERTAKEN.format(jobs=f"{JOB} AS job", queue="given.queue", scope="given.scope", ahead=_AHEAD.format(at="given"))}"""

# Who is next in scopes that have nothing but the jobs of one queue, without fair keys; and who of them a ready job overtakes.
# In the order of the index the last entry tells whether there is another queue, or a key. One plan for what takes four otherwise:
# to plan them takes longer than to run them. What is taken is read in order and up to the limit, which is no bitmap scan: that
# would read the slots of all jobs that have ended since the last vacuum, again and again. The status is asked for each of them,
# and OFFSET 0 keeps the planner from joining all jobs instead: a job that was ended by a process without this limit keeps its
# slot, which is none any more. The inner limit of who is next is a number, for the planner takes any other for a tenth of all who
# wait: with 60,000 of them the server compiled for 0.3 s. Where jobs have been let in, one more is read than there is room for:
# it shows whether one that waits comes before one of those.
_NEXT_IN_ONE_QUEUE = f"""
SELECT given.number - 1, last.queue, last.keyed OR first.queue <> last.queue OR taken.elsewhere, given.most - taken.number,
    (next.rank, next.available_at, next.id) < (taken.last_rank, taken.last_available_at, taken.last_id),
    next.rank, next.available_at::text, next.id, next.job_type, next.limit_key, next.queue_limit_key,
    {IS_OVERTAKEN.format(jobs=f"{JOB} AS job", queue="last.queue", scope="given.scope", ahead=_AHEAD.format(at="next"))}
FROM unnest(%s::text[], %s::int[]) WITH ORDINALITY AS given(scope, most, number)
CROSS JOIN LATERAL (SELECT queue, keyed FROM {SLOT} WHERE scope = given.scope AND waits
    ORDER BY keyed DESC, queue DESC LIMIT 1) AS last
CROSS JOIN LATERAL (SELECT queue FROM {SLOT} WHERE scope = given.scope AND waits ORDER BY keyed, queue LIMIT 1) AS first
CROSS JOIN LATERAL (SELECT COUNT(*) AS number, COALESCE(BOOL_OR(queue <> last.queue), FALSE) AS elsewhere,
        MAX(rank) FILTER (WHERE status = 'pending') AS last_rank,
        MAX(available_at) FILTER (WHERE status = 'pending') AS last_available_at,
        MAX(job_id) FILTER (WHERE status = 'pending') AS last_id
    FROM (SELECT queue, rank, available_at, job_id, status FROM {SLOT} AS slot,
            LATERAL (SELECT status FROM {JOB} AS job WHERE job.id = slot.job_id OFFSET 0) AS job
        WHERE scope = given.scope AND NOT waits AND status IN ('running', 'pending')
        ORDER BY keyed, queue LIMIT given.most) AS slot) AS taken
LEFT JOIN LATERAL (
    SELECT * FROM (
        SELECT slot.rank, slot.available_at, slot.job_id AS id, job.job_type, job.limit_key, job.queue_limit_key
        FROM {SLOT} AS slot JOIN {JOB} AS job ON job.id = slot.job_id
        WHERE slot.scope = given.scope AND slot.waits AND NOT slot.keyed AND slot.queue = last.queue AND slot.fair_key = ''
            AND job.pending_limits = 1
        ORDER BY slot.rank, slot.available_at, slot.job_id LIMIT %s) AS front
    ORDER BY rank, available_at, id LIMIT given.most - taken.number + (taken.last_rank IS NOT NULL)::int) AS next ON TRUE"""


class PostgreSQLLimits(LimitStatements):
    """One plan for all scopes: to plan a part for each took 0.6 ms a scope."""

    def queues_of_waiters(self, scopes: Sequence[str]) -> list[tuple[str | None, ...]]:
        queues = QUEUES_OF_WAITERS.format(scope="given.scope")
        given = "unnest(%s::text[]) WITH ORDINALITY AS given(scope, number)"
        return self.read(f"SELECT {queues} FROM {given} ORDER BY number", (array(scopes),))

    def first_that_wait(self, wanted: Sequence[tuple[str, str, int]]) -> list[tuple[Any, ...]]:
        given = {"scope": "given.scope", "queue": "given.queue", "most": "given.most", "moment": self.moment}
        part = FIRST_THAT_WAIT.format(number="", **given)
        return self.read(
            "SELECT given.number - 1, part.* FROM unnest(%s::text[], %s::text[], %s::int[])"
            f" WITH ORDINALITY AS given(scope, queue, most, number), LATERAL ({part}) AS part",
            [array(column) for column in zip(*wanted, strict=True)],
        )

    def next_in_one_queue(self, scopes: Sequence[tuple[str, int]], most: int) -> list[tuple[Any, ...]] | None:
        names, numbers = zip(*scopes, strict=True)
        return self.read(_NEXT_IN_ONE_QUEUE, (array(names), array(numbers), min(most, max(numbers))))

    def overtaken(self, places: Sequence[tuple[str, str, int, Any, str]]) -> set[int]:
        return {number for (number,) in self.read(_OVERTAKEN, [array(column) for column in zip(*places, strict=True)])}

    def let_in(self, ids: Sequence[str]) -> set[str]:
        rows = self.read(
            f"WITH free AS (UPDATE {JOB} SET pending_limits = 0, updated_at = {self.now} WHERE id = ANY(ARRAY("
            f"SELECT id FROM {JOB} WHERE id = ANY(%s::text[]) AND pending_limits = 1 FOR UPDATE SKIP LOCKED)) RETURNING id)"
            f" UPDATE {SLOT} SET waits = FALSE WHERE job_id = ANY(ARRAY(SELECT id FROM free)) RETURNING job_id",
            (array(ids),),
        )
        return {job_id for (job_id,) in rows}

    def delete_slots(self, ids: Sequence[str]) -> set[tuple[str, bool]]:
        rows = self.read(f"DELETE FROM {SLOT} WHERE job_id = ANY(%s::text[]) RETURNING scope, starts", (array(ids),))
        return {(scope, starts) for scope, starts in rows}


def array(values: Sequence[Any]) -> Any:
    """Return a parameter for a one-dimensional array; the driver takes ten times as long for what is of one kind."""
    kinds = set(map(type, values))
    if kinds == {str}:  # a NUL is in no text that PostgreSQL takes
        text = "\0".join(values).replace("\\", r"\\").replace('"', r"\"").replace("\0", '","')
        return '{"' + text + '"}'
    if kinds == {type(None)}:
        return "{" + ",".join(["NULL"] * len(values)) + "}"
    return "{" + ",".join(map(str, values)) + "}" if kinds == {int} else list(values)
