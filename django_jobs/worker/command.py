"""What `runworkers` does: check that the site is ready, run a process or a supervisor, answer signals, show a status line."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError
from django.db import Error

from django_jobs.conf import get_settings
from django_jobs.handlers import registry
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.readiness import has_due_work, missing_migrations
from django_jobs.lifecycle.transactions import is_away
from django_jobs.names import did_you_mean

from .process import EXIT_LEASE_LOST, Process
from .trouble import Trouble

STATUS_SECONDS = 0.5
DRAIN_LOOK_SECONDS = 0.05
RELEASE_SECONDS = 2.0
PULSES_PER_LEASE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line of `runworkers`, checked."""

    queues: list[str] | None
    threads: int
    processes: int | None
    drain: bool
    poll_interval: float | None
    max_jobs: int | None
    max_rss: int | None
    lifeline: int | None


def check_ready(options: Options) -> None:
    """Wait for a database that is away; raise CommandError when it is not migrated or a queue is unknown."""
    processes.limit_silence()
    trouble = Trouble()
    stop = _Signals.install().asked
    while not stop.is_set():
        try:
            missing = missing_migrations()
            unknown = [] if missing else _unknown_queues(options.queues or [])
            break
        except Error as error:
            if not is_away(error):
                raise CommandError(f"the database cannot be used: {error}") from None
            stop.wait(trouble.after(error))
            processes.discard_connection()
    else:
        sys.exit(0)
    if missing:
        raise CommandError(f"the database lacks {', '.join(missing)}: run 'manage.py migrate' first")
    if unknown:
        raise CommandError("; ".join(unknown))


def _unknown_queues(names: list[str]) -> list[str]:
    """Return what is to be said of queues that nothing names; the database is asked only when it has to be."""
    known = {*registry.queues(), *get_settings().QUEUES, "default"}
    if known.issuperset(names):
        return []
    known |= processes.known_queues()
    return [
        f"no handler, setting, row or job names the queue {name!r}.{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]


class _Signals:
    """The first SIGTERM or SIGINT asks to stop, the second one makes the deadline now; SIGQUIT shows every stack."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.again = threading.Event()

    @classmethod
    def install(cls) -> _Signals:
        """Install the handlers once per process; they only set events, so a signal never breaks into a statement."""
        global _signals
        if _signals is None:
            _signals = cls()
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, _signals._receive)
                faulthandler.register(signal.SIGQUIT, all_threads=True)
        return _signals

    def end(self) -> None:
        """Ignore signals from now on: the interpreter's own end would bring back their deadly default."""
        gc.freeze()  # else that end looks at each object for garbage, 0.2 s of computing in each process
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: Any) -> None:
        if self.asked.is_set():
            self.again.set()
        self.asked.set()


_signals: _Signals | None = None


def answer_signals() -> None:
    """Take note of signals from now on, instead of ending by them."""
    _Signals.install()


def run_alone(options: Options, out: Any) -> None:
    """Run one worker process until it is stopped, and exit with its code."""
    signals = _Signals.install()
    lifeline = _Lifeline(options.lifeline)
    process = Process(
        queues=options.queues,
        threads=options.threads,
        poll_interval=options.poll_interval,
        max_jobs=options.max_jobs,
        max_rss=options.max_rss,
    )
    lifeline.hello(process.id)
    gc.freeze()  # the site's code and ours stay; else each search for garbage goes through it all
    while not signals.asked.is_set():
        try:
            process.start()
            break
        except Error as error:
            signals.asked.wait(process.trouble.after(error))
            processes.discard_connection()
    status = StatusLine(process, out)
    while not (signals.asked.is_set() or process.is_stopping or lifeline.is_cut):
        status.show()
        process.heartbeat.check()
        if options.drain and _is_drained(options, process):
            break
        process.wait_until_stopping(DRAIN_LOOK_SECONDS if options.drain else 0.1)
    _stop(process, signals)
    status.end()
    lifeline.bye()
    signals.end()
    # Threads that hang in a handler would keep the interpreter alive, and nothing is left that needs it.
    sys.stdout.flush()
    sys.stderr.flush()
    if process.exit_code or process.has_abandoned():
        os._exit(process.exit_code)


