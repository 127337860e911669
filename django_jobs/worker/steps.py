"""The steps of one run: which comes next, what an earlier run has recorded of it, and what the handler may not ask for.

Sync and async forms share all but the calls themselves. Whatever is misused makes the job dead, even if the handler swallows the
error: it would go on with steps that are not those on record.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error, transaction

from django_jobs.conf import get_settings
from django_jobs.db.connections import discard_connection, in_transaction, jobs_connection, open_blocks
from django_jobs.db.dialects.words import StepRow
from django_jobs.db.errors import LOCK_NOT_AVAILABLE, is_away, is_transient, sqlstate
from django_jobs.db.transactions import immediate
from django_jobs.encryption import encrypted
from django_jobs.exceptions import ChildrenFailed, InvalidJob, JobsError, LeaseLost, StepMismatch, Waiting
from django_jobs.handlers import Handler, encrypts
from django_jobs.lifecycle import children, events
from django_jobs.lifecycle import steps as moves
from django_jobs.models import DeadLetterReason, StepKind
from django_jobs.names import event_key_problem, step_name_problem
from django_jobs.numbers import LONGEST_SECONDS, seconds_of
from django_jobs.payloads import decode, encode_result, readable, sealed
from django_jobs.text import shown

from .backoff import OutageBackoff
from .iterations import Loop, as_json, is_pause, source_of
from .run import Run

if TYPE_CHECKING:
    from .context import Context

logger = logging.getLogger("django_jobs")
T = TypeVar("T")
_Writer = Callable[[str, int, StepRow], T | None]
AGAIN = 5
MEND = "bring back the code that recorded it, or replay the job from the start"

# The steps whose function runs in this context, so that a step in a step is seen, in threads and tasks that it starts, too.
_inside: ContextVar[Steps | None] = ContextVar("django_jobs_inside_step", default=None)


class Place(NamedTuple):
    """A step's place in its run: its position from 1, its name with the number of its use, its kind."""

    position: int
    name: str
    kind: StepKind


