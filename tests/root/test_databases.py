"""Several databases with jobs: a submit goes to the one that is named, else to that of the open transaction."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import override_settings

import django_jobs
from django_jobs import NewJob, checks
from django_jobs.conf import get_settings
from django_jobs.db.connections import use_database
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import submit as lifecycle
from django_jobs.models import Job
from django_jobs.queue import JobQueue
from tests.support.databases import Database, new_url
from tests.support.several import more_databases

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "tenant"])
TYPE = "effects.record"
BOTH = {"DATABASES": ["default", "tenant"]}


class DefaultRouter:
    """Sends everything to `default`, whatever the row's own database is."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True


@pytest.fixture
def django_db_setup(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[None]:
    """Give a second database, migrated, before Django looks which ones the test may use."""
    url = new_url(database.vendor, tmp_path, suffix="_tenant")
    with django_db_blocker.unblock(), more_databases({"tenant": url}):
        yield


@pytest.fixture
def tenant() -> Iterator[None]:
    """Name both in DATABASES."""
    with override_settings(DJANGO_JOBS=BOTH):
        yield


def where(job: Job) -> list[str | None]:
    """Return the databases that have a job, and the one that its instance names."""
    found: list[str | None] = [alias for alias in ("default", "tenant") if Job.objects.using(alias).filter(pk=job.pk)]
    return [*found, job._state.db]


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_using_names_the_database() -> None:
    assert where(django_jobs.submit(TYPE)) == ["default", "default"]
    assert where(django_jobs.submit(TYPE, using="tenant")) == ["tenant", "tenant"]
    assert [where(job) for job in django_jobs.submit_many([NewJob(TYPE), NewJob(TYPE)], using="tenant")] == [
        ["tenant", "tenant"]
    ] * 2
    assert where(async_to_sync(django_jobs.asubmit)(TYPE, using="tenant")) == ["tenant", "tenant"]
    with transaction.atomic(using="default"):
        assert where(django_jobs.submit(TYPE, using="tenant")) == ["tenant", "tenant"]


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_a_submit_joins_the_transaction_that_is_open() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using="tenant"):
        job = django_jobs.submit(TYPE)
        (other,) = django_jobs.submit_many([NewJob(TYPE)])
        assert (job._state.db, other._state.db) == ("tenant", "tenant")
        raise ZeroDivisionError
    assert where(job) == where(other) == ["tenant"]
    with transaction.atomic(using="tenant"), transaction.atomic(using="default"):
        assert django_jobs.submit(TYPE)._state.db == "default", "the routers' is one of them"


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_a_submit_of_a_handler_goes_to_the_database_of_its_job_unless_a_transaction_is_open() -> None:
    with use_database("tenant"):
        assert where(django_jobs.submit(TYPE)) == ["tenant", "tenant"]
        with transaction.atomic(using="default"):
            job = django_jobs.submit(TYPE)
    assert where(job) == ["default", "default"]


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_jobs_move_where_they_are_whatever_the_routers_say() -> None:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.DefaultRouter"]):
        job = django_jobs.submit(TYPE, using="tenant", delay=60)
        job.run_now()
        assert job.status == "pending"
        assert job.cancel() == "cancelled"
        assert Job.objects.using("tenant").filter(pk=job.pk).replay() == 1
        assert Job.objects.using("tenant").get(pk=job.pk).status == "pending"
        with pytest.raises(TimeoutError):
            job.wait(timeout=0)


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_a_dependency_in_another_database_is_refused_with_both_names() -> None:
    elsewhere = django_jobs.submit(TYPE, using="tenant")
    with pytest.raises(InvalidJob, match=r"is in the database 'tenant', and this one is for 'default'"):
        django_jobs.submit(TYPE, depends_on=[elsewhere])
    with pytest.raises(InvalidJob, match=f"no job '{elsewhere.pk}'"):
        django_jobs.submit(TYPE, depends_on=[elsewhere.pk])
    assert django_jobs.submit(TYPE, depends_on=[elsewhere], using="tenant").depends_on == [elsewhere.pk]


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_each_database_has_its_own_ids_and_unique_keys() -> None:
    first = django_jobs.submit(TYPE, job_id="one", unique_key="k")
    second = django_jobs.submit(TYPE, job_id="one", unique_key="k", using="tenant")
    assert (first._state.db, second._state.db) == ("default", "tenant")
    queue = JobQueue("default")
    assert queue.size == 1
    with use_database("tenant"):
        assert queue.size == 1


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_a_database_that_holds_no_jobs_is_refused_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    for using in ("elsewhere", "", 5):
        with pytest.raises(InvalidJob, match=r"give an alias that holds jobs \(default, tenant\)"):
            django_jobs.submit(TYPE, using=using)  # type: ignore[arg-type]
    lifecycle._warned.clear()
    with caplog.at_level(logging.WARNING), transaction.atomic(using="tenant"):
        django_jobs.submit(TYPE, using="default")
    assert not caplog.records
    with override_settings(DJANGO_JOBS={"DATABASES": ["default"]}), transaction.atomic(using="tenant"):
        django_jobs.submit(TYPE)
    assert "inside a transaction on database 'tenant'" in caplog.text
    assert Job.objects.using("tenant").count() == 0


@pytest.mark.slow
def test_without_the_setting_only_the_routers_database_may_be_named() -> None:
    assert django_jobs.submit(TYPE, using="default")._state.db == "default"
    with pytest.raises(InvalidJob, match=r"give an alias that holds jobs \(default\)"):
        django_jobs.submit(TYPE, using="tenant")


@pytest.mark.slow
@pytest.mark.parametrize("value", [[], "default", ["default", "default"], ["elsewhere"], [5], {"default"}])
def test_wrong_databases_are_a_check_error_and_stop_the_site(value: Any) -> None:
    with override_settings(DJANGO_JOBS={"DATABASES": value}):
        (message,) = checks.check_settings()
        assert message.id == "django_jobs.E003"
        assert "DATABASES" in str(message.msg)
        with pytest.raises(ImproperlyConfigured, match="DATABASES"):
            get_settings()


@pytest.mark.usefixtures("tenant")
@pytest.mark.slow
def test_the_checks_look_at_each_of_the_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [message.id for message in checks.check_database(["default", "tenant"])] == []
    with override_settings(DJANGO_JOBS={"DATABASES": ["tenant"]}):
        assert [message.id for message in checks.check_router()] == ["django_jobs.E014"]
    monkeypatch.setitem(connections.settings["tenant"], "TIME_ZONE", "Europe/Berlin")
    (message,) = checks.check_database_time_zone()
    assert "'tenant'" in str(message.msg)
