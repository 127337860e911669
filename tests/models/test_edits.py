"""What a hand with SQL writes into a row that nobody could read, or count on with, is refused by the database."""

import pytest
from django.db import Error, connection, transaction

from django_jobs.models import Batch, Job, Operation, WorkerProcess
from django_jobs.models.fields import MomentField
from tests.support.edits import TIMES, columns, edit, fill

pytestmark = pytest.mark.django_db

LARGEST = {"fence": 2**63 - 1, "retry_count": 2**31 - 1, "crash_count": 2**15 - 1}


def is_refused(field: object, value: str) -> bool:
    """Say whether the database refuses a value; where it does not, nothing may have been changed by it."""
    try:
        with transaction.atomic():
            return edit(field, value) == 0  # type: ignore[arg-type]
    except Error:
        return True


def test_times_that_python_does_not_know_are_refused_in_every_table() -> None:
    """One of them once kept a queue from being claimed, and everybody from being rescued."""
    fill()
    taken = [
        f"{field.model.__name__}.{field.column} = {value}"
        for field in columns()
        if isinstance(field, MomentField)
        for value in TIMES[connection.vendor]
        if not is_refused(field, value)
    ]
    assert taken == []


def test_every_time_is_such_a_column() -> None:
    assert {type(field).__name__ for field in columns() if field.get_internal_type() == "DateTimeField"} == {
        "MomentField"
    }


@pytest.mark.parametrize("moment", ["1970-01-01 00:00:00", "2024-02-29 23:59:59.999999", "9998-12-31 23:59:59.999999"])
def test_the_times_that_our_rules_allow_are_taken(moment: str) -> None:
    fill()
    for name in ("available_at", "created_at"):
        assert not is_refused(Job._meta.get_field(name), f"'{moment}'")


@pytest.mark.parametrize("name", LARGEST)
def test_a_number_to_which_one_cannot_be_added_is_refused(name: str) -> None:
    fill()
    assert is_refused(Job._meta.get_field(name), str(LARGEST[name]))


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (Job, "timeout_seconds", "-1"), (Job, "timeout_seconds", "0"), (Job, "timeout_seconds", "1e308"),
        (Job, "progress", "1.5"), (Job, "id", "''"), (Job, "job_type", "''"), (Batch, "id", "''"),
        (WorkerProcess, "beat", "-1"), (Operation, "skipped", str(2**63 - 1)), (Operation, "done", str(2**63 - 1)),
    ],
)  # fmt: skip
def test_a_value_that_no_code_of_ours_writes_is_refused(model: type[Job], name: str, value: str) -> None:
    fill()
    assert is_refused(model._meta.get_field(name), value)


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("value", ["'NaN'", "'Infinity'", "'-Infinity'"])
def test_floats_that_are_no_numbers_are_refused(value: str) -> None:
    fill()
    assert is_refused(Job._meta.get_field("timeout_seconds"), value)
    assert is_refused(Job._meta.get_field("progress"), value)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("value", ["'many'", "x'ff'"])
@pytest.mark.parametrize("name", [*LARGEST, "max_retries", "pending_dependencies", "timeout_seconds", "rank"])
def test_text_and_bytes_are_no_numbers(name: str, value: str) -> None:
    fill()
    assert is_refused(Job._meta.get_field(name), value)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("name", ["job_type", "queue", "error", "fair_key", "worker_id"])
def test_bytes_are_no_text(name: str) -> None:
    fill()
    assert is_refused(Job._meta.get_field(name), "x'ff'")
