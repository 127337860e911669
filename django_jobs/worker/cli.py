"""What `runworkers` does: check that the site is ready, run a process or a supervisor, answer signals, show a status line."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from django.core.management.base import CommandError
from django.db import Error

import django_jobs
from django_jobs.conf import get_settings, this_release
from django_jobs.db.connections import discard_connection, jobs_alias, jobs_connection, use_database
from django_jobs.db.errors import is_away
from django_jobs.db.server import missing_migrations
from django_jobs.due import has_due_work, known_queues
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases
from django_jobs.models import Job, JobStatus
from django_jobs.names import did_you_mean

from .backoff import OutageBackoff
from .bounded import RELEASE_SECONDS, do_within, unless
from .child.protocol import Lifeline
from .files import make_room
from .flag import Flag
from .forks import watch_forks
from .places import Places
from .process import Process
from .state import EXIT_LEASE_LOST, EXIT_RECYCLE
from .supervisor import Supervisor
from .thread import start_workers

T = TypeVar("T")
logger = logging.getLogger("django_jobs")
STATUS_SECONDS = 0.5
DRAIN_LOOK_SECONDS = 0.05
RELOAD_SECONDS = 10.0  # as long as new code may have to wait for the old
LOOK_SECONDS = 0.1  # whether the process stops by itself; a signal ends the wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line of `runworkers`, checked. `supervised` is the descriptor of the line to a supervisor.

    Args:
        databases: the aliases of the databases to serve; None: that of the routers, where the site names no DATABASES.
    """

    queues: list[str] | None
    threads: int
    processes: int | None
    drain: bool
    poll_interval: float | None
    max_jobs: int | None
    max_rss: int | None
    supervised: int | None
    databases: tuple[str, ...] | None = None

    def new_process(self, *, database: str | None = None, places: Places | None = None) -> Process:
        """Return a worker process for a database; for one among several with what it shares with the others."""
        return Process(
            queues=self.queues,
            threads=self.threads,
            max_jobs=self.max_jobs,
            max_rss=self.max_rss,
            database=database or (self.databases[0] if self.databases else None),
            places=places,
        )

    def of_child(self) -> list[str]:
        """Return the command line of a supervised child."""
        arguments = ["--threads", str(self.threads)]
        for name, value in (
            ("--queues", ",".join(self.queues) if self.queues else None),
            ("--databases", ",".join(self.databases) if self.databases else None),
            ("--poll-interval", self.poll_interval),
            ("--max-jobs", self.max_jobs),
            ("--max-rss", self.max_rss),
        ):
            if value is not None:
                arguments += [name, str(value)]
        return [*arguments, "--drain"] if self.drain else arguments


def begin_lifeline(options: Options) -> Lifeline:
    """Return this process's line to its supervisor, if it has one, which hears from now on that it lives."""
    lifeline = Lifeline(options.supervised)
    try:
        lifeline.begin()
    except RuntimeError as error:  # the system gives no further thread
        logger.error(
            "a thread of worker process %d broke (%s); the process ends, to be started anew", os.getpid(), error
        )
        sys.exit(EXIT_RECYCLE)
    return lifeline


def check_ready(options: Options, signals: StopSignals, lifeline: Lifeline) -> None:
    """Wait for a database that is away; raise CommandError when it is not migrated or a queue is unknown."""
    with use_database(options.databases[0]) if options.databases else nullcontext():
        _check_ready(options, signals, lifeline)


def _check_ready(options: Options, signals: StopSignals, lifeline: Lifeline) -> None:
    if signals.is_program:
        leases.limit_silence()
        if problem := make_room(options.threads):
            raise CommandError(problem)
    backoff = OutageBackoff()
    found: str | None = None
    while not (signals.stop.is_set() or lifeline.is_cut):
        try:
            found = signals.unless_stopped(lambda: _problem(options))
            break
        except Error as error:
            if not is_away(error):
                raise CommandError(f"the database cannot be used: {error}") from None
            signals.stop.wait(backoff.after(error))
            discard_connection()
    if found is None:  # stopped meanwhile, or left alone
        sys.exit(0)
    if found:
        raise CommandError(found)


def _problem(options: Options) -> str:
    """Return what keeps the workers from starting; empty without any."""
    return unmigrated() or "; ".join(unknown_queues(options))


def unmigrated() -> str:
    """Return what is wrong when the database lacks migrations; empty when it has them."""
    missing = missing_migrations()
    return f"the database lacks {', '.join(missing)}: run 'manage.py migrate' first" if missing else ""


