"""Export and import: what goes out comes in again, whole or not at all."""

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import DEFAULT_DB_ALIAS, connections

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, JobLog, JobStep
from django_jobs.queue import JobQueue
from django_jobs.transfer import importing
from django_jobs.transfer.exporting import all_jobs, export_dicts, export_file
from django_jobs.transfer.importing import import_dicts
from django_jobs.transfer.record import _ATTEMPT, _DEAD_LETTER, _EDGE, _EXTRA, _LOG, _STEP, Record
from tests.support.databases import VENDORS, created_database, new_url, why_unreachable
from tests.support.factories import JobFactory
from tests.support.threads import run_in_threads
from tests.support.transfers import NESTED, delete_all, exported, imported, make_mixed_jobs, refusal
from tests.support.workflows import add_step

FINISHED: tuple[str, ...] = ("completed", "failed", "dead", "cancelled")


@pytest.mark.django_db
def test_export_import_export_is_identical_for_every_status() -> None:
    make_mixed_jobs()
    first = exported()
    delete_all()
    done = imported(first)
    assert (done.written, done.known) == (40, 0)
    assert exported() == first
    assert (Attempt.objects.count(), DeadLetter.objects.open().count()) == (12, 6)


@pytest.mark.django_db
def test_a_second_import_leaves_equal_jobs_alone() -> None:
    make_mixed_jobs()
    first = exported()
    done = imported(first)
    assert (done.written, done.known) == (0, 40)
    assert exported() == first


@pytest.mark.django_db
@pytest.mark.parametrize("known", [0, 7, 40])
def test_the_progress_of_an_import_grows_and_reaches_its_end_once(known: int) -> None:
    make_mixed_jobs()
    data = exported()
    delete_all()
    if known:
        imported(
            b"\n".join([b'{"format":"django_jobs","jobs":%d,"version":1}' % known, *data.splitlines()[-known:], b""])
        )
    seen: list[tuple[int, int]] = []
    imported(data, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert [done == total for done, total in seen] == [*[False] * (len(seen) - 1), True]


@pytest.mark.django_db
def test_the_same_id_with_other_content_is_refused() -> None:
    make_mixed_jobs(6)
    data = exported()
    Job.objects.filter(pk="job-000003").update(payload={"changed": True})
    assert refusal(lambda: imported(data)) == ["jobs.jsonl:5: job_id 'job-000003' exists already, with other content"]


@pytest.mark.django_db
def test_job_dicts_round_trip_through_a_queue() -> None:
    make_mixed_jobs()
    queue = JobQueue("mail")
    dicts = queue.export_jobs()
    assert len(dicts) == 20
    assert json.loads(json.dumps(dicts)) == dicts
    # All dependencies of the jobs in this queue are in it.
    delete_all()
    assert queue.import_jobs(dicts) == 20
    assert queue.export_jobs() == dicts


@pytest.mark.django_db
def test_plain_job_dicts_are_enough_for_an_import() -> None:
    make_mixed_jobs()
    dicts = [job.to_dict() for job in Job.objects.order_by("pk")]
    delete_all()
    assert import_dicts(dicts).written == 40
    assert [job.to_dict() for job in Job.objects.order_by("pk")] == dicts
    assert DeadLetter.objects.open().count() == Job.objects.filter(status="dead").count()


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["pending", "scheduled", "running", *FINISHED])
def test_a_job_and_its_dict_compare_equal(status: str) -> None:
    job = JobFactory(status=status, payload=NESTED, metadata={"m": 1}, result=[1] if status == "completed" else None)
    again = Job.from_dict(job.to_dict())
    assert again.to_dict() == job.to_dict()
    assert again == job
    assert list(job.to_dict()) == [
        "job_id", "job_type", "queue", "payload", "priority", "scheduled_at", "created_at", "max_retries",
        "retry_count", "timeout_seconds", "status", "result", "error", "metadata", "depends_on",
    ]  # fmt: skip


def test_every_column_is_exported_or_left_out_for_a_reason() -> None:
    def columns(model: Any, *, without: set[str]) -> set[str]:
        return {field.name for field in model._meta.fields} - without

    in_dict = set(JobFactory.build().to_dict()) - {"job_id", "priority", "depends_on"} | {"id"}
    # unique_lock and pending_dependencies follow from the rest; where a job stands to limits is asked anew; a batch is more
    # than a job.
    follow = {"unique_lock", "pending_dependencies", "pending_limits", "batch"}
    assert in_dict | set(_EXTRA) == columns(Job, without=follow)
    assert set(_ATTEMPT) == columns(Attempt, without={"id", "job"})
    # Users are other ones in another database. The type is the job's.
    assert set(_DEAD_LETTER) == columns(DeadLetter, without={"id", "job", "job_type", "acknowledged_by", "replayed_by"})
    assert set(_EDGE) == columns(JobDependency, without={"id", "job"})
    # Events are other ones there, too.
    assert set(_LOG) == columns(JobLog, without={"id", "job"})
    assert set(_STEP) == columns(JobStep, without={"id", "job", "event_id"})