class Steps:
    """What a run has asked for so far, and what is on record of it."""

    def __init__(self, context: Context, run: Run, handler: Handler) -> None:
        self.fatal: JobsError | None = None  # what makes the job dead, whatever the handler makes of it
        self.reason = DeadLetterReason.FAILED_BY_HANDLER
        self._context = context
        self._run = run
        self._handler = handler
        self._thread: int | None = None  # of a coroutine handler
        self._uses: dict[str, int] = {}
        self._position = 0
        self._records: dict[int, moves.Record] | None = None
        self._names: set[str] = set()
        self._leaving: Waiting | None = None
        self._waits: dict[int, float] = {}  # the seconds that are left, by the key of the step
        self._forgets_crashes = run.job.crash_count > 0
        self._loop: Loop | None = None  # the one that goes on
        self._loops: list[Loop] = []

    # Where the handler is.

    def place(self, kind: StepKind, name: Any, twin: str = "") -> Place:
        """Take the next position; raise what stands against it.

        Args:
            twin: the form that a coroutine handler uses; empty when this is it.
        """
        if self.fatal is not None:
            raise self.fatal
        if self._leaving is not None:
            raise self._leaving
        if problem := self._misuse(twin):
            self.stop(JobsError(f"{kind.value} {shown(name)}: {problem}"))
        if problem := step_name_problem(name):
            self.stop(InvalidJob(problem))
        self._uses[name] = use = self._uses.get(name, 0) + 1
        self._position += 1
        return Place(self._position, name if use == 1 else f"{name}#{use}", kind)

    def _misuse(self, twin: str) -> str | None:
        if self._handler.atomic:
            return "an atomic handler has no steps: a record must commit by itself; use atomic steps in a plain handler"
        if _inside.get() is self:
            return "a step's function cannot ask for steps itself; call them one after the other"
        if self._loop is not None:
            return f"the loop {str(self._loop)!r} goes on, and there are no steps in its body; give the item to a job of its own"
        if twin and self._handler.is_async:
            return f"this is a coroutine handler: await context.{twin}(…)"
        if not twin and not self._handler.is_async:
            return "this handler is no coroutine: use the form without the a"
        if not twin:
            if self._thread is None:
                self._thread = threading.get_ident()
            return None if self._thread == threading.get_ident() else "steps belong to the handler's event loop"
        if not self._run.is_here:
            return "steps belong to the handler's own thread"
        return self._transaction()

    def _transaction(self) -> str | None:
        if open_blocks() <= self._run.blocks_around:
            return None
        return (
            "a transaction is open, and a record must commit by itself; what belongs together goes into one atomic step"
        )

    def find(self, place: Place) -> moves.Record | None:
        """Return what is on record of a place, None for a new one; raise StepMismatch when something else is."""
        assert self._records is not None
        record = self._records.get(place.position)
        if record is not None and (record.name, record.kind) != (place.name, place.kind):
            self.mismatch(f"step {place.position} is on record as {record.kind} {record.name!r}", place)
        if record is None and place.name in self._names:
            self.mismatch(f"{place.name!r} is on record at another position than {place.position}", place)
        return record

    def load(self) -> None:
        """Read what earlier runs have recorded; the first run of a job has nothing to read.

        Also looks whether the run may go on: raises Cancelled, or LeaseLost.
        """
        self._context.check_cancelled()
        if self._records is None:
            job = self._run.job
            found = self.insist(lambda: moves.recorded(job.id)) if job.fence > 1 else []
            self._names = {record.name for record in found}
            self._records = {record.position: record for record in found}

    def mismatch(self, recorded: str, place: Place) -> NoReturn:
        """Make the job dead, because its code is not the one that the records are of."""
        asked = f"the code asks for {place.kind.value} {place.name!r} there"
        self.stop(StepMismatch(f"{recorded}, and {asked}; {MEND}"), DeadLetterReason.STEP_MISMATCH)

    def lose_cursor(self, place: Place, error: StepMismatch) -> NoReturn:
        """Make the job dead, because the item at which a loop stopped is not there any more."""
        self.stop(StepMismatch(f"loop {place.name!r}: {error}; {MEND}"), DeadLetterReason.STEP_MISMATCH)

    def stop(self, error: JobsError, reason: DeadLetterReason = DeadLetterReason.FAILED_BY_HANDLER) -> NoReturn:
        """Raise an error that makes the job dead, whatever the handler does with it."""
        if self.fatal is None:
            self.fatal, self.reason = error, reason
        raise error

    # What it asks for.

    def step(self, name: Any, function: Callable[..., T], args: Any, kwargs: Any, atomic: bool) -> T:
        """Return the recorded result of a step, or run it and record that."""
        place = self.place(StepKind.STEP, name, "astep")
        self.load()
        record = self.find(place)
        if record is not None:
            return readable(record.result)  # type: ignore[no-any-return]
        run = self._run_atomic if atomic else self._run_plain
        return run(place, function, args, kwargs)

    async def astep(self, place: Place, function: Callable[..., Any], args: Any, kwargs: Any, atomic: bool) -> Any:
        """Return the recorded result of a step, or run it, in a thread unless it is a coroutine function, and record that."""
        await self.aload()
        record = self.find(place)
        if record is not None:
            return readable(record.result)
        if atomic:
            if inspect.iscoroutinefunction(function):
                self.stop(JobsError(f"step {place.name!r}: a coroutine cannot be atomic; give a plain function"))
            return await sync_to_async(self._run_atomic)(place, function, args, kwargs)
        started = time.monotonic()
        call = function if inspect.iscoroutinefunction(function) else sync_to_async(function)
        token = _inside.set(self)
        try:
            value = await call(*args, **kwargs)
        finally:
            _inside.reset(token)
        return await sync_to_async(self._keep)(place, value, time.monotonic() - started)

    async def aload(self) -> None:
        """Do what `load` does, in the thread of the database work where that is needed."""
        if self._records is None or self._context.is_time_to_look:
            await sync_to_async(self.load)()
        elif self._run.lost:
            self.lose()

    def sleep(self, name: Any, until: Any) -> None:
        """Go on when the time has come, else leave the handler."""
        place = self.place(StepKind.SLEEP, name, "asleep")
        self.load()
        self._sleep(place, until)

    async def asleep(self, place: Place, until: Any) -> None:
        """Go on when the time has come, else leave the handler."""
        await self.aload()
        await sync_to_async(self._sleep)(place, until)

    def _sleep(self, place: Place, until: Any) -> None:
        record = self.find(place)
        if record is None:
            seconds = self._seconds_until(place, until)
            key = self.record(StepRow(*place, has_ended=seconds <= 0, due=max(seconds, 0.0)))
            if seconds > 0:
                self.leave(place, key, seconds)
        elif record.is_due and not record.has_ended:
            self.change(record.id, has_ended=True)
        elif not record.has_ended:
            assert record.due_at is not None
            due_at = record.due_at
            self.leave(place, record.id, self.insist(lambda: moves.seconds_until(due_at)))

    def _seconds_until(self, place: Place, until: Any) -> float:
        if isinstance(until, datetime):
            if until.tzinfo is None:
                self.stop(InvalidJob(f"sleep {place.name!r}: give an aware datetime, not {shown(until)}"))
            seconds: float | None = self.insist(lambda: moves.seconds_until(until))
        else:
            seconds = seconds_of(until)
        if seconds is None or seconds > LONGEST_SECONDS:
            self.stop(
                InvalidJob(f"sleep {place.name!r}: give seconds, a timedelta or an aware datetime, at most ten years ahead,"
                           f" not {shown(until)}")
            )  # fmt: skip
        return seconds

    def wait_for_event(self, name: Any, key: Any, timeout: Any) -> Any:
        """Return the payload of an event, None after the timeout; leave the handler while there is neither."""
        place = self.place(StepKind.EVENT, name, "await_event")
        self.load()
        return self._wait_for_event(place, name, key, timeout)

    async def await_event(self, place: Place, name: Any, key: Any, timeout: Any) -> Any:
        """Return the payload of an event, None after the timeout; leave the handler while there is neither."""
        await self.aload()
        return await sync_to_async(self._wait_for_event)(place, name, key, timeout)

    def _wait_for_event(self, place: Place, name: str, key: Any, timeout: Any) -> Any:
        record = self.find(place)
        if record is None:
            # On record before the first look: an emit that this look does not see is delivered after its commit, and sees us.
            row = StepRow(
                *place, has_ended=False, due=self._timeout(place, key, timeout), event_name=name, event_key=key
            )
            step_id = self.record(row)
        elif record.event_key != key:
            self.mismatch(
                f"event {place.name!r} is on record with the key {record.event_key!r}, not {shown(key)}", place
            )
        elif record.has_ended:
            return readable(record.result)
        else:
            step_id = record.id
        job = self._run.job
        answer = self.insist(lambda: events.take(job.id, job.fence, step_id))
        if answer is None:
            self.lose()
        if not answer.is_over:
            self.leave(place, step_id, answer.seconds_left)
        return answer.payload

    def _timeout(self, place: Place, key: Any, timeout: Any) -> float | None:
        if problem := event_key_problem(key):
            self.stop(InvalidJob(f"event {place.name!r}: {problem}"))
        if timeout is None:
            return None
        seconds = seconds_of(timeout)
        if seconds is None or not 0 < seconds <= LONGEST_SECONDS:
            what = "give a timedelta or seconds above 0, at most ten years"
            self.stop(InvalidJob(f"event {place.name!r}: timeout={shown(timeout)}: {what}"))
        return seconds

    def run_children(self, name: Any, new_jobs: Any) -> list[Any]:
        """Return the results of children in order; leave the handler while one of them has not ended."""
        place = self.place(StepKind.CHILDREN, name, "arun_children")
        self.load()
        return self._run_children(place, new_jobs)

    async def arun_children(self, place: Place, new_jobs: Any) -> list[Any]:
        """Return the results of children in order; leave the handler while one of them has not ended."""
        await self.aload()
        return await sync_to_async(self._run_children)(place, new_jobs)

    def _run_children(self, place: Place, new_jobs: Any) -> list[Any]:
        record = self.find(place)
        if record is None:
            begun = self._begin_children(place, new_jobs)
            return [] if begun is None else self.leave(place, begun, moves.LONGEST_WAIT)
        if record.has_ended and isinstance(record.result, list):
            return record.result
        job, step_id = self._run.job, record.id
        try:
            answer = self.insist(lambda: children.look(job.id, job.fence, step_id, self.kept))
        except InvalidJob as error:
            self.stop(InvalidJob(f"children {place.name!r}: {error}"), DeadLetterReason.BAD_RESULT)
        if answer is None:
            self.lose()
        if answer.problem:
            raise ChildrenFailed(f"children {place.name!r}: {answer.problem}", answer.failed)
        return self.leave(place, step_id, moves.LONGEST_WAIT) if answer.results is None else answer.results

    def _begin_children(self, place: Place, new_jobs: Any) -> int | None:
        """Submit children and record that the run waits for them; return the record's key, None when there are no children."""
        if self._handler.is_async and (problem := self._transaction()):
            self.stop(JobsError(f"children {place.name!r}: {problem}"))
        job = self._run.job
        try:
            new = children.checked(new_jobs)
            step_id = self.insist(lambda: children.begin(job.id, job.fence, StepRow(*place), new))
        except InvalidJob as error:
            self.stop(InvalidJob(*(f"children {place.name!r}: {problem}" for problem in error.problems)))
        if step_id is None:
            self.lose()
        self.recorded(place.name)
        return step_id if new else None

    def iterate(self, name: Any, source: Any, key: Any, every: Any) -> Iterator[Any]:
        """Return an iterator over what no run is done with yet."""
        place = self.place(StepKind.ITERATE, name, "aiterate")
        self.load()
        return self.loop(place, source, key, every).items()

    def loop(self, place: Place, source: Any, key: Any, every: Any) -> Loop:
        """Return a loop at a place."""
        try:
            if not is_pause(every):
                raise InvalidJob(f"every={shown(every)}: give a number of seconds")
            chosen = source_of(source, key, is_async=self._handler.is_async)
        except InvalidJob as error:
            self.stop(InvalidJob(f"loop {place.name!r}: {error}"))
        loop = Loop(self, place, chosen, every)
        self._loops.append(loop)
        return loop

    def enter(self, loop: Loop) -> None:
        """Begin a loop, which has no steps inside."""
        self._loop = loop

    def leave_loop(self, loop: Loop) -> None:
        """End that."""
        if self._loop is loop:
            self._loop = None

    def check(self) -> None:
        """Raise Cancelled when somebody asked to stop the job, LeaseLost when it was taken away; asks once a second."""
        self._context.check_cancelled()

    def as_cursor(self, place: Place, cursor: Any) -> Any:
        """Return a cursor as it is recorded; one that is no JSON makes the job dead."""
        try:
            return as_json(cursor)
        except InvalidJob as error:
            self.stop(InvalidJob(f"loop {place.name!r}: {error}"), DeadLetterReason.BAD_RESULT)

    # How it is recorded.

    def _run_plain(self, place: Place, function: Callable[..., T], args: Any, kwargs: Any) -> T:
        started = time.monotonic()
        value = self._call(function, args, kwargs)
        return self._keep(place, value, time.monotonic() - started)

    def _call(self, function: Callable[..., T], args: Any, kwargs: Any) -> T:
        token = _inside.set(self)
        try:
            return function(*args, **kwargs)
        finally:
            _inside.reset(token)

    def _keep(self, place: Place, value: T, seconds: float) -> T:
        """Record a step's result and return it as it will be read back."""
        text = self._encoded(place, value)
        row = StepRow(*place, result=self.stored(text), seconds=seconds)
        self._write(row, moves.record_done, moves.record_done_again)
        return None if text is None else decode(text)  # type: ignore[return-value]

    def _encoded(self, place: Place, value: Any) -> str | None:
        if value is None:
            return None
        try:
            return encode_result(value, where=f"step {place.name!r}")
        except InvalidJob as error:
            self.stop(error, DeadLetterReason.BAD_RESULT)

    def stored(self, text: str | None) -> str | None:
        """Return a result's text as it is to be stored: encrypted where those of the handler's jobs are."""
        return encrypted(text) if text is not None and encrypts(self._handler) else text

    def kept(self, value: Any) -> Any:
        """Return a result as it is to be stored, as `stored` does."""
        return sealed(value) if value is not None and encrypts(self._handler) else value

    def _run_atomic(self, place: Place, function: Callable[..., T], args: Any, kwargs: Any) -> T:
        """Run a step and record it in one transaction; again, as an atomic handler, when the database undid that."""
        if self._handler.is_async and (problem := self._transaction()):
            self.stop(JobsError(f"step {place.name!r}: {problem}"))
        for undone in itertools.count(1):
            committed: list[bool] = []
            try:
                value = self._run_atomic_once(place, function, args, kwargs, committed)
                break
            except Error as error:
                # A lock timeout is what the function asked for.
                is_undone = is_transient(error) and sqlstate(error) != LOCK_NOT_AVAILABLE
                if committed or not is_undone or undone > AGAIN or self.is_over:
                    raise
                time.sleep(random.uniform(0.005, 0.02) * 2**undone)  # noqa: S311  so that two that met do not meet again
        self.recorded(place.name)
        return value

    def _run_atomic_once(
        self, place: Place, function: Callable[..., T], args: Any, kwargs: Any, committed: list[bool]
    ) -> T:
        connection = jobs_connection()
        started = time.monotonic()
        with immediate(connection), transaction.atomic(using=connection.alias, durable=True):
            # Before those of the function, one of which may raise a database error.
            transaction.on_commit(lambda: committed.append(True), using=connection.alias)
            guard = connection.savepoint() or ""  # in an atomic block it has a name
            value = self._call(function, args, kwargs)
            try:
                # The savepoint is gone when the function committed, or a DDL statement did so on MariaDB.
                connection.savepoint_commit(guard)
            except Error as error:
                if is_away(error):
                    raise
                self.stop(
                    JobsError(
                        f"atomic step {place.name!r} committed or rolled back its transaction (a COMMIT, a ROLLBACK, or a DDL"
                        f" statement), so its effects cannot be made to happen exactly once: {error}"
                    )
                )
            text = self._encoded(place, value)
            job = self._run.job
            row = StepRow(*place, result=self.stored(text), seconds=time.monotonic() - started)
            if self._run.lost or not moves.record_done(job.id, job.fence, row):
                self.lose()
        return None if text is None else decode(text)  # type: ignore[return-value]

    def record(self, row: StepRow) -> int:
        """Record a step in a statement of its own and return its key; raise LeaseLost, with nothing written, for a lost run."""
        return self._write(row, moves.record, moves.record_again)

    def _write(self, row: StepRow, first: _Writer[T], again: _Writer[T]) -> T:
        if self._handler.is_async and (problem := self._transaction()):
            self.stop(JobsError(f"step {row.name!r}: {problem}"))
        job = self._run.job
        written = self.insist(lambda: first(job.id, job.fence, row), again=lambda: again(job.id, job.fence, row))
        if not written:
            self.lose()
        self.recorded(row.name)
        return written

    def change(self, key: int, *, result: Any = None, has_ended: bool) -> None:
        """Change a record of this run; raise LeaseLost for a lost one."""
        job = self._run.job
        kept = self.kept(result)
        if not self.insist(lambda: moves.change(job.id, job.fence, key, result=kept, has_ended=has_ended)):
            self.lose()

    def recorded(self, name: str) -> None:
        """Count crashes anew, once a new record is committed."""
        if self._forgets_crashes:
            self._forgets_crashes = False
            job = self._run.job
            self.insist(lambda: moves.forget_crashes(job.id, job.fence))

    def insist(self, move: Callable[[], T], *, again: Callable[[], T] | None = None) -> T:
        """Call `move` until the database answers: what was done is not to be forgotten because the database was away.

        After an error, `again` is called in the place of `move`, if there is one.
        Raises the database's error after a lease, when the run is lost for sure, and at once in a transaction.
        """
        began = time.monotonic()
        backoff: OutageBackoff | None = None
        while True:
            try:
                return move()
            except Error as error:
                is_late = time.monotonic() > began + get_settings().LEASE_SECONDS
                if not is_away(error) or in_transaction() or self.is_over or is_late:
                    raise
                backoff = backoff or OutageBackoff()
                time.sleep(backoff.after(error))
                discard_connection()
                move = again or move

    @property
    def is_over(self) -> bool:
        """Whether nothing that the run still does will count."""
        return self._run.lost or self._run.abandoned or self._run.timed_out

    def lose(self) -> NoReturn:
        """Raise LeaseLost: somebody else has the job, and this run writes nothing more."""
        self._run.lost = True
        raise LeaseLost(f"job {self._run.job.id} was taken away from this worker")

    # How the run ends.

    def leave(self, place: Place, key: int, seconds: float) -> NoReturn:
        """Leave the handler, whose job goes to wait, for so many seconds at most."""
        self._waits[key] = max(0.0, seconds)
        self._leaving = Waiting(f"waits at {place.name!r}")
        raise self._leaving

    @property
    def waits(self) -> tuple[int, ...]:
        """The keys of the steps that the run goes to wait in."""
        return tuple(self._waits)

    @property
    def delay(self) -> float:
        """The seconds until the first of these waits is over."""
        return min(self._waits.values())

    @property
    def is_dirty(self) -> bool:
        """Whether a cursor is to be written."""
        return any(loop.is_dirty for loop in self._loops)

    def flush(self) -> None:
        """Write the cursors, as far as that can be done now: the next run goes on behind them."""
        for loop in self._loops:
            if loop.is_dirty and not self._run.lost:
                try:
                    loop.write()
                except (Error, JobsError):
                    logger.debug(
                        "the cursor of loop %s of job %s is not written", loop, self._run.job.id, exc_info=True
                    )

    def end(self) -> None:
        """Look, when the handler has returned, whether it may: raise what made the job dead, or leaves it waiting."""
        if self.fatal is not None:
            raise self.fatal
        if self._leaving is not None:
            raise self._leaving
        left: Iterable[moves.Record] = (self._records or {}).values()
        left = sorted(record for record in left if record.position > self._position)
        if left:
            first = f"step {left[0].position} is on record as {left[0].kind} {left[0].name!r}"
            error = StepMismatch(f"{first}, and the handler returned before it; {MEND}")
            self.stop(error, DeadLetterReason.STEP_MISMATCH)

    def error_after(self, error: BaseException) -> BaseException:
        """Return what counts of a handler that raised: an error that made the job dead, else what was raised.

        A TaskGroup raises what leaves the handler to wait in a group.
        """
        if self.fatal is None and self._leaving is not None and isinstance(error, BaseExceptionGroup):
            _, others = error.split(Waiting)
            return self._leaving if others is None else error
        return self.fatal or error
