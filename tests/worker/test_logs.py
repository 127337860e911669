"""Logs: what a handler logs is on record with its attempt, whatever its logger, and by nobody who lost the job."""

import asyncio
import logging
import threading
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import override_settings

from django_jobs.db.connections import jobs_connection
from django_jobs.exceptions import Snooze, TimedOut
from django_jobs.lifecycle import logs
from django_jobs.lifecycle.claim import claim_job
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Attempt, Job, JobLog
from django_jobs.run_log import MOST_BYTES
from tests.support.databases import Database
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.waiting import wait_until

from .conftest import Bench, let_its_time_be_over

pytestmark = pytest.mark.django_db(transaction=True)
logger = logging.getLogger("shop.log")


def lines(job: Job, number: int = 1) -> list[str]:
    """Return what is on record of an attempt, each line from its level on."""
    found = JobLog.objects.filter(job=job, number=number).values_list("text", flat=True).first()
    return [line.partition("Z ")[2] or line for line in (found or "").splitlines()]


def test_records_of_the_handler_are_kept_from_its_level_up_whatever_their_logger(bench: Bench) -> None:
    """The root logger's level is WARNING, as it is by default; one that has a level of its own keeps it."""
    alone, quiet = logging.getLogger("shop.alone"), logging.getLogger("shop.quiet")
    alone.propagate, quiet.level = False, logging.ERROR

    def work(payload: Any) -> None:
        logger.debug("too fine")
        logger.info("order %s", 7)
        alone.warning("does not propagate")
        quiet.info("silenced by the site")
        try:
            raise ValueError("as told")
        except ValueError:
            logger.exception("went wrong")
        logger.info("%d", "cannot be formatted")

    bench.handle("t.log", work, log_level="INFO")
    bench.handle("t.plain", work)
    job, plain = bench.submit("t.log"), bench.submit("t.plain")
    try:
        assert bench.run(job, plain) == ["completed", "completed"]
    finally:
        alone.propagate, quiet.level = True, logging.NOTSET
    found = lines(job)
    assert found[:3] == [
        "INFO shop.log: order 7",
        "WARNING shop.alone: does not propagate",
        "ERROR shop.log: went wrong",
    ]
    assert "ValueError: as told" in found
    assert "cannot be formatted" in found[-1]
    assert [log.job_id for log in JobLog.objects.all()] == [job.pk]


