"""Handlers that fork: their children end when they are told to, and leave the worker's sessions alone."""

import pytest
from django.db import connection

from django_jobs import submit
from django_jobs.models import Job
from tests.support.processes import spawn_workers

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--processes", "1")], ids=["alone", "supervised"])
def test_a_pool_is_terminated_as_in_plain_python(arguments: tuple[str, ...]) -> None:
    job = submit("effects.pool", {})
    with spawn_workers("--drain", "--threads", "1", *arguments) as workers:
        assert workers.wait(60) == 0, workers.output()
        assert not workers.pids(), "no forked child is left"
    job.refresh_from_db()
    assert job.status == "completed", job.error
    assert "receive" not in str(job.result["handlers"]), "the children have handlers of ours"
    assert job.result["seconds"] < 30, "terminate() did nothing, and the pool was waited for"


@pytest.mark.slow
def test_a_forked_child_has_sessions_of_its_own() -> None:
    # Another thread may hold locks of SQLite at the moment of a fork; the child would wait for them for ever.
    payload = {"queries": connection.vendor != "sqlite"}
    jobs = [submit("effects.forks_and_queries", payload) for _ in range(3)]
    after = submit("effects.sum_of_rows", {})
    with spawn_workers("--drain", "--threads", "1") as workers:
        assert workers.wait(60) == 0, workers.output()
    assert {job.pk: job.status for job in Job.objects.all()} == dict.fromkeys(
        [*(job.pk for job in jobs), after.pk], "completed"
    )
    after.refresh_from_db()
    assert after.result == 42
