"""The words of the statements: tables, columns and conditions that all databases share, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django_jobs.numbers import RANKS_PER_PRIORITY

JOB = "django_jobs_job"
DEPENDENCY = "django_jobs_jobdependency"
ATTEMPT = "django_jobs_attempt"
PROCESS = "django_jobs_workerprocess"
QUEUE = "django_jobs_queue"
BATCH = "django_jobs_batch"
MEMBER = "django_jobs_batchmember"
OPEN_MEMBER = "django_jobs_openmember"
STEP = "django_jobs_jobstep"
LOG = "django_jobs_joblog"
SLOT = "django_jobs_limitslot"
START = "django_jobs_limitstart"
READY = "status = 'pending' AND pending_dependencies = 0 AND pending_limits = 0"
# A claim that minds no turns takes of these alone: those with a key have an index of their own, or a part of it.
UNKEYED = f"{READY} AND fair_key IS NULL"
KEYED = f"{READY} AND fair_key IS NOT NULL"
RANK_LIMITS = (-101, 101)  # before the first rank, and after the last one
MOST_COUNTED = 10_000
COUNTS_PER_STATEMENT = 100
KEEPALIVES = 3
RECENT_SECONDS = 2.5  # who promotes jobs does it within that time after they were due, or says so

CLAIMED_COLUMNS = (
    "id",
    "job_type",
    "queue",
    "payload",
    "fence",
    "retry_count",
    "max_retries",
    "timeout_seconds",
    "crash_count",
    "metadata",
    "rank",
    "available_at",
    "created_at",
    "batch_id",
)

# One row of an INSERT. created_at, updated_at and available_at of None stand for the database's "now"; the counters start at 0.
INSERT_COLUMNS = (
    "id",
    "job_type",
    "queue",
    "payload",
    "rank",
    "status",
    "scheduled_at",
    "available_at",
    "max_retries",
    "timeout_seconds",
    "metadata",
    "unique_key",
    "unique_lock",
    "pending_dependencies",
    "batch_id",
    "limit_key",
    "queue_limit_key",
    "pending_limits",
    "fair_key",
)

FIXED_COLUMNS = "created_at, updated_at, retry_count, fence, crash_count, progress_message"
LIVE_PROCESS = (
    f"EXISTS (SELECT 1 FROM {PROCESS} WHERE id = %s AND lease_expires_at > {{now}})"
    f" AND NOT EXISTS (SELECT 1 FROM {QUEUE} WHERE name = %s AND paused_at IS NOT NULL)"
)
# The guard of a settle is id and fence, which moves at each change of hands, and not status: with a predicate on that the planner
# may take the index of running rows, 26 times slower behind an old snapshot.
COMPLETED = (
    "status = 'completed', fence = {job}.fence + 1, finished_at = {now}, updated_at = {now},"
    " error = NULL, unique_lock = NULL, cancel_requested_at = NULL"
)
OPEN_EDGES = f"SELECT id, job_id, depends_on_id, on_failure FROM {DEPENDENCY} WHERE state = 'open' AND depends_on_id"

# Hops along the index of ready jobs: the cost is the number of queues, not of jobs.
_HOPS = f"""{{found}}(queue) AS (
    SELECT MIN(queue) FROM {JOB} WHERE {{ready}}
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM {JOB} AS job WHERE {{ready}} AND job.queue > {{found}}.queue)
    FROM {{found}} WHERE {{found}}.queue IS NOT NULL)"""
READY_QUEUES = f"WITH RECURSIVE {_HOPS.format(found='found', ready=UNKEYED)}"
KEYED_QUEUES = _HOPS.format(found="keyed", ready=KEYED)

EndedRow = tuple[str, int, str, float, int, int, str | None]
LogRow = tuple[str, int, str]
AttemptRow = tuple[str, int, str, float, str, str, str, str, str]
ATTEMPT_COLUMNS = "job_id, number, worker_id, started_at, ended_at, outcome, exception_class, error, traceback, release"
# Written once for all; {due}, {now} and {prefix} differ. Only a job that runs again has a time to run at.
ENDED = """{prefix}status = ended.status, {prefix}fence = {job}.fence + 1, {prefix}updated_at = {now},
{prefix}retry_count = {job}.retry_count + ended.spent, {prefix}crash_count = {job}.crash_count + ended.crashes,
{prefix}error = COALESCE(ended.error, {job}.error),
{prefix}cancel_requested_at = CASE WHEN ended.status IN ('scheduled', 'pending', 'cancelled')
    THEN {job}.cancel_requested_at END,
{prefix}scheduled_at = CASE WHEN ended.status = 'scheduled' THEN {due} ELSE {job}.scheduled_at END,
{prefix}available_at = CASE WHEN ended.status = 'scheduled' THEN {due} ELSE {job}.available_at END,
{prefix}finished_at = CASE WHEN ended.status IN ('scheduled', 'pending') THEN NULL ELSE {now} END,
{prefix}unique_lock = CASE WHEN ended.status IN ('scheduled', 'pending') THEN {job}.unique_lock END"""

# One statement, which commits by itself, is all that a step costs: the row is written only while the run holds its job, and the
# lock keeps a rescue from taking the job away between that look and the commit. Not by status, as a settle.
INSERT_STEP = f"""
INSERT INTO {STEP} (job_id, position, name, kind, result, started_at, ended_at, due_at, event_name, event_key)
SELECT id, %s, %s, %s, {{json}}, {{began}}, CASE WHEN {{flag}} THEN {{now}} END, CASE WHEN {{flag}} THEN {{due}} END, %s, %s
FROM {JOB} WHERE id = %s AND fence = %s {{lock}}"""
# The same for a step that is done, which has no wait, and of which nobody needs the key: four fifths of its time on PostgreSQL.
INSERT_DONE_STEP = f"""
INSERT INTO {STEP} (job_id, position, name, kind, result, started_at, ended_at)
SELECT id, %s, %s, 'step', {{json}}, {{began}}, {{now}} FROM {JOB} WHERE id = %s AND fence = %s {{lock}}"""


class StepRow(NamedTuple):
    """A step to record: `seconds` is how long it took, `due` in how many seconds its wait is over (None: it has no such time)."""

    position: int
    name: str
    kind: str
    result: str | None = None  # JSON text
    seconds: float = 0.0
    has_ended: bool = True
    due: float | None = None
    event_name: str | None = None
    event_key: str | None = None

    def parameters(self, job_id: str, fence: int) -> tuple[Any, ...]:
        """Return the parameters of INSERT_STEP."""
        return (
            self.position, self.name, str(self.kind), self.result, self.seconds, self.has_ended,
            self.due is not None, self.due or 0.0, self.event_name, self.event_key, job_id, fence,
        )  # fmt: skip


class Place(NamedTuple):
    """A place in the index of a queue's ready jobs, which is in claim order; the time is text as the database writes it."""

    rank: int
    available_at: str
    id: str


