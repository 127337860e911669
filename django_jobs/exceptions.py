"""The errors of the library, and the exceptions with which a handler steers its job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from django_jobs.numbers import LONGEST_SECONDS, seconds_of


class JobsError(Exception):
    """The base of all errors of this library."""


class InvalidJob(JobsError, ValueError):
    """A call was refused, and nothing was written; `problems` lists every reason, the message the first MOST_TOLD."""

    MOST_TOLD = 20

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__(*problems)

    def __str__(self) -> str:
        told = "; ".join(self.problems[: self.MOST_TOLD])
        left = len(self.problems) - self.MOST_TOLD
        return f"{told}; and {left:,} more" if left > 0 else told


class NoTimeZoneData(InvalidJob):
    """This host has no time zone data; what another host can do with the time zone is another matter."""


class CycleError(InvalidJob):
    """Jobs would depend on each other in a circle; the message shows the path."""


class JobNotFound(JobsError, KeyError):
    """There is no job with this id."""

    what = "job"

    def __init__(self, job_id: object = "") -> None:
        self.job_id = job_id
        super().__init__(job_id)

    def __str__(self) -> str:
        return f"there is no {self.what} {self.job_id!r}"


class ScheduleNotFound(JobNotFound):
    """There is no schedule of this name."""

    what = "schedule"


class DeadLetterNotFound(JobNotFound):
    """There is no dead letter with this key."""

    what = "dead letter"


class BatchNotFound(JobNotFound):
    """There is no batch with this id."""

    what = "batch"


class OperationNotFound(JobNotFound):
    """There is no operation with this number."""

    what = "operation"


class HandlerNotFound(JobsError):
    """No handler is registered for a job type in this process."""


class LeaseLost(JobsError):
    """The job's lease was lost to another worker: what this one would still write is dropped."""


class StepMismatch(JobsError):
    """A job's code asks for other steps than those on record: the job is dead, and a replay from the start is the way on."""


class EncryptionError(JobsError):
    """What is encrypted at rest cannot be read with the site's keys, or nothing can be encrypted: `cryptography` is missing."""


class Waiting(BaseException):
    """Leaves a handler whose job goes to wait. Not for handlers to raise or to catch; their `finally` blocks run."""


class Crashed(JobsError):
    """The process that ran a job died; made for logs and signals, and raised nowhere."""


class BulkFailure(JobsError):
    """A bulk handler raises it when some of its jobs failed; the others are completed, without a result.

    Args:
        errors: an exception or a text for each job that failed, by its place in the list that the handler got (from 0).
            `Retry`, `Snooze`, `Fail` and `Cancelled` steer that job.
    """

    def __init__(self, errors: Mapping[int, BaseException | str]) -> None:
        self.errors = errors
        super().__init__(errors)

    def __str__(self) -> str:
        return f"jobs that failed, by their place in the list: {self.errors!r}"

    def by_index(self, number: int) -> dict[int, BaseException]:
        """Return the exception of each job that failed, in a list of `number` jobs; raise JobsError for anything else."""
        if not isinstance(self.errors, Mapping):
            raise JobsError(f"BulkFailure: give a dict of places in the list to errors, not {self.errors!r:.80}")
        found: dict[int, BaseException] = {}
        for index, error in self.errors.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < number:
                raise JobsError(f"BulkFailure: there is no place {index!r:.80} in a list of {number} jobs")
            if not isinstance(error, BaseException | str):
                raise JobsError(
                    f"BulkFailure: the error at place {index} is to be an exception or a text, not {error!r:.80}"
                )
            found[index] = JobsError(error) if isinstance(error, str) else error
        return found


class TimedOut(JobsError, TimeoutError):
    """Raised in a handler that ran past its timeout."""


class Steering(JobsError):
    """A handler raises a subclass to decide how its job goes on; `reason` is free text for the operator."""

    reason = ""

    def __str__(self) -> str:
        return self.reason or type(self).__name__


class Retry(Steering):
    """Try again after `after` (seconds or a timedelta; None: the usual backoff); a retry is spent.

    Raises InvalidJob for a wait that is negative, not finite or longer than ten years.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str = "") -> None:
        self.after = None if after is None else _wait("Retry(after)", after)
        self.reason = reason
        super().__init__(after, reason)


class Snooze(Steering):
    """Run again in `seconds` (or a timedelta); no retry is spent. Raises InvalidJob as `Retry` does."""

    def __init__(self, seconds: float | timedelta, reason: str = "") -> None:
        self.seconds = _wait("Snooze(seconds)", seconds)
        self.reason = reason
        super().__init__(seconds, reason)


class Fail(Steering):
    """Give up at once: no more retries."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


class ChildrenFailed(Fail):
    """A child of `run_children` ended badly; `failed` has the ids of the first ones. Unless it is caught there is no retry."""

    def __init__(self, reason: str = "", failed: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.failed = failed


class Cancelled(Steering):
    """Stop because somebody cancelled the job."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


def _wait(name: str, value: object) -> float:
    seconds = seconds_of(value)
    if seconds is None or not 0 <= seconds <= LONGEST_SECONDS:
        raise InvalidJob(f"{name}: give seconds from 0 to {LONGEST_SECONDS} (ten years), not {value!r:.80}")
    return seconds
