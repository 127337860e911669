"""One worker process over several databases: each is served in its turn, with a lease of its own."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

import django_jobs
from django_jobs import NewJob
from django_jobs.db.connections import use_database
from django_jobs.lifecycle.leases import ask_to_stop
from django_jobs.models import Job, JobLog, WorkerProcess
from tests.support.databases import Database, new_url, why_unreachable
from tests.support.effects.models import Effect
from tests.support.processes import Workers, manage, spawn_workers
from tests.support.several import more_databases
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "tenant"]),
    pytest.mark.databases("sqlite", "postgresql"),
]
BOTH = {"DATABASES": ["default", "tenant"], "LEASE_SECONDS": 8}
OTHER = {"sqlite": "sqlite", "postgresql": "mariadb"}  # of the two servers one of each


@pytest.fixture
def environment(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[dict[str, str]]:
    """Give a second database, of another product where there are servers, and the environment that names it."""
    other = OTHER[database.vendor]
    url = new_url(database.vendor if why_unreachable(other) else other, tmp_path, suffix="_tenant")
    with django_db_blocker.unblock(), more_databases({"tenant": url}) as environment:
        yield environment


@pytest.fixture
def django_db_setup(environment: dict[str, str]) -> None:
    """Have the second database before Django looks which ones the test may use."""


@pytest.fixture(autouse=True)
def both() -> Iterator[None]:
    """Name both in DATABASES."""
    with override_settings(DJANGO_JOBS=BOTH):
        yield


def jobs(alias: str) -> Any:
    """Return the jobs of a database."""
    return Job.objects.using(alias)


def are_completed(alias: str) -> bool:
    """Say whether all jobs of a database are completed."""
    return not jobs(alias).exclude(status="completed").exists()


def processes(alias: str) -> list[str]:
    """Return the worker processes of a database that live."""
    return list(WorkerProcess.objects.using(alias).registered().values_list("id", flat=True))


def serving(workers: Workers, alias: str, count: int = 1) -> list[str]:
    """Wait until processes serve a database, and return their ids."""
    wait_until(lambda: len(processes(alias)) >= count or not workers.is_running(), 60, f"{alias}: {workers.output()}")
    return processes(alias)


@pytest.mark.slow
def test_one_worker_drains_both(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit_many([NewJob("effects.record", {"result": number}) for number in range(30)], using=alias)
        django_jobs.submit_many([NewJob("effects.record_here") for _ in range(10)], using=alias)
        django_jobs.submit("effects.record_async", using=alias)
        django_jobs.submit("effects.where", using=alias)
    done = manage("runworkers", "--drain", "--threads", "3", settings=BOTH, env=environment)
    assert done.returncode == 0, done.stderr
    for alias in ("default", "tenant"):
        assert jobs(alias).count() == 43, "what a handler submits goes to the database of its job, also from a child"
        assert are_completed(alias)
        here = jobs(alias).filter(job_type="effects.record_here")
        assert set(here.values_list("result", flat=True)) == {alias}
        assert Effect.objects.using(alias).filter(job_id__in=list(here.values_list("id", flat=True))).count() == 10
        assert jobs(alias).get(job_type="effects.where").result == alias
        assert processes(alias) == []


@pytest.mark.slow
def test_the_databases_take_turns(environment: dict[str, str]) -> None:
    many = django_jobs.submit_many([NewJob("effects.sleep", {"seconds": 0.05}, priority=10) for _ in range(300)])
    one = django_jobs.submit("effects.sleep", {"seconds": 0.05}, using="tenant")
    with spawn_workers("--threads", "1", settings=BOTH, env=environment):
        wait_until(lambda: are_completed("tenant") and jobs("default").filter(status="completed").exists())
    starts = list(Effect.objects.using("default").order_by("at", "pk").values_list("job_id", flat=True))
    assert starts.index(one.pk) < len(many), "it did not wait for the others, whose priority is higher"


@pytest.mark.slow
def test_the_threads_count_over_all(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit_many([NewJob("effects.together", {"seconds": 0.2}) for _ in range(4)], using=alias)
    with spawn_workers("--threads", "2", settings=BOTH, env=environment):
        wait_until(lambda: all(are_completed(alias) for alias in ("default", "tenant")))
    assert max(job.result for alias in ("default", "tenant") for job in jobs(alias).all()) <= 2


@pytest.mark.slow
def test_max_jobs_counts_over_all(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit_many([NewJob("effects.sleep", {"seconds": 0.1}) for _ in range(4)], using=alias)
    done = manage("runworkers", "--max-jobs", "4", "--threads", "1", settings=BOTH, env=environment)
    assert done.returncode == 75, done.stderr
    assert 4 <= sum(jobs(alias).filter(status="completed").count() for alias in ("default", "tenant")) <= 6


@pytest.mark.slow
def test_a_lease_lost_in_one_database_is_taken_anew_and_the_other_goes_on(environment: dict[str, str]) -> None:
    settings = {**BOTH, "LEASE_SECONDS": 4}
    with spawn_workers("--threads", "2", settings=settings, env=environment) as workers:
        (other,) = serving(workers, "default")
        (lost,) = serving(workers, "tenant")
        WorkerProcess.objects.using("tenant").filter(pk=lost).delete()
        wait_until(lambda: [one for one in processes("tenant") if one != lost], 60, "it to register anew")
        job = django_jobs.submit("effects.record", using="tenant")
        wait_until(lambda: jobs("tenant").filter(pk=job.pk, status="completed").exists(), 60)
        assert processes("default") == [other]
        workers.terminate()
        assert workers.wait(60) == 0, workers.output()


@pytest.mark.slow
def test_a_stop_request_in_one_database_stops_the_process(environment: dict[str, str]) -> None:
    with spawn_workers(settings={**BOTH, "LEASE_SECONDS": 4}, env=environment) as workers:
        serving(workers, "default")
        (process,) = serving(workers, "tenant")
        with use_database("tenant"):
            assert ask_to_stop(process)
        assert workers.wait(60) == 0
        assert processes("default") == processes("tenant") == []


@pytest.mark.slow
def test_a_stop_hands_back_in_each_database_what_runs_on(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit("effects.sleep", {"seconds": 60}, using=alias)
    with spawn_workers(settings={**BOTH, "SHUTDOWN_GRACE_SECONDS": 0}, env=environment) as workers:
        wait_until(lambda: all(jobs(alias).filter(status="running").exists() for alias in ("default", "tenant")), 60)
        workers.signal(signal.SIGTERM)
        assert workers.wait(60) == 0
    for alias in ("default", "tenant"):
        assert jobs(alias).get().status == "pending"


@pytest.mark.slow
def test_a_killed_child_of_a_supervisor_is_rescued_in_each_database(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit("effects.sleep", {"seconds": 60}, using=alias, max_retries=0)
    with spawn_workers("--processes", "1", settings={**BOTH, "LEASE_SECONDS": 3600}, env=environment):
        wait_until(lambda: all(jobs(alias).filter(status="running").exists() for alias in ("default", "tenant")), 60)
        (killed,) = {WorkerProcess.objects.using("default").get().pid, WorkerProcess.objects.using("tenant").get().pid}
        os.kill(killed, signal.SIGKILL)
        # Nobody waits for the lease to run out.
        wait_until(lambda: all(jobs(alias).get().crash_count for alias in ("default", "tenant")))


@pytest.mark.slow
def test_one_of_them_may_be_named_alone(environment: dict[str, str]) -> None:
    for alias in ("default", "tenant"):
        django_jobs.submit("effects.record", using=alias)
    done = manage("runworkers", "--drain", "--databases", "tenant", settings=BOTH, env=environment)
    assert done.returncode == 0, done.stderr
    assert are_completed("tenant")
    assert jobs("default").get().status == "pending"


@pytest.mark.slow
def test_one_that_is_away_at_the_start_is_waited_for_and_the_others_are_served(database: Database) -> None:
    job = django_jobs.submit("effects.record", using="default")
    waits = "cannot be used, waiting for it"
    away = {"MORE_DATABASES": json.dumps({"tenant": "postgresql://nobody@127.0.0.1:1/nothing"})}
    with spawn_workers(settings=BOTH, env=away) as workers:
        wait_until(lambda: jobs("default").filter(pk=job.pk, status="completed").exists(), 60)
        wait_until(lambda: workers.output().count(waits) >= 2, 60, "its member to say that it waits")
        workers.terminate()
        assert workers.wait(60) == 0, workers.output()
    assert workers.output().count(waits) == 2, "once at the start, once by its member"


@pytest.mark.slow
def test_wrong_names_and_missing_tables_are_told(
    environment: dict[str, str], tmp_path: Path, database: Database
) -> None:
    done = manage("runworkers", "--databases", "tenan", settings=BOTH, env=environment)
    assert (done.returncode, "Did you mean 'tenant'?" in done.stderr) == (2, True), done.stderr
    url = new_url(database.vendor, tmp_path, suffix="_empty")
    with more_databases({"empty": url}, migrated=False) as more:
        done = manage("runworkers", settings={"DATABASES": ["default", "empty"]}, env=more)
    assert (done.returncode, "database 'empty': the database lacks" in done.stderr) == (1, True), done.stderr


@pytest.mark.slow
def test_the_log_of_a_job_that_kills_its_subprocess_is_kept_in_its_database(environment: dict[str, str]) -> None:
    job = django_jobs.submit("effects.log_isolated", {"ends": "killed"}, max_retries=0, using="tenant")
    with spawn_workers("--threads", "1", settings=BOTH, env=environment):
        wait_until(lambda: jobs("tenant").get().status == "dead", 300, "the job's end")
    assert "INFO tests.effects: begins" in JobLog.objects.using("tenant").get(job=job).text
    assert not JobLog.objects.using("default").exists()
