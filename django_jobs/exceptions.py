"""The errors of the library, and the exceptions with which a handler steers its job."""

from __future__ import annotations

from datetime import timedelta

from django_jobs.numbers import LONGEST_SECONDS, seconds_of


class JobsError(Exception):
    """The base of all errors of this library."""


class InvalidJob(JobsError, ValueError):
    """A call was refused, and nothing was written; `problems` lists every reason."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__(*problems)

    def __str__(self) -> str:
        return "; ".join(self.problems)


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


class Waiting(BaseException):
    """Leaves a handler whose job goes to wait. Not for handlers to raise or to catch; their `finally` blocks run."""


class Crashed(JobsError):
    """The process that ran a job died; made for logs and signals, and raised nowhere."""


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
