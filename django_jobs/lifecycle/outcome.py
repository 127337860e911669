"""Outcomes: how a run ended, and where its job goes from there."""

from __future__ import annotations

from typing import Any, NamedTuple

from django_jobs.exceptions import Crashed, HandlerNotFound
from django_jobs.handlers import JobOptions
from django_jobs.models import AttemptOutcome, DeadLetterReason, JobStatus
from django_jobs.payloads import decode
from django_jobs.retry import decide
from django_jobs.text import describe_exception, exception_path, fingerprint, format_traceback

from .claim import ClaimedJob

FAILURES = (AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT, AttemptOutcome.CRASHED)


class Outcome(NamedTuple):
    """How a run ended, and where its job goes from here. The constructors below make one of each kind.

    `needs_settle` is False where nothing is left to write: its settle has committed already, or the job was lost.
    One is made for every job, and a frozen dataclass would take four times as long.
    """

    job: ClaimedJob
    status: JobStatus
    attempt: AttemptOutcome | None = None  # None: it completed, and leaves no attempt
    result_text: str | None = None
    delay: float = 0.0
    spends_retry: bool = False
    counts_crash: bool = False
    reason: DeadLetterReason | None = None  # of its dead letter; None: it gets none
    exception_class: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    seconds: float = 0.0
    needs_settle: bool = True
    exception: BaseException | None = None  # for logs and signals; its text is in the columns above
    waits: tuple[int, ...] = ()  # the keys of the steps that it goes to wait in

    @property
    def run(self) -> tuple[str, int]:
        """The job's id and its fence, which name the run."""
        return self.job.id, self.job.fence

    @property
    def is_completed(self) -> bool:
        """Whether the job's handler did what it was there for."""
        return self.attempt is None

    @property
    def result(self) -> Any:
        """The result, decoded."""
        return None if self.result_text is None else decode(self.result_text)

    @classmethod
    def completed(cls, job: ClaimedJob, result_text: str | None = None) -> Outcome:
        """Return the outcome of a handler that returned; its result is JSON text, or None."""
        return cls(job, JobStatus.COMPLETED, result_text=result_text)

    @classmethod
    def settled(cls, job: ClaimedJob, attempt: AttemptOutcome | None) -> Outcome:
        """Return the outcome of a run that another process has settled: all that is told of it is how it ended."""
        return cls(job, JobStatus.RUNNING, attempt, needs_settle=False)

    @classmethod
    def lost(cls, job: ClaimedJob) -> Outcome:
        """Return the outcome of a run whose job was taken away: nobody writes anything about it any more."""
        return cls.settled(job, AttemptOutcome.LEASE_LOST)

    @classmethod
    def failed(cls, job: ClaimedJob, error: BaseException, options: JobOptions, seconds: float = 0.0) -> Outcome:
        """Return the outcome of a handler that raised: a retry, or its end, as the retry policy decides.

        Where the queue wants no dead letters the job ends FAILED.
        """
        decision = decide(options.policy(job.max_retries), retry_count=job.retry_count, exception=error)
        outcome = cls._raised(job, error, seconds)
        if decision.action == "retry":
            return outcome._replace(delay=decision.delay_seconds, spends_retry=True)
        return outcome._given_up(DeadLetterReason(decision.reason), options, error)

    @classmethod
    def timed_out(cls, job: ClaimedJob, error: BaseException, options: JobOptions, seconds: float = 0.0) -> Outcome:
        """Return the outcome of a run that passed its timeout, whatever came of that in the handler: as `failed`."""
        outcome = cls.failed(job, error, options, seconds)._replace(attempt=AttemptOutcome.TIMED_OUT)
        return outcome._replace(reason=DeadLetterReason.TIMEOUT) if outcome.reason else outcome

    @classmethod
    def given_up(
        cls, job: ClaimedJob, error: BaseException, reason: DeadLetterReason, options: JobOptions, seconds: float = 0.0
    ) -> Outcome:
        """Return the outcome of a handler that no retry would mend: its result cannot be stored, say, or its steps are others."""
        return cls._raised(job, error, seconds)._given_up(reason, options, error)

    @classmethod
    def _raised(cls, job: ClaimedJob, error: BaseException, seconds: float) -> Outcome:
        return cls(
            job,
            JobStatus.SCHEDULED,
            AttemptOutcome.FAILED,
            exception_class=exception_path(error),
            error=describe_exception(error),
            traceback=format_traceback(error),
            seconds=seconds,
            exception=error,
        )

    def _given_up(self, reason: DeadLetterReason, options: JobOptions, error: BaseException) -> Outcome:
        return self._replace(
            status=JobStatus.DEAD if options.dead_letter else JobStatus.FAILED,
            reason=reason if options.dead_letter else None,
            fingerprint=fingerprint(self.job.job_type, error),
        )

    @classmethod
    def no_handler(cls, job: ClaimedJob, error: str) -> Outcome:
        """Return the end of a job whose type nobody registered here, with a dead letter, so that nothing is lost."""
        return cls(
            job,
            JobStatus.FAILED,
            AttemptOutcome.FAILED,
            reason=DeadLetterReason.NO_HANDLER,
            error=error,
            fingerprint=f"no handler {job.job_type}"[:64],
            exception=HandlerNotFound(error),
        )

    @classmethod
    def crashed(
        cls,
        job: ClaimedJob,
        error: str,
        options: JobOptions,
        *,
        counts: bool = True,
        cancel_requested: bool = False,
        seconds: float = 0.0,
    ) -> Outcome:
        """Return the outcome of a run whose process died: alone next time, or dead after `max_crashes` of its own.

        Args:
            counts: whether the death may be this job's fault, and is counted.
        """
        dead = job.crash_count + counts >= options.max_crashes and not cancel_requested
        return cls(
            job,
            JobStatus.DEAD if dead else JobStatus.CANCELLED if cancel_requested else JobStatus.SCHEDULED,
            AttemptOutcome.CRASHED,
            counts_crash=counts,
            reason=DeadLetterReason.CRASH_LOOP if dead else None,
            error=error,
            fingerprint=f"crash {job.job_type}"[:64] if dead else "",
            seconds=seconds,
            exception=Crashed(error),
        )

    @classmethod
    def released(cls, job: ClaimedJob, error: str, delay: float | None = None) -> Outcome:
        """Return the outcome of a run that could not even begin: the job waits again, after a delay if one is given."""
        status = JobStatus.PENDING if delay is None else JobStatus.SCHEDULED
        return cls(job, status, AttemptOutcome.RELEASED, delay=delay or 0.0, error=error)

    @classmethod
    def snoozed(cls, job: ClaimedJob, delay: float, error: str, seconds: float = 0.0) -> Outcome:
        """Return the outcome of a handler that wants to run again later, at no cost of a retry."""
        return cls(job, JobStatus.SCHEDULED, AttemptOutcome.SNOOZED, delay=delay, error=error, seconds=seconds)

    @classmethod
    def waiting(
        cls, job: ClaimedJob, delay: float, waits: tuple[int, ...], error: str, seconds: float = 0.0
    ) -> Outcome:
        """Return the outcome of a handler that sleeps or waits for an event, for `delay` seconds at most; no retry is spent."""
        return cls(
            job, JobStatus.SCHEDULED, AttemptOutcome.WAITING, delay=delay, error=error, seconds=seconds, waits=waits
        )

    @classmethod
    def cancelled(cls, job: ClaimedJob, error: str, seconds: float = 0.0) -> Outcome:
        """Return the outcome of a handler that stopped because somebody cancelled the job."""
        return cls(job, JobStatus.CANCELLED, AttemptOutcome.CANCELLED, error=error, seconds=seconds)

    @classmethod
    def by_hand(cls, job: ClaimedJob, status: JobStatus, delay: float = 0.0) -> Outcome:
        """Return the outcome that whoever holds a job gives it by hand: one of the statuses that end a run."""
        if status == JobStatus.COMPLETED:
            return cls.completed(job)
        dead = status == JobStatus.DEAD
        return cls(
            job,
            status,
            AttemptOutcome.CANCELLED if status == JobStatus.CANCELLED else AttemptOutcome.FAILED,
            delay=delay if status == JobStatus.SCHEDULED else 0.0,
            spends_retry=status == JobStatus.SCHEDULED,
            reason=DeadLetterReason.FAILED_BY_HANDLER if dead else None,
            error="set by hand",
            fingerprint="set by hand" if dead else "",
        )
