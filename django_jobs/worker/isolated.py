"""The subprocess of an isolated job: takes orders from a pipe, runs one job at a time, settles it, says so."""

from __future__ import annotations

import gc
import itertools
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TypeVar

T = TypeVar("T")


def main(orders_fd: int, answers_fd: int) -> None:
    """Run jobs until the pipe of orders ends."""
    orders: queue.Queue[str] = queue.Queue()
    lifeline = os.fdopen(orders_fd, encoding="utf-8")
    # A handler's own children must not keep our pipes open.
    os.set_inheritable(orders_fd, False)
    os.set_inheritable(answers_fd, False)
    threading.Thread(target=_read, args=(lifeline, orders), daemon=True).start()
    import django

    gc.disable()  # nothing that a start makes is garbage, and looking for it takes an eighth of the start
    django.setup()
    gc.freeze()
    gc.enable()
    from django_jobs.conf import get_settings

    memory = get_settings().PROCESS_MEMORY_MB
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory * 2**20, memory * 2**20))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = "ready"
    while True:
        try:
            os.write(answers_fd, answer.encode() + b"\n")
        except BrokenPipeError:  # seen before the end of the other pipe
            _leave()
        order = json.loads(orders.get())
        answer = _run(order["id"], order["fence"], order["process_id"])


def _read(lifeline: IO[str], orders: queue.Queue[str]) -> None:
    """Pass orders on, until the end of the pipe says that the worker died."""
    for line in lifeline:
        orders.put(line)
    _leave()


def _leave() -> None:
    """End, and take every process that a handler has started with us."""
    os.killpg(0, signal.SIGKILL)


def _run(job_id: str, fence: int, process_id: str) -> str:
    from django_jobs.handlers import registry
    from django_jobs.lifecycle import processes
    from django_jobs.lifecycle.claim import claim_one
    from django_jobs.lifecycle.outcome import ClaimedJob, Completed
    from django_jobs.lifecycle.settle import settle, settle_again

    from .executor import execute
    from .run import Run

    def claim() -> ClaimedJob | None:
        processes.check_connection()
        processes.prepare_connection(process_id)
        return claim_one(job_id, fence, process_id)

    job = _insist(claim)
    if job is None:
        return "settled"
    handler = registry.find(job.job_type)
    if handler is None:
        return "unknown"
    result = execute(Run(job), handler, registry, process_id)
    processes.check_connection()
    if result is not None:
        completed, outcomes = ([result], []) if isinstance(result, Completed) else ([], [result])
        ways = itertools.chain([settle], itertools.repeat(settle_again))
        _insist(lambda: next(ways)(completed, outcomes, process_id))
    return "settled"


def _insist(move: Callable[[], T]) -> T:
    """Call `move` until the database answers: an outage is no crash. The worker ends us when it loses its lease."""
    from django.db import Error

    from django_jobs.lifecycle import processes

    from .trouble import Trouble

    trouble = Trouble()
    while True:
        try:
            return move()
        except Error as error:
            time.sleep(trouble.after(error))
            processes.discard_connection()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
