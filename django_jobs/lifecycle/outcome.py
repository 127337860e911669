"""The values that travel from a run to its settle: what was claimed, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django_jobs.models import AttemptOutcome, DeadLetterReason, JobStatus
from django_jobs.payloads import decode


class ClaimedJob(NamedTuple):
    """A claimed row, in the order of `sql.base.CLAIMED_COLUMNS`; JSON stays text until somebody asks for it."""

    id: str
    job_type: str
    queue: str
    payload_text: str
    fence: int
    retry_count: int
    max_retries: int
    timeout_seconds: float | None
    crash_count: int
    metadata_text: str
    rank: int
    available_at: Any
    created_at: Any = None

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew at each call, so that no handler sees another one's changes."""
        return decode(self.payload_text)  # type: ignore[no-any-return]

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.retry_count + 1


class Completed(NamedTuple):
    """A run that completed: what the batch settle needs and no more."""

    id: str
    fence: int
    result_text: str | None

    @property
    def result(self) -> Any:
        """The result, decoded."""
        return None if self.result_text is None else decode(self.result_text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A run that did not complete, and where its job goes from here."""

    job: ClaimedJob
    status: JobStatus
    attempt: AttemptOutcome
    delay: float = 0.0
    spends_retry: bool = False
    counts_crash: bool = False
    letter: DeadLetterReason | None = None
    exception_class: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    seconds: float = 0.0
    started_at: datetime | None = None


Results = tuple[list[Completed], list[Outcome]]


def runs_of(completed: Iterable[Completed], outcomes: Iterable[Outcome]) -> set[tuple[str, int]]:
    """Return the job and the fence of each result."""
    return {(done.id, done.fence) for done in completed} | {(one.job.id, one.job.fence) for one in outcomes}
