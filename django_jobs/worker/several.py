"""`runworkers` over several databases: a member for each, which waits for nobody else's server, under one main thread."""

from __future__ import annotations

import gc
import logging
import threading
import time
from typing import Any

from django.core.management.base import CommandError
from django.db import Error, connections

from django_jobs.db.connections import discard_connection, use_database, work_on
from django_jobs.db.errors import is_away
from django_jobs.lifecycle import leases

from .bounded import RELEASE_SECONDS, Work, do_within
from .child.protocol import Lifeline
from .cli import (
    DRAIN_LOOK_SECONDS,
    Options,
    StatusLine,
    StopSignals,
    counts,
    is_drained,
    start,
    started_text,
    stopped_text,
    unknown_queues,
    unmigrated,
)
from .files import make_room
from .places import Places
from .process import Process
from .state import EXIT_DRAINED, EXIT_LEASE_LOST

logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.1
LEASE_LOOK_SECONDS = 0.5
START_SECONDS = 5.0  # how long the start waits for the databases to answer; the others are served then
MIGRATION_SECONDS = 5.0  # between looks whether a database that came late has been migrated


def check_all_ready(options: Options, signals: StopSignals) -> None:
    """Raise CommandError when a database that answers is not migrated, or a queue is known in none of them.

    One that is away, or does not answer, is waited for while the others are served.
    """
    if signals.is_program:
        _limit(options)
    looks = {}
    for database in options.databases or ():
        with use_database(database):  # the thread works in the context that it is made in
            looks[database] = Work(f"look at {database}", lambda: (unmigrated(), unknown_queues(options)))
        looks[database].start()
    answers: dict[str, tuple[str, list[str]]] = {}
    deadline = time.monotonic() + START_SECONDS
    for database, look in looks.items():
        look.join(max(0.0, deadline - time.monotonic()))
        try:
            if not look.is_alive():
                answers[database] = look.result()
        except Error as error:
            if not is_away(error):
                raise CommandError(f"the database {database!r} cannot be used: {error}") from None
            logger.warning("the database %r cannot be used, waiting for it: %s", database, str(error).strip())
    problems = [f"database {database!r}: {problem}" for database, (problem, _) in answers.items() if problem]
    if not problems and answers:
        problems = sorted(set.intersection(*(set(unknown) for _, unknown in answers.values())))
    if problems:
        raise CommandError("; ".join(problems))


def _limit(options: Options) -> None:
    databases = options.databases or ()
    for database in databases:
        with use_database(database):
            leases.limit_silence()
    if problem := make_room(options.threads, len(databases)):
        raise CommandError(problem)


class Member(threading.Thread):
    """The worker process of one database, from its registration to its end; this thread watches over it.

    Args:
        group: the members that share places.
        database: the alias of its database.
    """

    def __init__(self, group: Group, database: str) -> None:
        super().__init__(name=f"member {database}", daemon=True)
        self.database = database
        self.drained_since: float | None = None
        self.looked_at = 0.0
        self.has_left = True  # whether nothing hangs in a handler
        self._group = group
        self._options = group.options
        self._signals = group.signals
        self.process = self._new_process()

    def _new_process(self) -> Process:
        return self._options.new_process(database=self.database, places=self._group.places)

    @property
    def lives(self) -> bool:
        """Whether the process is registered and has its lease."""
        return self.process.is_registered and not self.process.state.is_lost

    def run(self) -> None:
        """Serve the database until the group ends; a process that loses its lease is followed by another."""
        work_on(self.database)
        try:
            while self._serve():
                lost, self.process = self.process, self._new_process()
                self._group.lost.append(lost)
                lost.stop(graceful=False)
        except BaseException as error:  # a thread that dies without a word would leave a process that only looks alive
            self.process.state.recycle_after(error)
        finally:
            connections.close_all()

    def _serve(self) -> bool:
        """Serve until the end; return whether the lease was lost and others live, so that it is to begin anew."""
        process = self.process
        self._wait_for_migration()
        start(process, self._options, self._signals, self._group.ending)
        connections.close_all()  # of this thread, which only watches from now on
        if self._group.ending.is_set():
            return False
        logger.info("%s", started_text(process))
        while not (self._group.ending.is_set() or process.is_stopping):
            process.lease.check()
            if self._options.drain:
                self._look_whether_drained()
            process.state.wait_until_stopping(DRAIN_LOOK_SECONDS if self._options.drain else LEASE_LOOK_SECONDS)
        return process.state.is_lost and self._group.others_live(self)

    def _wait_for_migration(self) -> None:
        """Wait for a database that was away when the others were looked at, and for its tables."""
        while not self._group.ending.is_set():
            try:
                problem = unmigrated()
            except Error as error:
                discard_connection()
                self._group.ending.wait(self.process.state.backoff.after(error))
                continue
            if not problem:
                return
            logger.error("database %r: %s", self.database, problem)
            self._group.ending.wait(MIGRATION_SECONDS)

    def _look_whether_drained(self) -> None:
        now = time.monotonic()
        if is_drained(self._options, self.process, self._signals):
            self.drained_since = self.drained_since or now
        else:
            self.drained_since = None
        self.looked_at = now

    def end(self) -> None:
        """Stop the process in order, and hand back what still runs at the end of the grace; this is another thread."""
        work_on(self.database)
        process = self.process
        if process.state.is_lost:
            return
        if not process.stop(cut_short=self._signals.stop_now):
            self.has_left = False
            do_within(RELEASE_SECONDS, process.release_running)


