"""The question of idle processes for what comes next is composed once, and answered as Django would answer it each time."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone

from django_jobs.db.compiled import CompiledQuery
from django_jobs.due import Ahead, look_ahead
from django_jobs.models import Job, WorkerProcess
from django_jobs.models.fields import DbNow
from tests.support.factories import JobFactory, WorkerProcessFactory

pytestmark = pytest.mark.django_db


def test_it_says_what_comes_next_by_the_row_of_who_asks_and_nothing_without_one() -> None:
    process = WorkerProcessFactory().pk
    assert look_ahead(process) == Ahead()
    JobFactory(status="scheduled", available_at=timezone.now() + timedelta(seconds=90))
    ahead = look_ahead(process)
    assert ahead.due == pytest.approx(90, abs=10)
    assert ahead == Ahead(ahead.due)
    assert look_ahead("nobody") == Ahead()
    assert look_ahead(process, timezone.now() + timedelta(hours=1)) == Ahead()


def test_it_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [WorkerProcessFactory().pk for _ in range(2)]
    assert look_ahead(processes[0]) == Ahead()

    def compose(self: Any) -> None:
        raise AssertionError("the query was composed again")

    monkeypatch.setattr(SQLCompiler, "as_sql", compose)
    assert look_ahead(processes[1]) == Ahead()


def test_values_come_as_the_orm_gives_them() -> None:
    job = JobFactory(metadata={"tenant": 'a "b"'})
    WorkerProcessFactory(pk="other")

    def build(text: str) -> Any:
        return Job.objects.filter(pk=text).values_list("id", "metadata", "created_at", DbNow())

    query = CompiledQuery(build)
    for _ in range(2):
        [(pk, metadata, created_at, now)] = query.rows(job.pk)
        assert [(pk, metadata, created_at)] == list(build(job.pk).values_list("id", "metadata", "created_at"))
        assert isinstance(now, datetime)
        assert timezone.is_aware(now)
    assert query.rows("no such job") == []
    by_process = CompiledQuery(lambda text: WorkerProcess.objects.filter(pk=text).values_list("pk"))
    assert by_process.rows("other") == [("other",)]
