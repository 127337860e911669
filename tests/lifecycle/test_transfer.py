"""Export and import: what goes out comes in again, whole or not at all."""

import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils import timezone

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import transfer as moves
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency
from django_jobs.models.records import _ATTEMPT, _EDGE, _EXTRA, _LETTER, Record
from django_jobs.payloads import decode, encode_payload
from django_jobs.queue import JobQueue
from django_jobs.transfer import all_jobs, export_dicts, export_file, import_dicts, import_file
from tests.support.databases import VENDORS, created_database, new_url, why_unreachable
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory
from tests.support.threads import run_in_threads

FINISHED: tuple[str, ...] = ("completed", "failed", "dead", "cancelled")
# As the validator stores it: it knows no -0.0, and 1e16 is an integer.
NESTED = decode(
    encode_payload(
        {
            "a": [1, 2.5, -0.0, 1e22, None, True, {"ß": "日本", "line\u2028end": ["\\", '"', "\t"]}],
            "z": {},
            "big": 2**63 - 1,
        }
    )
)


def make_mixed_jobs(number: int = 40) -> None:
    """Write jobs of every status with all that may hang on a job."""
    now = timezone.now()
    jobs = []
    for index in range(number):
        status = ("pending", "scheduled", "completed", "failed", "dead", "cancelled")[index % 6]
        jobs.append(
            JobFactory.build(
                id=f"job-{index:06d}",
                job_type=f"type.{index % 5}",
                queue=("default", "mail")[index % 2],
                status=status,
                rank=(0, -80, 33, 7)[index % 4],
                payload={**NESTED, "n": index},
                metadata={"tenant": "a"} if index % 3 else {},
                result={"r": [index / 7]} if status == "completed" else None,
                error="ValueError: ünïcode\nline" if status in ("failed", "dead") else None,
                created_at=now - timedelta(seconds=index, microseconds=index),
                timeout_seconds=(None, 30.0, 0.1)[index % 3],
                retry_count=index % 3,
                unique_key=f"key-{index}" if index % 4 == 0 else None,
                crash_count=index % 2,
                progress=0.25 if index % 7 == 0 else None,
                progress_message="a quarter" if index % 7 == 0 else "",
                fence=index,
            )
        )
    Job.objects.bulk_create(jobs, batch_size=500)
    dead = [job for job in jobs if job.status == "dead"]
    DeadLetter.objects.bulk_create([DeadLetterFactory.build(job=job, error=job.error) for job in dead], batch_size=500)
    Attempt.objects.bulk_create(
        [AttemptFactory.build(job=job, number=n) for job in dead for n in (1, 2)], batch_size=500
    )
    edges = []
    for dependent, dependency in zip(
        jobs[0::6], jobs[6::6], strict=False
    ):  # forward references: the later id comes first
        edges.append(JobDependencyFactory.build(job=dependent, depends_on=dependency))
        dependent.pending_dependencies = 1
    JobDependency.objects.bulk_create(edges, batch_size=500)
    Job.objects.bulk_update([edge.job for edge in edges], ["pending_dependencies"], batch_size=500)


def exported() -> bytes:
    file = io.BytesIO()
    export_file(all_jobs(), file)
    return file.getvalue()


def imported(data: bytes, **options: Any) -> Any:
    return import_file(io.BytesIO(data), "jobs.jsonl", **options)


def delete_all() -> None:
    JobDependency.objects.all().delete()
    Job.objects.all().delete()


def refusal(move: Callable[[], Any]) -> list[str]:
    """Return the problems for which something is refused, and see that nothing was written by it."""
    before = exported()
    with pytest.raises(InvalidJob) as refused:
        move()
    assert exported() == before
    return list(refused.value.problems)


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
    # unique_lock and pending_dependencies follow from the rest.
    assert in_dict | set(_EXTRA) == columns(Job, without={"unique_lock", "pending_dependencies"})
    assert set(_ATTEMPT) == columns(Attempt, without={"id", "job"})
    # Users are other ones in another database.
    assert set(_LETTER) == columns(DeadLetter, without={"id", "job", "acknowledged_by", "replayed_by"})
    assert set(_EDGE) == columns(JobDependency, without={"id", "job"})


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


def _line(**changes: Any) -> dict[str, Any]:
    return {"job_id": "x", "job_type": "t", **changes}