class Group:
    """The members that share places. The main thread uses it, and the members where that is said."""

    def __init__(self, options: Options, signals: StopSignals) -> None:
        self.options = options
        self.signals = signals
        self.places = Places(options.threads, options.max_jobs)
        self.ending = threading.Event()
        self.lost: list[Process] = []  # what members add whose lease was lost
        self.members = [Member(self, database) for database in options.databases or ()]

    def processes(self) -> list[Process]:
        """Return the processes that were, and those that are."""
        return [*self.lost, *(member.process for member in self.members)]

    def others_live(self, asking: Member) -> bool:
        """Whether another member lives; for members."""
        return any(member.lives for member in self.members if member is not asking)

    @property
    def is_over(self) -> bool:
        """Whether a member stops, but for one that lost its lease and begins anew, or has broken."""
        return any(
            not member.is_alive()
            or (member.process.is_stopping and not (member.process.state.is_lost and self.others_live(member)))
            for member in self.members
        )

    @property
    def is_drained(self) -> bool:
        """Whether each member has found its database drained after the last one of them was."""
        since = [member.drained_since for member in self.members]
        return None not in since and min(member.looked_at for member in self.members) >= max(
            moment for moment in since if moment is not None
        )

    def end(self) -> None:
        """End the members side by side, so that none waits for another's server."""
        self.ending.set()
        for member in self.members:
            member.process.state.drain()
        ends = [
            threading.Thread(target=member.end, name=f"end of {member.name}", daemon=True) for member in self.members
        ]
        for thread in ends:
            thread.start()
        for thread in ends:
            thread.join()

    @property
    def names(self) -> str:
        """The names of the members' processes, in the order of the databases."""
        return " ".join(member.process.id for member in self.members)

    @property
    def exit_code(self) -> int:
        """The code that the members leave with; a lease that was lost is one only if none was left."""
        states = [(member.process.state, member.process.is_registered) for member in self.members]
        codes = {state.exit_code for state, _ in states}
        # Who has lost his lease first was followed by a process that has none yet.
        if EXIT_LEASE_LOST in codes and all(state.is_lost or not is_registered for state, is_registered in states):
            return EXIT_LEASE_LOST
        return max(codes - {EXIT_LEASE_LOST}, default=EXIT_DRAINED)


def run_several(options: Options, signals: StopSignals, lifeline: Lifeline, out: Any) -> None:
    """Run the worker processes of several databases in this one until it is stopped, and exit with its code."""
    group = Group(options, signals)
    names = group.names
    lifeline.hello(names)
    try:
        if signals.is_program:
            gc.freeze()  # as for one database
        for member in group.members:
            member.start()
    except RuntimeError as error:  # the system gives no further thread
        group.members[0].process.state.recycle_after(error)
    status = StatusLine(lambda: counts(group.processes()), out)
    for member in group.members:
        with use_database(member.database):
            status.say(started_text(member.process))
    while not (signals.stop.is_set() or group.is_over or lifeline.is_cut):
        status.show()
        if names != group.names:  # another process is in the place of one that lost its lease
            names = group.names
            lifeline.hello(names)
        if options.drain and group.is_drained:
            break
        signals.stop.wait(DRAIN_LOOK_SECONDS if options.drain else LOOK_SECONDS)
    code = group.exit_code
    if code == EXIT_LEASE_LOST:
        signals.end(code, at_once=True)
    group.end()
    status.end()
    for member in group.members:
        logger.info("%s", stopped_text(member.process))
    if not any(process.state.is_broken for process in group.processes()):
        lifeline.bye()
    has_abandoned = any(process.has_abandoned() for process in group.processes())
    code = group.exit_code
    is_stuck = has_abandoned or not all(member.has_left for member in group.members)
    signals.end(code, at_once=bool(code) or is_stuck)