@pytest.mark.django_db
def test_steps_come_along_and_a_job_that_waits_goes_on_waiting() -> None:
    job = JobFactory(id="flow", status="scheduled", fence=3)
    add_step(job, "charge", {"payment": 7})
    add_step(job, "none")
    add_step(job, "rows", 41, kind="iterate", ended_at=None)
    add_step(job, "night", kind="sleep", ended_at=None, due_at=job.available_at)
    add_step(job, "go", {"by": "ada"}, kind="event", event_name="go", event_key="k", event_id=5)
    add_step(job, "go#2", kind="event", ended_at=None, event_name="go", event_key="k")
    JobFactory(id="without")
    first = exported()
    states = [step.state for step in JobStep.objects.all()]
    delete_all()
    assert imported(first).written == 2
    assert exported() == first
    assert [step.state for step in JobStep.objects.all()] == states
    assert imported(first).known == 2
    waiting = Job.objects.get(pk="flow")
    assert (waiting.status, waiting.available_at) == ("scheduled", job.available_at)
    lines = [json.loads(line) for line in first.splitlines()[1:]]
    assert ["steps" in line["extra"] for line in lines] == [True, False]


@pytest.mark.django_db
def test_records_of_a_job_that_never_ran_are_found_by_its_first_run() -> None:
    job = JobFactory(id="flow", fence=0)
    add_step(job, "charge")
    record = exported()
    delete_all()
    imported(record)
    assert Job.objects.get().fence == 1


@pytest.mark.django_db
def test_a_running_job_is_refused_unless_it_may_become_pending() -> None:
    JobFactory(id="r", status="running", fence=4, worker_id="elsewhere:1:a", progress=0.5)
    data = exported()
    delete_all()
    problems = refusal(lambda: imported(data))
    assert len(problems) == 1
    assert problems[0].startswith("jobs.jsonl:2: status: job 'r' is running")
    assert imported(data, include_running=True).written == 1
    job = Job.objects.get()
    assert (job.status, job.fence, job.worker_id, job.started_at, job.progress) == ("pending", 5, None, None, None)


@pytest.mark.django_db
def test_edges_stand_as_their_dependencies_do_here() -> None:
    JobFactory(id="done", status="completed")
    records = [
        {"job_id": "a", "job_type": "t", "depends_on": ["done"]},
        {"job_id": "b", "job_type": "t", "depends_on": ["done", "c"]},
        {"job_id": "c", "job_type": "t"},
        {"job_id": "d", "job_type": "t", "depends_on": ["e"]},
        {"job_id": "e", "job_type": "t", "status": "dead", "error": "no"},
    ]
    assert import_dicts(records).written == 5
    rows = Job.objects.exclude(pk="done").order_by("pk").values_list("pk", "status", "pending_dependencies")
    assert list(rows) == [
        ("a", "pending", 0),
        ("b", "pending", 1),
        ("c", "pending", 0),
        ("d", "failed", 0),
        ("e", "dead", 0),
    ]


@pytest.mark.django_db
def test_a_live_unique_key_is_held_once() -> None:
    JobFactory(id="holder", unique_key="k", status="pending")
    record = Record(JobFactory.build(id="new", unique_key="k"), [], [], []).to_dict()
    twin = Record(JobFactory.build(id="twin", unique_key="k"), [], [], []).to_dict()
    finished = Record(JobFactory.build(id="old", unique_key="k", status="completed"), [], [], []).to_dict()
    assert refusal(lambda: import_dicts([record])) == ["item 0: extra.unique_key: the live job 'holder' holds 'k'"]
    Job.objects.all().delete()
    assert refusal(lambda: import_dicts([record, twin])) == [
        "item 1: extra.unique_key: another live job of the import holds 'k'"
    ]
    assert import_dicts([record, finished]).written == 2


@pytest.mark.django_db
def test_what_changes_between_check_and_write_is_an_error_that_writes_nothing() -> None:
    items = [{"job_id": "a", "job_type": "t"}, {"job_id": "b", "job_type": "t"}]

    write = importing._write

    def write_late(*args: Any) -> int:
        JobFactory(id="b")
        return write(*args)

    with mock.patch.object(importing, "_write", write_late), pytest.raises(InvalidJob, match="has changed since"):
        import_dicts(items)
    assert list(Job.objects.values_list("pk", flat=True)) == ["b"]


@pytest.mark.django_db(transaction=True)
def test_an_export_is_one_moment_though_jobs_go_on() -> None:
    """A job that is written while the export reads is not in it, and one that is deleted is."""
    make_mixed_jobs(30)
    before = exported()

    class Meddler(io.BytesIO):
        count = 0

        def write(self, data: Any, /) -> int:
            self.count += 1
            if self.count == 2:
                run_in_threads(lambda: (JobFactory(id="job-999999"), Job.objects.filter(pk="job-000029").delete()))
            return super().write(data)

    file = Meddler()
    export_file(all_jobs(), file)
    assert file.getvalue() == before
    assert exported() != before


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
def test_exports_of_all_databases_are_byte_equal(tmp_path: Path, django_db_blocker: Any) -> None:
    make_mixed_jobs(120)
    first = exported()
    reached = [vendor for vendor in VENDORS if why_unreachable(vendor) is None]
    for vendor in reached:
        with django_db_blocker.unblock(), created_database(new_url(vendor, tmp_path, suffix="_copy")):
            assert imported(first).written == 120
            assert connections[DEFAULT_DB_ALIAS].vendor == {"mariadb": "mysql"}.get(vendor, vendor)
            assert exported() == first, vendor


@pytest.mark.django_db
def test_dicts_and_lines_say_the_same() -> None:
    make_mixed_jobs(12)
    lines = [json.loads(line) for line in exported().splitlines()[1:]]
    assert lines == export_dicts(all_jobs())