BAD_ITEMS = [
    ({"job_type": "t"}, "job_id is missing"),
    (_line(payload={"user": {"when": float("nan")}}), "payload.user.when: nan"),
    (_line(payload=[1]), "payload: give a JSON object"),
    (_line(payload={"n": 2**63}), "payload.n: integers go from"),
    (_line(payload={"a\x00": 1}), "NUL"),
    (_line(job_type="a b"), "job_type 'a b'"),
    (_line(priority=0), "priority=0"),
    (_line(priority="5"), "priority='5'"),
    (_line(status="lost"), "status='lost': give one of"),
    (_line(retry_count=-1), "retry_count=-1"),
    (_line(created_at="yesterday"), "created_at: give Unix seconds"),
    (_line(created_at=1e18), "created_at: give Unix seconds"),
    (_line(scheduled_at=True), "scheduled_at: give Unix seconds"),
    (_line(timeout_seconds=float("inf")), "timeout_seconds"),
    (_line(prioriy=3), "'prioriy': this key is unknown. Did you mean 'priority'?"),
    (_line(depends_on=["x"]), "cannot depend on itself"),
    (_line(depends_on=["nobody"]), "depends_on: there is no job 'nobody'"),
    (_line(depends_on="abc"), "depends_on"),
    (_line(error=5), "error=5: give a string"),
    (_line(error="a\x00b"), "cannot be stored"),
    (_line(result={"s": {1, 2}}), "result.s: set is not JSON"),
    (_line(extra={"rank": 60}, priority=9), "extra.rank=60: it stands for another priority"),
    (_line(extra={"finished_at": 5.0}), "extra.finished_at"),
    (_line(extra={"attempts": [{"number": 1}]}), "extra.attempts[0]: worker_id"),
    (_line(extra={"dead_letters": 3}), "extra.dead_letters: give a list"),
    (_line(extra={"dependencies": []}, depends_on=["y"]), "extra.dependencies: these are not the jobs"),
    (_line(extra={"fense": 3}), "Did you mean 'fence'"),
    ("a string", "give a job as an object"),
    (_line(job_type="shell", payload={"command": "ls"}), "shell jobs are off"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("item", "problem"), BAD_ITEMS, ids=[problem[:40] for _, problem in BAD_ITEMS])
def test_a_bad_item_is_named_and_nothing_is_imported(item: Any, problem: str) -> None:
    good = _line(job_id="good")
    problems = refusal(lambda: import_dicts([good, item]))
    assert any(one.startswith("item 1: ") and problem in one for one in problems), problems


@pytest.mark.django_db
def test_an_id_may_stand_in_a_file_once() -> None:
    problems = refusal(lambda: import_dicts([_line(), _line(job_id="y"), _line()]))
    assert problems == ["item 2: job_id 'x' is taken by item 0"]


@pytest.mark.django_db
def test_a_circle_is_refused_with_its_path() -> None:
    items = [_line(job_id="in", depends_on=["b"])]
    items += [_line(job_id=one, depends_on=[other]) for one, other in (("a", "b"), ("b", "c"), ("c", "a"))]
    items += [_line(job_id="free")]
    (problem,) = refusal(lambda: import_dicts(items))
    assert problem.startswith("the jobs depend on each other: ")
    path = problem.partition(": ")[2].split(" → ")
    assert (path[0], len(path), set(path)) == (path[-1], 4, {"a", "b", "c"})


def _cut(data: bytes, lines: int) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:lines])


BAD_FILES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "jobs.jsonl: the file is empty"),
    (lambda data: b"hello\n", "jobs.jsonl:1: this is not JSON"),
    (lambda data: b"{}\n", "jobs.jsonl:1: this is no export of jobs"),
    (lambda data: data.replace(b'"version":1', b'"version":2', 1), "jobs.jsonl:1: format version 2 is newer"),
    (lambda data: data.replace(b'"version":1', b'"version":"1"', 1), "jobs.jsonl:1: format version '1'"),
    (lambda data: _cut(data, 5), "the first line announces 6 jobs, but 4 follow"),
    (lambda data: data[:-20], "jobs.jsonl:7: the line is cut off"),
    (lambda data: data + b"{}\n", "jobs.jsonl:8: job_type"),
    (lambda data: data.replace(b'"job_type":"type.2"', b'"job_type":"type.2","job_type":"t"', 1), "jobs.jsonl:4: the key"),
    (lambda data: data.replace(b"type.1", b"\xff\xfe", 1), "jobs.jsonl:3: this is not UTF-8"),
    (lambda data: data.replace(b'"n":1', b'"n":NaN', 1), "jobs.jsonl:3: payload.n: nan"),
    (lambda data: data.replace(b'"n":2', b'"n":' + b"9" * 5000, 1), "jobs.jsonl:4: "),
    (lambda data: data.replace(b'"n":3', b'"n":' + b"[" * 100_000 + b"]" * 100_000, 1), "jobs.jsonl:5: "),
]  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(("spoil", "problem"), BAD_FILES, ids=[problem for _, problem in BAD_FILES])
def test_a_bad_file_is_named_with_its_line_and_nothing_is_imported(
    spoil: Callable[[bytes], bytes], problem: str
) -> None:
    make_mixed_jobs(6)
    data = exported()
    delete_all()
    problems = refusal(lambda: imported(spoil(data)))
    assert any(problem in one for one in problems), problems


@pytest.mark.django_db
def test_a_long_list_of_problems_is_cut() -> None:
    problems = refusal(lambda: import_dicts([_line(job_id=f"j{n}", priority=0) for n in range(500)]))
    assert len(problems) == 21
    assert problems[-1] == "and more"


@pytest.mark.django_db
def test_what_changes_between_check_and_write_is_an_error_that_writes_nothing() -> None:
    items = [_line(job_id="a"), _line(job_id="b")]

    write = moves.write

    def write_late(*args: Any) -> int:
        JobFactory(id="b")
        return write(*args)

    with mock.patch.object(moves, "write", write_late), pytest.raises(InvalidJob, match="has changed since"):
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
