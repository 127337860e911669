"""The context that a handler with `takes_context=True` gets: its job, its progress, and the request to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.db.models import Model, QuerySet

from django_jobs.db.connections import in_transaction, jobs_alias
from django_jobs.db.dialects import dialect
from django_jobs.exceptions import Cancelled, Fail, InvalidJob, LeaseLost
from django_jobs.handlers import Handler
from django_jobs.lifecycle import progress
from django_jobs.models import Batch, StepKind
from django_jobs.payloads import decode
from django_jobs.submission import NewJob

from .iterations import AsyncLoop
from .run import Run
from .steps import Steps

T = TypeVar("T")
M = TypeVar("M", bound=Model)
SECONDS_BETWEEN_LOOKS = 1.0


class Context:
    """The running job, seen from its handler."""

    def __init__(self, run: Run, worker_id: str, handler: Handler) -> None:
        self._run = run
        self._handler = handler
        self._looked = time.monotonic()
        self.worker_id = worker_id

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._run.job.id

    @property
    def job_type(self) -> str:
        """The job's registered type."""
        return self._run.job.job_type

    @property
    def queue(self) -> str:
        """The queue it was claimed from."""
        return self._run.job.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._run.job.attempt

    @property
    def fence(self) -> int:
        """The fence of this run: grows with every change of hands, so it can guard writes to other systems."""
        return self._run.job.fence

    @property
    def created_at(self) -> datetime:
        """When the job was submitted, by the database's clock (aware, UTC)."""
        return dialect().to_datetime(self._run.job.created_at)

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew."""
        return self._run.job.payload

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata given at submit."""
        return decode(self._run.job.metadata_text)  # type: ignore[no-any-return]

    @property
    def database(self) -> str:
        """The alias of the database that holds the job, in which atomic handlers and atomic steps have their transaction."""
        return jobs_alias()

    @property
    def batch(self) -> Batch | None:
        """The batch that this job is a member of, or that it tells of as a callback; read when it is first asked."""
        batch_id = self._run.job.batch_id
        return None if batch_id is None else Batch.from_db(jobs_alias(), ["id"], [batch_id])

    def take_over_deadline(self) -> float | None:
        """Return when the run times out (`time.monotonic()`, None: never), and leave it to the handler to end by then.

        For handlers that wait for a process of their own, which must be ended before the run is.
        """
        deadline, self._run.deadline = self._run.deadline, None
        return deadline

    def dependencies(self) -> list[progress.Dependency]:
        """Return the jobs this one depended on, with `id, job_type, status, result`."""
        return progress.dependencies(self.job_id)

    def report_progress(self, fraction: float, message: str = "") -> None:
        """Show how far the job is, 0.0 to 1.0; raise LeaseLost when the job was taken away from this worker.

        In an atomic handler the job's row must not be touched before the end, so another thread writes it a moment later; on
        SQLite, whose one writer is the handler itself, it is not written at all.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not math.isfinite(fraction):
            raise InvalidJob(f"progress {fraction!r}: give a number from 0.0 to 1.0")
        self._refuse_lost()
        within = min(1.0, max(0.0, float(fraction)))
        if in_transaction():
            self._run.progress = (within, message)
        elif not progress.report_progress(self.job_id, self.fence, within, message):
            self._run.lost = True
            self._refuse_lost()

    def check_cancelled(self) -> None:
        """Raise Cancelled when somebody asked to stop this job, LeaseLost when it was taken away; looks at most once a second."""
        self._refuse_lost()
        if not self._run.cancel_requested and self.is_time_to_look:
            self._looked = time.monotonic()
            standing = progress.standing(self.job_id, self.fence)
            # Only set: another thread may have noted either meanwhile.
            if not standing.is_held:
                self._run.lost = True
            if standing.cancel_requested:
                self._run.cancel_requested = True
            self._refuse_lost()
        if self._run.cancel_requested:
            raise Cancelled

    @property
    def is_time_to_look(self) -> bool:
        """Whether `check_cancelled` asked the database a second ago or more."""
        return time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS

    # Steps. Of those on record an earlier run's results are returned; a record is written only while the run holds its job.

    def step(self, name: str, function: Callable[..., T], /, *args: Any, atomic: bool = False, **kwargs: Any) -> T:
        """Return what `function(*args, **kwargs)` returns; when the job runs again, its recorded result without another call.

        Args:
            name: of the step, at most 200 characters; a second use of it in a run is `name#2`.
            atomic: let the function's writes on the jobs' database and the record commit together.

        The result is JSON, as a job's. What the function raises goes to the handler, and the step is done anew in the next run.
        Raises StepMismatch when something else is on record here, LeaseLost when the job was taken away, Cancelled when somebody
        asked to stop it.
        """
        return self._steps.step(name, function, args, kwargs, atomic)

    def astep(
        self, name: str, function: Callable[..., Any], /, *args: Any, atomic: bool = False, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Do as `step`, in a coroutine handler; the function is a coroutine function, or a plain one that runs in a thread.

        Its position is taken at the call, so that calls may be gathered.
        """
        return self._steps.astep(self._steps.place(StepKind.STEP, name), function, args, kwargs, atomic)

    def sleep(self, name: str, until: timedelta | float | datetime) -> None:
        """Go on in so long (timedelta or seconds), or at a moment (aware), with no thread held and no retry spent.

        The handler is left and called again then; steps on record are not done again.
        """
        self._steps.sleep(name, until)

    def asleep(self, name: str, until: timedelta | float | datetime) -> Coroutine[Any, Any, None]:
        """Do as `sleep`, in a coroutine handler."""
        return self._steps.asleep(self._steps.place(StepKind.SLEEP, name), until)

    def wait_for_event(
        self, name: str, *, key: str | None = None, timeout: timedelta | float | None = None
    ) -> dict[str, Any] | None:
        """Return the payload of an event of this name and key, None when `timeout` (timedelta or seconds) is over.

        Without an event that is kept and that this job has not seen, the handler is left, and called again when there is one.
        No thread is held and no retry spent. The step is called as the event is.
        """
        return self._steps.wait_for_event(name, key, timeout)  # type: ignore[no-any-return]

    def await_event(
        self, name: str, *, key: str | None = None, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, dict[str, Any] | None]:
        """Do as `wait_for_event`, in a coroutine handler."""
        return self._steps.await_event(self._steps.place(StepKind.EVENT, name), name, key, timeout)

    def iterate(
        self,
        name: str,
        source: QuerySet[M] | Iterable[T],
        *,
        key: str | Callable[[Any], Any] | None = None,
        every: float = 1.0,
    ) -> Iterator[Any]:
        """Yield the items of a source, and let a later run go on where this one stopped; a loop that is over yields nothing.

        Args:
            source: a QuerySet, read page by page in the order of its primary key whatever its own order is; or any iterable.
            key: for a QuerySet the name of another unique field to go by; otherwise a function that gives a JSON value of an
                item, behind which a later run goes on. Without one it passes over as many items as were done.
            every: how often the cursor is written, in seconds.

        The cursor stands behind an item once the next one is asked for. There are no steps in the body of the loop.
        """
        return self._steps.iterate(name, source, key, every)

    def aiterate(self, name: str, source: Any, *, key: Any = None, every: float = 1.0) -> AsyncLoop:
        """Do as `iterate`, in a coroutine handler, with `async for`; the source may be an async iterable, too."""
        return AsyncLoop(self._steps, self._steps.place(StepKind.ITERATE, name), source, key, every)

    def run_children(self, new_jobs: Iterable[NewJob], name: str = "children") -> list[Any]:
        """Submit jobs, wait until all have ended with no thread held, and return their results in the order given.

        They are a batch, made once whatever is killed when, and `context.batch` of each. Raises ChildrenFailed when one of them
        ended badly, once all have ended; if the handler lets it pass, the job is dead without a retry, and its replay replays
        the children that failed. What cannot be submitted, or has a `unique_key`, makes the job dead.
        """
        return self._steps.run_children(name, new_jobs)

    def arun_children(self, new_jobs: Iterable[NewJob], name: str = "children") -> Coroutine[Any, Any, list[Any]]:
        """Do as `run_children`, in a coroutine handler."""
        return self._steps.arun_children(self._steps.place(StepKind.CHILDREN, name), new_jobs)

    @property
    def _steps(self) -> Steps:
        steps = self._run.steps
        if steps is None:
            steps = self._run.steps = Steps(self, self._run, self._handler)
        return steps

    def _refuse_lost(self) -> None:
        if self._run.lost:
            raise LeaseLost(f"job {self.job_id} was taken away from this worker")


class BulkContext(Context):
    """The context of one job of a list that a bulk handler runs."""

    @property
    def _steps(self) -> Steps:
        raise Fail("a bulk handler has no steps: they record what one job has done")
