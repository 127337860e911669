"""Each column of each table, set by hand to each odd value that the database takes: workers, pages and commands go on.

Some of them by default; `-m load` tries all, which takes an hour or so for each database.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import Error, connection, connections, models
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_jobs import submit
from django_jobs.alerts.tell import tell
from django_jobs.conf import AlertSettings
from django_jobs.models import Job
from tests.support.console import pages
from tests.support.databases import empty_tables
from tests.support.edits import columns, edit, fill, odd_values
from tests.support.in_process import running_process
from tests.support.staff import operator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

VERBS = (
    ("list",), ("list", "--json"), ("show", "ready"), ("show", "waiting", "--json"), ("stats",), ("dlq", "list"),
    ("dlq", "show", "dead"), ("queues",), ("schedules",), ("graph", "ready"), ("check",), ("health",), ("export", "-"),
    ("operations",), ("limits",),
)  # fmt: skip
# Said of what is wrong in a row, once; a chore or a thread that broke says something else.
SAID = ("is dead after", "operation ", "batch ", "schedule ")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with override_settings(DJANGO_JOBS={"LEASE_SECONDS": 4, "BASE_DELAY": 0.05, "MAX_DELAY": 0.1}):
        yield


def _try(field: "models.Field[object, object]", value: str, caplog: pytest.LogCaptureFixture) -> None:
    fill()
    caplog.clear()
    try:
        edit(field, value)
    except Error:
        connection.close()
        return  # the database refuses it
    with running_process(threads=1) as process:
        good = [submit("effects.record", queue=queue).pk for queue in ("default", "other")]
        wait_until(
            lambda: Job.objects.filter(pk__in=good, status="completed").count() == 2, 60, f"{field} = {value:.40}"
        )
        for chore in process.maintenance._chores:
            chore()
        tell(AlertSettings(queue_wait=600.0))
        assert not process.is_stopping
    broken = [
        record.getMessage() for record in caplog.records
        if record.levelno >= logging.ERROR and not any(said in record.getMessage() for said in SAID)
    ]  # fmt: skip
    assert broken == []
    client = operator()
    for url in pages():
        assert client.get(url).status_code < 400, url
    for verb in VERBS:
        with suppress(CommandError):
            call_command("jobs", *verb, stdout=io.StringIO(), stderr=io.StringIO())


def _empty() -> None:
    empty_tables(connections["default"])
    User.objects.all().delete()


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
@pytest.mark.slow
def test_some_values_by_hand_end_nobody(data: st.DataObject, caplog: pytest.LogCaptureFixture) -> None:
    field = data.draw(st.sampled_from(list(columns())))
    try:
        _try(field, data.draw(st.sampled_from(list(odd_values(field)))), caplog)
    finally:
        _empty()


@pytest.mark.load
@pytest.mark.parametrize("field", list(columns()), ids=lambda field: f"{field.model.__name__}.{field.name}")
def test_no_value_by_hand_ends_anybody(field: "models.Field[object, object]", caplog: pytest.LogCaptureFixture) -> None:
    for value in odd_values(field):
        try:
            _try(field, value, caplog)
        finally:
            _empty()
