"""Doors from a row to its moves, so that `job.cancel()` reads well. The one place where a model reaches up a room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .dead_letter import DeadLetter
    from .job import Job


class JobDoors:
    """The moves of a job. Each raises JobNotFound when the row is gone, and InvalidJob for an illegal move."""

    def cancel(self) -> str:
        """Cancel the job: at once when it waits, by asking its worker when it runs; return the status then."""
        from django_jobs.lifecycle.cancel import cancel

        job = cast("Job", self)
        status = cancel(job.pk, job._state.db)
        job.refresh_from_db()
        return status

    def replay(self, *, by: Any = None, dependents: bool = True) -> None:
        """Run a dead, failed or cancelled job again from the start, and the dependents that failed because of it."""
        from django_jobs.lifecycle.replay import replay

        job = cast("Job", self)
        replay(job.pk, by=by, dependents=dependents, alias=job._state.db)
        job.refresh_from_db()

    def run_now(self) -> None:
        """Make a scheduled job ready at once; a pending one is left as it is."""
        from django_jobs.lifecycle.replay import run_now

        job = cast("Job", self)
        run_now(job.pk, job._state.db)
        job.refresh_from_db()

    def add_dependency(self, depends_on: Job | str, on_failure: str = "fail") -> None:
        """Make this job, which still waits, depend on one more; raise CycleError when that closes a circle."""
        from django_jobs.lifecycle.graph import add_dependency

        job = cast("Job", self)
        other: Any = depends_on
        add_dependency(job.pk, getattr(other, "pk", other), on_failure, job._state.db)
        job.__dict__.pop("_depends_on", None)
        job.refresh_from_db()

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job is finished and return it, refreshed; raise TimeoutError after `timeout` seconds."""
        from django_jobs.lifecycle.wait import wait

        job = cast("Job", self)
        wait(job.pk, timeout, job._state.db)
        job.refresh_from_db()
        return job


class DeadLetterDoors:
    """The moves of a dead letter. Each raises InvalidJob when the letter is closed already."""

    def acknowledge(self, by: Any = None, note: str = "") -> None:
        """Close the letter with a note; its job stays as it is."""
        from django_jobs.lifecycle.replay import acknowledge

        letter = cast("DeadLetter", self)
        acknowledge(letter.pk, by=by, note=note, alias=letter._state.db)
        letter.refresh_from_db()

    def replay(self, by: Any = None) -> None:
        """Run the letter's job again from the start and close the letter."""
        from django_jobs.lifecycle.replay import replay_letter

        letter = cast("DeadLetter", self)
        replay_letter(letter.pk, by=by, alias=letter._state.db)
        letter.refresh_from_db()