def test_what_the_sites_own_handlers_get_stays_as_it_was(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def work(payload: Any) -> None:
        logger.info("below the level of the root logger")
        logger.warning("above it")

    bench.handle("t.log", work, log_level=logging.INFO)
    job = bench.submit("t.log")
    bench.run(job)
    logger.info("outside of a job")
    assert lines(job) == ["INFO shop.log: below the level of the root logger", "WARNING shop.log: above it"]
    assert [record.getMessage() for record in caplog.records if record.name == "shop.log"] == ["above it"]


def test_each_job_has_its_own_records_in_threads_and_coroutines(bench: Bench) -> None:
    """Also of what a coroutine does in the threads of sync_to_async, and in tasks that it starts."""
    meeting = threading.Barrier(2)

    def work(payload: Any) -> None:
        meeting.wait(60)
        for number in range(20):
            logger.info("%s %d", payload["name"], number)

    async def task(name: str) -> None:
        await asyncio.sleep(0.01)
        logger.info("%s in a task", name)

    async def work_async(payload: Any) -> None:
        await sync_to_async(logger.info)("%s in a thread", payload["name"])
        await asyncio.gather(task(payload["name"]), task(payload["name"]))

    bench.handle("t.log", work, log_level="INFO")
    bench.handle("t.async", work_async, log_level="INFO")
    jobs = {name: bench.submit("t.log", {"name": name}) for name in ("a", "b")}
    jobs |= {name: bench.submit("t.async", {"name": name}) for name in ("c", "d", "e")}
    assert set(bench.run(*jobs.values(), threads=2)) == {"completed"}
    for name in ("a", "b"):
        assert lines(jobs[name]) == [f"INFO shop.log: {name} {number}" for number in range(20)]
    for name in ("c", "d", "e"):
        assert lines(jobs[name]) == [f"INFO shop.log: {name} in a {where}" for where in ("thread", "task", "task")]


@override_settings(DJANGO_JOBS={"LOG_LEVEL": "warning"})
def test_the_sites_level_holds_where_the_type_has_none(bench: Bench) -> None:
    def work(payload: Any) -> None:
        logger.info("fine")
        logger.warning("coarse")

    bench.handle("t.site", work)
    bench.handle("t.own", work, log_level="INFO")
    bench.handle("t.less", work, log_level=100)
    jobs = [bench.submit(name) for name in ("t.site", "t.own", "t.less")]
    bench.run(*jobs)
    assert [len(lines(job)) for job in jobs] == [1, 2, 0]


def test_a_failed_attempt_an_atomic_handler_and_steps_leave_their_logs_too(bench: Bench) -> None:
    def fail(context: Any, payload: Any) -> None:
        logger.info("attempt %d", context.attempt)
        raise ValueError("no")

    def steps(context: Any, payload: Any) -> None:
        context.step("one", lambda: logger.info("in a step"))

    bench.handle("t.fail", fail, takes_context=True, max_retries=1, base_delay=0, max_delay=0, log_level="INFO")
    bench.handle("t.atomic", lambda payload: logger.info("atomic"), atomic=True, log_level="INFO")
    bench.handle("t.steps", steps, takes_context=True, log_level="INFO")
    failing, atomic, stepping = (bench.submit(name) for name in ("t.fail", "t.atomic", "t.steps"))
    assert bench.run(failing, atomic, stepping) == ["dead", "completed", "completed"]
    assert [lines(failing, number) for number in (1, 2)] == [[f"INFO shop.log: attempt {number}"] for number in (1, 2)]
    assert (lines(atomic), lines(stepping)) == (["INFO shop.log: atomic"], ["INFO shop.log: in a step"])
    assert not logs.open_logs


def test_a_run_after_a_wait_goes_on_with_the_log_of_its_attempt(bench: Bench) -> None:
    def work(context: Any, payload: Any) -> None:
        logger.info("fence %d", context.fence)
        if context.fence == 1:
            raise Snooze(0)
        if context.fence == 3:
            raise ValueError("once")

    bench.handle("t.log", work, takes_context=True, base_delay=0, max_delay=0, log_level="INFO")
    job = bench.submit("t.log")
    bench.run(job)
    assert lines(job) == ["INFO shop.log: fence 1", "INFO shop.log: fence 3"]
    assert lines(job, 2) == ["INFO shop.log: fence 5"]


@pytest.mark.slow
def test_the_log_of_a_running_job_can_be_read_a_moment_later(bench: Bench) -> None:
    """Also of an atomic handler, whose own transaction goes on meanwhile; on SQLite that one has the only write lock."""
    is_over = threading.Event()

    def work(payload: Any) -> None:
        for number in range(2_000):
            logger.info("%s %0100d", payload["name"], number)
        is_over.wait(60)
        logger.info("last words")

    bench.handle("t.log", work, log_level="INFO")
    bench.handle("t.atomic", work, atomic=jobs_connection().vendor != "sqlite", log_level="INFO")
    jobs = [bench.submit(name, {"name": name}) for name in ("t.log", "t.atomic")]
    bench.start(2)
    try:
        wait_until(lambda: JobLog.objects.count() == 2, 60, "the logs of the running jobs")
        assert all(len(log.text.encode()) <= MOST_BYTES for log in JobLog.objects.all())
    finally:
        is_over.set()
    for job in jobs:
        assert job.wait(60).status == "completed"
        assert lines(job)[-1] == "INFO shop.log: last words"
        assert "bytes were cut here" in JobLog.objects.get(job=job).text


@override_settings(DJANGO_JOBS={"TIMEOUT_GRACE_SECONDS": 0.1})
def test_a_run_that_ignores_its_timeout_leaves_what_it_logged_until_it_was_given_up(bench: Bench) -> None:
    began, is_over = threading.Event(), threading.Event()

    def work(payload: Any) -> None:
        logger.info("begins")
        while not is_over.is_set():
            with suppress(TimedOut):
                began.set()
                is_over.wait(60)

    bench.handle("t.log", work, timeout_seconds=600, max_retries=0, log_level="INFO")
    job = bench.submit("t.log")
    process = bench.start()
    try:
        assert began.wait(60)
        let_its_time_be_over(process)
        assert job.wait(60).status == "dead"
        assert lines(job) == ["INFO shop.log: begins"]
        wait_until(lambda: not logs.open_logs, 60, "the end of its log, which comes after the commit that ends the job")
    finally:
        is_over.set()


def test_a_run_that_lost_its_job_writes_nothing(bench: Bench) -> None:
    """Neither while it goes on nor in its settle; the run that has the job now does."""
    jobs = [JobFactory(job_type="effects.record") for _ in range(2)]
    claims = [claim_job(job.pk, "w-1") for job in jobs]
    opened = [logs.open_log(claim, logging.INFO) for claim in claims]
    for log in opened:
        log.add("text")
        log.opened -= 60
    Job.objects.filter(pk=jobs[0].pk).update(fence=5)
    logs.write_open()
    assert [*JobLog.objects.values_list("job_id", flat=True)] == [jobs[1].pk]
    opened[1].add("more")
    assert settle([Outcome.completed(claim) for claim in claims], "w-1") == {jobs[0].pk}
    assert [(log.job_id, log.text) for log in JobLog.objects.all()] == [(jobs[1].pk, "text\nmore\n")]
    assert not logs.open_logs


def test_a_settle_that_is_rolled_back_and_made_again_writes_the_whole_log() -> None:
    job = JobFactory(job_type="effects.record")
    claimed = claim_job(job.pk, "w-1")
    log = logs.open_log(claimed, logging.INFO)
    log.add("one")
    refused = [0]

    def refuse_once(execute: Any, sql: Any, *rest: Any) -> Any:
        answer = execute(sql, *rest)
        if "joblog" in sql and not refused[0]:
            refused[0] = 1
            raise RuntimeError("the connection broke after the statement")
        return answer

    with connections["default"].execute_wrapper(refuse_once):
        with pytest.raises(RuntimeError):
            settle([Outcome.completed(claimed)], "w-1")
        log.add("two")
        assert settle([Outcome.completed(claimed)], "w-1") == set()
    assert JobLog.objects.get().text == "one\ntwo\n"


def _statements(outcomes: list[Outcome]) -> list[str]:
    seen: list[str] = []

    def watch(execute: Any, sql: Any, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    with connections["default"].execute_wrapper(watch):
        settle(outcomes, "w-1")
    return seen


def test_the_logs_of_a_batch_are_one_statement_of_its_settle_and_none_where_none_is_kept() -> None:
    def outcomes() -> list[Outcome]:
        return [Outcome.completed(claim_job(JobFactory(job_type="effects.record").pk, "w-1")) for _ in range(20)]

    plain = _statements(outcomes())
    kept = outcomes()
    for outcome in kept:
        logs.open_log(outcome.job, logging.INFO).add("text")
    more = [sql for sql in _statements(kept) if sql not in plain]
    assert len(more) == 1
    assert "joblog" in more[0]
    silent = outcomes()
    for outcome in silent:
        logs.open_log(outcome.job, logging.INFO)
    assert len(_statements(silent)) == len(plain), "who logs nothing leaves no row"
    assert JobLog.objects.count() == 20


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["well", "killed"])
def test_a_handler_in_a_process_of_its_own_has_its_log_written_there(ends: str, database: Database) -> None:
    """When it kills its process, what it logged until a second before is on record."""
    job = JobFactory(job_type="effects.log_isolated", payload={"ends": ends}, max_retries=0)
    with running_process(threads=1):
        status = wait_until(lambda: Job.objects.get().finished_at and Job.objects.get().status, 300)
    assert status == ("completed" if ends == "well" else "dead")
    number = Attempt.objects.count() if ends == "killed" else 1
    assert number == (3 if ends == "killed" else 1)
    text = JobLog.objects.get(job=job).text
    assert text.count("INFO tests.effects: begins") == number
    assert text.count("ends well") == (ends == "well")


def test_a_handler_without_a_log_level_makes_no_call_for_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the capture nor the statements of a log are reached."""

    def reached(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("off costs nothing")

    for name in ("open_log", "write", "close", "write_open"):
        monkeypatch.setattr(logs, name, reached)
    monkeypatch.setattr("django_jobs.worker.capture.begin", reached)

    def work(payload: Any) -> None:
        logger.warning("not kept")

    async def work_async(payload: Any) -> None:
        logger.warning("not kept")

    bench.handle("t.plain", work)
    bench.handle("t.async", work_async)
    assert bench.run(bench.submit("t.plain"), bench.submit("t.async")) == ["completed", "completed"]
    assert not any(thread.name.startswith("log writer") for thread in threading.enumerate())


@pytest.mark.parametrize("wrong", ["LOUD", 101, -1, True, 2.5])
def test_a_level_that_is_none_is_refused(wrong: Any, bench: Bench) -> None:
    with pytest.raises(ValueError, match="a level of logging"):
        bench.handle("t.log", print, log_level=wrong)
