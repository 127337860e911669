"""The child of isolated jobs, which is `runworkers --isolated FD`: takes orders, runs a job at a time, settles it, answers."""

from __future__ import annotations

import gc
import itertools
import json
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from django.conf import settings
from django.db import Error, reset_queries

from django_jobs.conf import get_settings
from django_jobs.db.connections import discard_connection, usable_connection, use_database
from django_jobs.db.sessions import HandlerSessions
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.active_limits import declare_queue
from django_jobs.lifecycle.claim import ClaimedJob, held_claim
from django_jobs.lifecycle.settle import settle, settle_again
from django_jobs.limit import Limit
from django_jobs.models.attempt import AttemptOutcome
from django_jobs.worker.backoff import OutageBackoff
from django_jobs.worker.bulk import execute_all
from django_jobs.worker.cleanup import HandlerCleanup
from django_jobs.worker.log_writer import LogWriter
from django_jobs.worker.run import BulkRun, Run
from django_jobs.worker.state import WorkerState

from .protocol import Line

T = TypeVar("T")


def run_isolated(descriptor: int) -> NoReturn:
    """Run jobs until the line ends; this process is killed, or leaves by itself when its worker process is gone."""
    line = Line.to_parent(descriptor)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(line, orders), daemon=True).start()
    gc.freeze()  # what Django has loaded stays, and is not to be searched for garbage
    memory = get_settings().PROCESS_MEMORY_MB
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory * 2**20, memory * 2**20))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cleanup = HandlerCleanup()
    cleanup.begin()
    writers: dict[str | None, LogWriter] = {}
    line.send("hello")
    while True:
        order = json.loads(orders.get())
        database = order.pop("database")
        if database not in writers:
            writers[database] = LogWriter(WorkerState(database=database))
            writers[database].begin()
        with use_database(database):
            answer = _run(cleanup.sessions, **order)
            cleanup.after_job()
            cleanup.after_batch()
        if not line.send("answer", answer):  # seen before the thread that reads has seen it
            _leave()


def _read(line: Line, orders: queue.SimpleQueue[str]) -> None:
    """Pass orders on, until the end of the line says that the worker process died."""
    while not line.has_ended:
        for _, order in line.receive():
            orders.put(order)
    _leave()


def _leave() -> NoReturn:
    """End, and take every process that a handler has started with us."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)  # not reached


def _run(
    sessions: HandlerSessions,
    job_id: str,
    fence: int,
    process_id: str,
    queue_limit: tuple[str, dict[str, Any]] | None = None,
) -> str:
    if queue_limit is not None:
        declare_queue(queue_limit[0], Limit(**queue_limit[1]))

    def claim() -> ClaimedJob | None:
        usable_connection()
        leases.prepare_connection(process_id)
        return held_claim(job_id, fence, process_id)

    job = _insist(claim)
    if job is None:
        return _settled(AttemptOutcome.LEASE_LOST)
    handler = registry.find(job.job_type)
    if handler is None:
        return "unknown"
    if settings.DEBUG:
        reset_queries()
    run = Run(job) if handler.bulk is None else BulkRun([job], handler)
    run.sessions = sessions
    outcome = execute_all(run, handler, registry, process_id)[0]
    sessions.clean()
    usable_connection()
    if outcome.needs_settle:
        ways = itertools.chain([settle], itertools.repeat(settle_again))
        _insist(lambda: next(ways)([outcome], process_id))
    return _settled(outcome.attempt)


def _settled(attempt: AttemptOutcome | None) -> str:
    return "settled" if attempt is None else f"settled {attempt}"


def _insist(move: Callable[[], T]) -> T:
    """Call `move` until the database answers: an outage is no crash. The worker process ends us when it loses its lease."""
    backoff = OutageBackoff()
    while True:
        try:
            return move()
        except Error as error:
            time.sleep(backoff.after(error))
            discard_connection()