def unknown_queues(options: Options) -> list[str]:
    """Return an error for each queue that nothing names; the database is queried only when settings and handlers name too few."""
    names = options.queues or []
    known = {*registry.queues(), *get_settings().QUEUES, "default"}
    if known.issuperset(names):
        return []
    known |= known_queues()
    return [
        f"no handler, setting, row or job names the queue {name!r}.{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]


class StopSignals:
    """The first SIGTERM or SIGINT asks to stop, the second one makes the deadline now; SIGQUIT shows every stack.

    As a context manager it leaves a caller's process as it was, for `call_command`.

    Args:
        is_program: whether this process is `runworkers` and nothing else, which ends with it.
    """

    def __init__(self, *, is_program: bool) -> None:
        self.is_program = is_program
        self.reload_code: int | None = None  # with which the reloader ends once the work has stopped
        self.stop = Flag()
        self.stop_now = Flag()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Handle the signals, where a thread may; the handlers only set flags, so a signal never breaks into a statement."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        if self.is_program:
            watch_forks(lambda handler: handler == self._receive)
            with suppress(OSError, ValueError, AttributeError, RuntimeError):  # a stderr that is closed, or is no file
                faulthandler.register(signal.SIGQUIT, all_threads=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Give a caller its signal handlers back; a program keeps these, for its end would bring back the deadly default."""
        if not self.is_program:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        """Return what some database work returns, or None once asked to stop; a program does not wait for a silent server."""
        return unless(self.stop, work) if self.is_program else work()

    def end(self, code: int, *, at_once: bool = False) -> None:
        """End with an exit code: the program, `at_once` without the interpreter's own end; or the call, by SystemExit.

        The interpreter's end would wait for threads that hang in a handler. Under the reloader the work has a thread beside it.
        """
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        if self.reload_code is not None:
            return
        is_beside = threading.current_thread() is not threading.main_thread()
        if self.is_program and (at_once or is_beside):
            os._exit(code)
        if self.is_program:
            gc.freeze()  # or else the end looks at each object for garbage: 0.2 s of computing in each process
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)
        if code:
            sys.exit(code)

    def _receive(self, number: int, frame: Any) -> None:
        if self.stop.is_set():
            self.stop_now.set()
        self.stop.set()


def run_supervised(options: Options, signals: StopSignals) -> None:
    """Run several worker processes under a supervisor until stopped, and exit with its code.

    Without `--processes` there is none: a container or systemd supervises already, and a second process would cost memory.
    """
    assert options.processes is not None
    supervisor = Supervisor(
        options.processes, options.of_child(), is_drain=options.drain, databases=options.databases or (None,)
    )
    signals.end(supervisor.run(signals.stop, signals.stop_now))


def run_reloading(run: Callable[[], None], signals: StopSignals) -> None:
    """Run under Django's reloader, which starts the program anew when code changes; what runs is handed back before that."""
    from django.utils import autoreload  # a worker without it has no need of it

    has_ended = threading.Event()

    def work() -> None:
        try:
            run()
        finally:
            has_ended.set()

    try:
        autoreload.run_with_reloader(work)
    except SystemExit as end:  # code has changed, or SIGTERM, which the reloader takes for its own
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            raise
        signals.reload_code = end.code if isinstance(end.code, int) else 0
        signals.stop.set()
        signals.stop_now.set()
        has_ended.wait(RELOAD_SECONDS)
        os._exit(signals.reload_code)


def run_alone(options: Options, signals: StopSignals, lifeline: Lifeline, out: Any) -> None:
    """Run one worker process until it is stopped, and exit with its code."""
    with use_database(options.databases[0]) if options.databases else nullcontext():
        _run_alone(options, signals, lifeline, out)


def _run_alone(options: Options, signals: StopSignals, lifeline: Lifeline, out: Any) -> None:
    process = options.new_process()
    lifeline.hello(process.id)
    try:
        if signals.is_program:
            gc.freeze()  # what Django has loaded stays; searching it for garbage took a tenth of the process's time
        start(process, options, signals)
    except RuntimeError as error:  # the system gives no further thread
        process.state.recycle_after(error)
    logger.info("%s", started_text(process))
    status = StatusLine(lambda: counts([process]), None if options.supervised is not None else out)
    status.say(f"{started_text(process)}; Ctrl-C stops it")
    while not (signals.stop.is_set() or process.is_stopping or lifeline.is_cut):
        status.show()
        process.lease.check()
        if options.drain and is_drained(options, process, signals):
            break
        signals.stop.wait(DRAIN_LOOK_SECONDS if options.drain else LOOK_SECONDS)
    _stop(process, signals)
    status.end()
    if options.drain and status.is_live:
        status.say(_still_running(signals))
    logger.info("%s", stopped_text(process))
    if not process.state.is_broken:
        lifeline.bye()
    # Threads that hang in a handler would keep the interpreter alive, and nothing is left that needs it.
    signals.end(process.state.exit_code, at_once=bool(process.state.exit_code) or process.has_abandoned())


def started_text(process: Process) -> str:
    """Say in one line what starts: version, database, queues, threads, release."""
    parts = [
        f"worker process {process.id} started: django_jobs {django_jobs.__version__}",
        # By its vendor: Django asks the server which one of MariaDB and MySQL it is, and it may be away.
        f"database {jobs_alias()!r} ({jobs_connection().vendor})",
        f"queues {', '.join(process.queues)}" if process.queues else "all queues",
        f"{process.threads} threads",
    ]
    return ", ".join([*parts, f"release {this_release()}"] if this_release() else parts)


def stopped_text(process: Process) -> str:
    """Say in one line what the process did, and with which exit code it ends."""
    state = process.state
    return (
        f"worker process {process.id} stopped: {state.completed} jobs completed, {state.failed} attempts failed,"
        f" exit code {state.exit_code}"
    )


def start(
    process: Process, options: Options, signals: StopSignals, ending: threading.Event | Flag | None = None
) -> None:
    """Register the process as soon as the database lets it, and start its threads; unless it is to stop, or `ending` is set."""
    is_ending = ending or signals.stop
    while not (signals.stop.is_set() or is_ending.is_set() or process.is_stopping):
        try:
            if signals.unless_stopped(process.register):
                start_workers(process, poll_interval=options.poll_interval)
            return
        except Error as error:
            is_ending.wait(process.state.backoff.after(error))
            discard_connection()


def is_drained(options: Options, process: Process, signals: StopSignals) -> bool:
    # Asked again afterwards: what was due a moment ago may have been claimed since.
    return process.has_nothing_to_do() and not _has_due_work(options, process, signals) and process.has_nothing_to_do()


def _has_due_work(options: Options, process: Process, signals: StopSignals) -> bool:
    try:
        return signals.unless_stopped(lambda: has_due_work(options.queues)) is not False
    except Error as error:
        time.sleep(process.state.backoff.after(error))
        discard_connection()
        return True


def _still_running(signals: StopSignals) -> str:
    """Say how many jobs others run, for somebody who drained a queue and finds one of its jobs still running."""
    with suppress(Error):
        number = signals.unless_stopped(Job.objects.filter(status=JobStatus.RUNNING).count)
        if number:
            return (
                f"{number} still running in other processes; those of one that was killed run again when its lease ends"
            )
    return ""


def _stop(process: Process, signals: StopSignals) -> None:
    """Stop in order; a second signal cuts the grace short. What still runs then is handed back, right before the exit."""
    if process.state.is_lost:
        signals.end(EXIT_LEASE_LOST, at_once=True)
    if not process.stop(cut_short=signals.stop_now):
        # Not for long: on SQLite a handler that hangs may hold the write lock, and a rescuer finds what is left.
        do_within(RELEASE_SECONDS, process.release_running)
        signals.end(process.state.exit_code, at_once=True)


class Counts(NamedTuple):
    """What a status line shows."""

    completed: int
    running: int
    failed: int


def counts(processes: Iterable[Process]) -> Counts:
    """Return what the processes did, and how many jobs they run."""
    each = [(process.state.completed, process.running, process.state.failed) for process in processes]
    return Counts(*(sum(numbers) for numbers in zip(*each, strict=True))) if each else Counts(0, 0, 0)


class StatusLine:
    """A live line on a terminal: done, running, failed, jobs a second. Nothing elsewhere."""

    def __init__(self, counts: Callable[[], Counts], out: Any) -> None:
        self._counts = counts
        self._out = out
        self._shown_at = float("-inf")
        self._before = 0
        self.is_live = bool(getattr(out, "isatty", lambda: False)())

    def say(self, text: str) -> None:
        """Write a line that stays; nothing for an empty text."""
        if self.is_live and text:
            self._write(f"{text}\n")

    def show(self) -> None:
        """Write the line anew, at most twice a second."""
        now = time.monotonic()
        if not self.is_live or now - self._shown_at < STATUS_SECONDS:
            return
        completed, running, failed = self._counts()
        done = completed + failed
        rate = max(0.0, (done - self._before) / (now - self._shown_at))
        self._before, self._shown_at = done, now
        self._write(f"\r\x1b[K{completed} done, {running} running, {failed} failed, {rate:.0f} jobs/s")

    def end(self) -> None:
        """Leave the line as it is and go to the next one."""
        if self.is_live:
            self._shown_at = float("-inf")
            self.show()
            self._write("\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text, ending="")
            self._out.flush()
        except (OSError, ValueError):  # the terminal is gone, which is no reason to stop
            self.is_live = False
