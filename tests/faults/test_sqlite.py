"""SQLite in trouble: a site that holds the write lock, a database that is full. Our API waits, or says what is wrong."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Attempt, Job
from tests.support.in_process import running_process
from tests.support.invariants import check_drained, check_invariants
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("sqlite")]


@contextmanager
def _site_options(**options: Any) -> Iterator[dict[str, Any]]:
    """Open all connections with these options alone while the block lasts; those that are made in it see a change."""
    settings = connections.settings["default"]
    before, settings["OPTIONS"] = settings["OPTIONS"], options
    connections["default"].close()
    del connections["default"]
    try:
        yield options
    finally:
        connections["default"].close()
        del connections["default"]
        settings["OPTIONS"] = before


@contextmanager
def _lock_held_again_and_again(seconds: float, pause: float = 0.05) -> Iterator[None]:
    """Hold the write lock for so long each time, with pauses in which the others must find their way."""
    end = threading.Event()
    held = threading.Event()

    def write() -> None:
        with closing(
            sqlite3.connect(connections.settings["default"]["NAME"], timeout=60, isolation_level=None)
        ) as site:
            while not end.is_set():
                site.execute("BEGIN IMMEDIATE")
                held.set()
                end.wait(seconds)
                site.execute("COMMIT")
                time.sleep(pause)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert held.wait(60)
        yield
    finally:
        end.set()
        writer.join()


@pytest.mark.slow
def test_the_api_waits_for_a_site_that_holds_the_write_lock() -> None:
    """The connection waits for 50 ms only, so all the waiting is ours."""
    with _site_options(timeout=0.05), _lock_held_again_and_again(0.4):
        _use_the_api()
    check_invariants()


@pytest.mark.fault
@pytest.mark.parametrize("timeout", [0.0, 5.0])
def test_the_api_and_workers_live_with_a_lock_held_for_three_seconds(timeout: float) -> None:
    """The jobs are atomic: their handlers write under a lock that is ours; others wait as long as the site's option says."""
    submitted = [job.pk for job in submit_many([NewJob("effects.record_atomic") for _ in range(40)])]
    settings = {"LEASE_SECONDS": 6, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3}
    env = {"JOBS_TEST_SQLITE_TIMEOUT": str(timeout)}
    with (
        _site_options(timeout=timeout),
        _lock_held_again_and_again(3),
        spawn_workers(settings=settings, env=env) as workers,
    ):
        started = time.monotonic()
        slowest = [_use_the_api() for _ in range(3)]
        wait_until(lambda: not Job.objects.filter(pk__in=submitted).live().exists(), 240, "the end of all jobs")
        print(f"\ntimeout {timeout}: the slowest call took {max(slowest):.1f} s, jobs done after", end="")
        print(f" {time.monotonic() - started:.0f} s")
        assert workers.is_running()
    assert "locked" not in workers.output()
    assert not Attempt.objects.filter(job_id__in=submitted).exists(), "each ran once"
    check_invariants(submitted, output=workers.output())


def _use_the_api() -> float:
    """Call everything that writes, and return the seconds of the slowest call; an error is the test's failure."""
    slowest = 0.0

    def timed(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        nonlocal slowest
        started = time.monotonic()
        result = call(*args, **options)
        slowest = max(slowest, time.monotonic() - started)
        return result

    later = timedelta(hours=1)
    one = timed(submit, "effects.record", {}, delay=later, unique_key="key")
    assert timed(submit, "effects.record", {}, unique_key="key") == one
    two = timed(submit, "effects.record", {}, delay=later, depends_on=[one])
    timed(submit_many, [NewJob("effects.record", delay=later, depends_on=[two]) for _ in range(3)])
    timed(one.cancel)
    timed(one.replay)
    timed(one.cancel)
    return slowest


def _pages() -> int:
    with connections["default"].cursor() as cursor:
        cursor.execute("PRAGMA page_count")
        return int(cursor.fetchone()[0])


def _limit(pages: int) -> str:
    return f"PRAGMA max_page_count = {pages};"


def test_a_full_database_refuses_a_submit_whole_and_is_drained_when_there_is_room() -> None:
    submitted = [submit("effects.record", {}).pk]
    with _site_options(timeout=5, init_command=_limit(_pages() + 40)) as options:
        with pytest.raises(OperationalError, match="full"):
            while True:
                submitted.append(submit("effects.record", {"filler": "x" * 20_000}).pk)
        refused = [
            NewJob("effects.record", {"filler": "x" * 2_000}, job_id=f"refused-{number}") for number in range(300)
        ]
        with pytest.raises(OperationalError, match="full"):
            submit_many(refused)
        check_invariants(submitted, [new.options["job_id"] for new in refused])
        assert Job.objects.count() == len(submitted)
        with running_process() as process:
            wait_until(lambda: process.state.backoff.count or not open_jobs(), 60, "the workers to see that it is full")
            options["init_command"] = _limit(100_000)  # connections are made anew after an error
            wait_until(lambda: open_jobs() == 0, 60, "the end of all jobs")
    check_drained(submitted)
    assert not Job.objects.exclude(status="completed").exists()