def _is_drained(options: Options, process: Process) -> bool:
    # Asked again afterwards: what was due a moment ago may have been claimed since.
    return process.has_nothing_to_do() and not _has_due_work(options, process) and process.has_nothing_to_do()


def _has_due_work(options: Options, process: Process) -> bool:
    try:
        return has_due_work(options.queues)
    except Error as error:
        time.sleep(process.trouble.after(error))
        processes.discard_connection()
        return True


def _stop(process: Process, signals: _Signals) -> None:
    """Stop in order; a second signal cuts the grace short. What still runs then is handed back, right before the exit."""
    if process.is_lost:
        os._exit(EXIT_LEASE_LOST)
    watcher = threading.Thread(target=_hurry_when, args=(signals.again, process), daemon=True)
    watcher.start()
    if not process.stop():
        # Not for long: on SQLite a handler that hangs may hold the write lock, and a rescuer finds what is left.
        releasing = threading.Thread(target=_release, args=(process,), daemon=True)
        releasing.start()
        releasing.join(RELEASE_SECONDS)
        sys.stderr.flush()
        os._exit(process.exit_code)


def _release(process: Process) -> None:
    try:
        process.release_running()
    except Error:
        pass  # a rescuer takes the jobs back when the lease has run out


def _hurry_when(again: threading.Event, process: Process) -> None:
    again.wait()
    process.hurry()


class _Lifeline:
    """The pipe between a supervisor and its child: bytes go up as long as threads get to run, its end says that one died."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._said_hello = threading.Event()
        self.is_cut = False
        if descriptor is not None:
            threading.Thread(target=self._watch, name="lifeline", daemon=True).start()
            threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def _watch(self) -> None:
        assert self._descriptor is not None
        try:
            while os.read(self._descriptor, 1):
                pass
        except OSError:
            pass
        self.is_cut = True

    def _write(self, text: bytes) -> None:
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, text)
            except OSError:
                self.is_cut = True

    def hello(self, process_id: str) -> None:
        """Tell the supervisor who we are."""
        self._write(process_id.encode() + b"\n")
        self._said_hello.set()

    def _pulse(self) -> None:
        """Tell the supervisor that no handler holds the interpreter. Whether the database answers is the heartbeat's care."""
        while not self.is_cut:
            self._said_hello.wait()
            self._write(b".")
            time.sleep(get_settings().LEASE_SECONDS / PULSES_PER_LEASE)

    def bye(self) -> None:
        """Tell the supervisor that we left in order."""
        self._write(b"!")


class StatusLine:
    """A live line on a terminal: done, running, failed, jobs a second. Nothing elsewhere."""

    def __init__(self, process: Process, out: Any) -> None:
        self._process = process
        self._out = out
        self._shown_at = float("-inf")
        self._before = 0
        self._live = bool(getattr(out, "isatty", lambda: False)())

    def show(self) -> None:
        """Write the line anew, at most twice a second."""
        now = time.monotonic()
        if not self._live or now - self._shown_at < STATUS_SECONDS:
            return
        done = self._process.completed + self._process.failed
        rate = max(0.0, (done - self._before) / (now - self._shown_at))
        self._before, self._shown_at = done, now
        self._out.write(
            f"\r\x1b[K{self._process.completed} done, {self._process.running} running,"
            f" {self._process.failed} failed, {rate:.0f} jobs/s"
        )
        self._out.flush()

    def end(self) -> None:
        """Leave the line as it is and go to the next one."""
        if self._live:
            self._shown_at = float("-inf")
            self.show()
            self._out.write("\n")


def run_supervised(options: Options, out: Any) -> None:
    """Run several worker processes under a supervisor until stopped, and exit with its code."""
    from .supervisor import Supervisor

    signals = _Signals.install()
    code = Supervisor(options).run(signals.asked, signals.again)
    signals.end()
    if code:
        sys.exit(code)
