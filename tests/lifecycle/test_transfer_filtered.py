"""Exports of some jobs: they read what hangs on these, and nothing of the many that lie between them."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db.models import signals

from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, JobLog
from django_jobs.transfer.exporting import all_jobs, export_dicts
from tests.support.commands import jobs
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory

pytestmark = pytest.mark.django_db
PARTS = (Attempt, DeadLetter, JobDependency, JobLog)


@pytest.fixture(autouse=True)
def _two_rare_jobs_around_many() -> None:
    rows = [JobFactory.build(id=f"job-{n:03}", queue="mail", status="dead", error="no") for n in range(202)]
    for row in (rows[0], rows[-1]):
        row.queue = "rare"
    Job.objects.bulk_create(rows)
    Attempt.objects.bulk_create([AttemptFactory.build(job=row, number=n) for row in rows for n in (1, 2)])
    DeadLetter.objects.bulk_create([DeadLetterFactory.build(job=row, error="no") for row in rows])
    JobLog.objects.bulk_create([JobLog(job=row, number=1, text="INFO\n") for row in rows])
    edges = [JobDependencyFactory.build(job=row, depends_on=rows[1], state="broken") for row in rows[2:]]
    JobDependency.objects.bulk_create(edges)


@contextmanager
def read_rows() -> Iterator[Counter[Any]]:
    """Count the rows of each model that are read in the block."""
    read: Counter[Any] = Counter()

    def count(sender: Any, **kwargs: Any) -> None:
        read[sender] += 1

    for model in PARTS:
        signals.post_init.connect(count, sender=model)
    try:
        yield read
    finally:
        for model in PARTS:
            signals.post_init.disconnect(count, sender=model)


def exported(path: Path, *args: str) -> list[dict[str, Any]]:
    """Export by the command, and return the jobs."""
    jobs("export", str(path), *args)
    return [line for line in map(json.loads, path.read_text().splitlines()) if "job_id" in line]


def test_an_export_of_one_queue_reads_nothing_of_the_jobs_between_its_own(tmp_path: Path) -> None:
    everything = exported(tmp_path / "all")
    with read_rows() as read:
        rare = exported(tmp_path / "rare", "--queue", "rare")
    assert read == {Attempt: 4, DeadLetter: 2, JobDependency: 1, JobLog: 2}
    assert rare == [record for record in everything if record["queue"] == "rare"]
    assert [len(record["extra"]["attempts"]) for record in rare] == [2, 2]
    assert [record["depends_on"] for record in rare] == [[], ["job-001"]]


def test_so_does_one_of_any_queryset() -> None:
    everything = export_dicts(all_jobs())
    with read_rows() as read:
        chosen = export_dicts(Job.objects.filter(pk__in=["job-000", "job-201"]))
    assert read[Attempt] == 4
    assert chosen == [everything[0], everything[-1]]
    assert export_dicts(all_jobs().exclude(pk="job-100")) == everything[:100] + everything[101:]
