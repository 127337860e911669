"""A real worker process inside the test's own: for what only the process that runs a job can see, such as signals."""

from collections.abc import Iterator
from contextlib import contextmanager

from django_jobs.worker.process import Process
from django_jobs.worker.thread import start_workers


@contextmanager
def running_process(threads: int = 2, poll_interval: float = 0.02) -> Iterator[Process]:
    """Run jobs of all queues in threads of this process; in the end let what runs finish."""
    process = Process(threads=threads)
    start_workers(process, poll_interval=poll_interval)
    try:
        yield process
    finally:
        assert process.stop(grace=60), "the worker threads ended in time"
        for thread in (process.listener, process.lease):
            if thread.is_alive():
                thread.join(60)  # until its connection is closed
