"""The rows of an import: what is like an earlier record is checked as strictly, and text arrives as it was."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from django_jobs.db.dialects import dialect
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Attempt, Job
from django_jobs.numbers import from_unix
from django_jobs.transfer.record import Record
from django_jobs.transfer.rows import FIELDS, RowReader, Rows
from django_jobs.transfer.times import text_of_unix, unix_of_text
from tests.support.factories import AttemptFactory, JobFactory
from tests.support.transfers import delete_all, exported, imported, make_mixed_jobs

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 1.0, -1, 0.5, 7, 61, 2**31, 2**63, float("nan"), float("inf"), 1e18, 1_700_000_000,
    1_700_000_000.25, "", "x", "ä b", " x", "a\x00b", "\ud800", "x" * 300, "shell", "pending", "dead", "running", "lost",
    [], ["x"], ["other"], {}, {"a": 1}, {"a": float("nan")}, {"a\x00": 1},
)  # fmt: skip


def _full(**values: Any) -> dict[str, Any]:
    return json.loads(json.dumps(Record(JobFactory.build(**values), [], [], []).to_dict()))


def _changed(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield records that differ from one in one key, with the name of that key."""
    for value in ODD:
        for name in data:
            yield name, {**data, name: value}
        for name in data["extra"]:
            yield f"extra.{name}", {**data, "extra": {**data["extra"], name: value}}
    for name in data:
        yield name, {key: value for key, value in data.items() if key != name}
    for name in data["extra"]:
        yield f"extra.{name}", {**data, "extra": {key: value for key, value in data["extra"].items() if key != name}}


def _read(reader: RowReader, data: Any) -> Rows | list[str]:
    try:
        return reader.read(data)
    except InvalidJob as error:
        return list(error.problems)


@pytest.mark.parametrize("status", ["pending", "scheduled", "running", "completed", "dead"])
def test_a_record_like_an_earlier_one_is_read_as_if_it_were_the_first(status: str) -> None:
    data = _full(id="a", status=status, payload={"n": [1, 2.5, "ß"]}, result=[1] if status == "completed" else None)
    edge = {"depends_on": "other", "on_failure": "fail", "state": "open"}
    with_edge = {**data, "depends_on": ["other"], "extra": {**data["extra"], "dependencies": [edge]}}
    reader = RowReader()
    reader.read({**data, "job_id": "another", "payload": {}, "error": "no"})
    refused = 0
    for name, changed in [("nothing", data), *_changed(data), *_changed(with_edge)]:
        alone = _read(RowReader(), changed)
        if name in ("job_id", "created_at") and isinstance(alone, Rows) and changed.get(name) is None:
            continue  # a new id, the time of the reading
        assert _read(reader, changed) == alone, (name, changed.get(name))
        refused += isinstance(alone, list)
    assert refused > 500


def test_times_are_rounded_as_datetimes_are() -> None:
    chance = random.Random(7)
    given = [0.0, 0.9999995, 0.9999996, 59.9999999, 1_700_000_000.0, 1_700_000_000.1234565, 253_370_764_799.0]
    given += [chance.uniform(0, 5e9) for _ in range(5000)] + [
        chance.randrange(4_000_000) / 2_000_000 for _ in range(2000)
    ]
    for seconds in given:
        moment = from_unix(seconds)
        assert moment is not None
        text = str(moment.replace(tzinfo=None))
        shorter = text.rstrip("0") if "." in text else text  # as PostgreSQL writes it
        assert text_of_unix(seconds) == text, seconds
        assert unix_of_text(text) == unix_of_text(shorter) == moment.timestamp(), text


HOSTILE = ["", "\\", "\\N", "\\.", "a\tb\nc\rd", "'\"`%s%%", "日本 😀", "{1,2}", "NULL", "null", '"', " blank "]


@pytest.mark.django_db
def test_rows_arrive_as_they_were_given() -> None:
    JobFactory(id="j")
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    rows = [AttemptFactory.build(job_id="j", number=n, error=text, ended_at=moment) for n, text in enumerate(HOSTILE)]
    rows += [AttemptFactory.build(job_id="j", number=99, error="same", ended_at=moment, started_at=None)] * 3
    names = [field.attname for field in FIELDS[Attempt]]
    text = {True: str(moment.replace(tzinfo=None))}
    values = [
        [text.get(name == "ended_at", None if name == "started_at" else getattr(row, name)) for name in names]
        for row in rows
    ]
    insert = dialect().insert_rows
    insert(Attempt._meta.db_table, names, values)
    insert(Attempt._meta.db_table, names, values[:1])
    insert(Attempt._meta.db_table, names, values[-2:])  # every column has one value throughout
    found = Attempt.objects.order_by("pk").values_list("error", "ended_at", "started_at")
    expected = [*HOSTILE, "same", "same", "same", HOSTILE[0], "same", "same"]
    assert list(found) == [(error, moment, None) for error in expected]


@pytest.mark.django_db
def test_jobs_alike_arrive_with_what_is_their_own() -> None:
    make_mixed_jobs(120)
    for n, text in enumerate(HOSTILE):
        JobFactory(
            id=f"hostile-{n:02}",
            status="cancelled",
            error=text,
            payload={text: text},
            metadata={"t": text} if n % 2 else {},
            result=text if n % 3 else None,
            fence=n,
        )
    first = exported()
    rows = list(Job.objects.order_by("pk").values())
    delete_all()
    assert imported(first).written == 120 + len(HOSTILE)
    assert exported() == first
    assert list(Job.objects.order_by("pk").values()) == rows