class Stretch(NamedTuple):
    """A part of that index: from a place on, and before a rank."""

    start: Place
    end: int


class Snapshot(NamedTuple):
    """What a look could not see: the writing transactions that went on, and from which moment on later ones may write."""

    running: frozenset[int]
    before: Any  # as the look has its other moments


class ClaimLook(NamedTuple):
    """What a claim found on its stretches of the index."""

    rows: list[tuple[Any, ...]]
    ranks: set[int]  # of the jobs taken
    last: Place | None  # of the jobs taken
    read_in_vain: int  # of the index: entries that led to no job, and pages without any
    moment: str  # a moment before it began: who commits within that long is not late
    recent: str  # RECENT_SECONDS before it began
    snapshot: Snapshot


class PromotionLook(NamedTuple):
    """What a promotion found in the index of scheduled jobs, as `ClaimLook`."""

    queues: list[str]
    last: datetime | None
    read_in_vain: int
    moment: datetime
    snapshot: Snapshot


def connect_timeout(lease: float) -> int:
    """Return how long (seconds) a worker waits for a connection: several tries fit in a lease."""
    return min(10, max(2, int(lease / 4)))


def silence(lease: float) -> tuple[int, int, int]:
    """Return after how many seconds of silence a peer is asked, how often again, and the milliseconds after which it is gone.

    Together they stay below a lease: 1/4, then three times 1/8; and 3/4 for what was sent and not acknowledged.
    """
    return max(1, int(lease / 4)), max(1, int(lease / 8)), max(1000, int(lease * 750))


def microseconds_of_rank(ageing: float) -> int:
    """Return what one rank, a twentieth of a step of priority, weighs where so many seconds weigh as much as a step."""
    return round(ageing * 1_000_000 / RANKS_PER_PRIORITY)


def aged_place(rank: int, since: datetime, job_id: str, ageing: float) -> tuple[datetime, datetime, str]:
    """Return a job's place in the aged order of its queue; of two that weigh the same the older one is first."""
    return since + rank * timedelta(microseconds=microseconds_of_rank(ageing)), since, job_id


def marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))
