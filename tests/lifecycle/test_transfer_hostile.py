"""An export in which somebody has changed anything: the import refuses it and writes nothing, or writes what can be read.

`-m load` changes thousands of places.
"""

import io
import json
from contextlib import suppress
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Batch, Job, Schedule
from django_jobs.transfer.exporting import all_jobs, export_file
from django_jobs.transfer.importing import import_dicts, import_file
from tests.support.edits import fill

pytestmark = pytest.mark.django_db

VALUES = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**70, -(2**70), 10**4_000, 0.5, -0.0, 1e308, float("inf"), float("nan"),
        253_370_764_800.0, -62_135_596_801.0, "", "a", "\0", "\ud800", "x" * 300, "x" * 300_000, "null", "pending", "completed",
        "running", "dead", "cancelled", "failed", "scheduled", "open", "shell", "ready", "nobody", "default",
        "a;drop", [], [None],
        {}, {"": {}}, [["ready", "fail"]], {"job_type": 7}, "2024-01-01", "0 0 31 2 *", "Europe/Nowhere", "interval",
        "once", "cron",
    ]
) | st.text(max_size=5) | st.integers() | st.floats()  # fmt: skip
SETTLED: Any = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow], "deadline": None}


@pytest.fixture
def lines() -> list[Any]:
    """Give the lines of an export that has all kinds of rows; the tables are empty."""
    fill()
    Job.objects.filter(status="running").delete()
    file = io.BytesIO()
    export_file(all_jobs(), file)
    for model in (Job, Batch, Schedule):
        model._base_manager.all().delete()
    return [json.loads(line) for line in file.getvalue().splitlines()]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in _places(item, (*path, key))]


def _change(data: st.DataObject, lines: list[Any]) -> None:
    """Put another value in a place, leave it out, or let it stand there under another name."""
    places = _places(lines)
    *way, last = data.draw(st.sampled_from(places))
    parent: Any = lines
    for key in way:
        if not isinstance(parent, dict | list):
            return
        parent = parent[key]
    what = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if what == "replace" or isinstance(parent, list):
        parent[last] = data.draw(VALUES)
    elif what == "remove":
        parent.pop(last, None)
    else:
        parent[data.draw(st.sampled_from(["id", "extra", "fence", "x", "\0", ""]))] = data.draw(VALUES)


def _import(lines: list[Any]) -> None:
    """Import lines; when they are taken, all of it can be read and written again."""
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    before = Job.objects.count(), Schedule.objects.count(), Batch.objects.count()
    problems: tuple[str, ...] = ()
    try:
        import_file(io.BytesIO(text), "file", include_running=True)
    except InvalidJob as error:
        problems = error.problems or ("",)
    if not problems:
        export_file(all_jobs(), io.BytesIO())
        return
    assert all(0 < len(problem) < 2_000 for problem in problems)
    assert before == (Job.objects.count(), Schedule.objects.count(), Batch.objects.count())


def _try(data: st.DataObject, lines: list[Any]) -> None:
    changed = json.loads(json.dumps(lines))
    for _ in range(data.draw(st.integers(1, 3))):
        _change(data, changed)
    for attempt in (_import, lambda given: _from_dicts(given[1:])):
        with transaction.atomic():
            attempt(changed)
            transaction.set_rollback(True)


def _from_dicts(given: list[Any]) -> None:
    with suppress(InvalidJob):
        import_dicts(given, include_running=True)


@settings(max_examples=30, **SETTLED)
@given(data=st.data())
@pytest.mark.slow
def test_a_changed_export_is_refused_or_can_be_read(lines: list[Any], data: st.DataObject) -> None:
    _try(data, lines)


@pytest.mark.load
@settings(max_examples=3_000, derandomize=False, **SETTLED)
@given(data=st.data())
def test_exports_changed_in_thousands_of_places_are_refused_or_can_be_read(
    lines: list[Any], data: st.DataObject
) -> None:
    _try(data, lines)


@settings(max_examples=30, **SETTLED)
@given(
    text=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"{", b"}", b"\n", b"null", b'"', b"[" * 3_000, b"\xff"])).map(b"".join)
)
def test_a_file_of_anything_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidJob):
        import_file(io.BytesIO(text), "file")


def test_the_export_itself_is_taken(lines: list[Any]) -> None:
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert (
        import_file(io.BytesIO(text), "file", include_running=True).written
        == len(lines) - 1 - lines[0]["queues"] - lines[0]["schedules"]
    )
