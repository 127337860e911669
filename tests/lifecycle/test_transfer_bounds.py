"""Numbers at the ends of what a row can hold: what lies beyond is refused by its path, what lies on it is written."""

from typing import Any

import pytest

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Job
from django_jobs.models.job import LAST_FENCE, MOST, MOST_CRASHES
from django_jobs.transfer.importing import import_dicts
from tests.support.factories import JobFactory
from tests.support.transfers import delete_all, exported, imported, refusal

pytestmark = pytest.mark.django_db
BEYOND = {
    "extra.fence": ({"extra": {"fence": LAST_FENCE + 1}}, b'"fence":5', b'"fence":4611686018427387905'),
    "extra.crash_count": ({"extra": {"crash_count": MOST_CRASHES + 1}}, b'"crash_count":6', b'"crash_count":32001'),
    "retry_count": ({"retry_count": MOST + 1}, b'"retry_count":7', b'"retry_count":2000000001'),
}


@pytest.mark.parametrize("path", BEYOND)
def test_a_number_that_no_row_can_hold_is_refused_by_its_path(path: str) -> None:
    changes, _, written = BEYOND[path]
    item: dict[str, Any] = {"job_id": "x", "job_type": "t", **changes}
    problems = refusal(lambda: import_dicts([{"job_id": "good", "job_type": "t"}, item]))
    (problem,) = problems
    assert problem.startswith(f"item 1: {path}={written.partition(b':')[2].decode()}: ")


@pytest.mark.parametrize("path", BEYOND)
def test_so_it_is_in_a_file_behind_a_job_that_is_like_it(path: str) -> None:
    for job_id in ("a", "b"):
        JobFactory(id=job_id, status="failed", error="no", fence=5, crash_count=6, retry_count=7)
    lines = exported().splitlines(keepends=True)
    delete_all()
    _, before, after = BEYOND[path]
    assert before in lines[-1]
    lines[-1] = lines[-1].replace(before, after)
    (problem,) = refusal(lambda: imported(b"".join(lines)))
    assert problem.startswith(f"jobs.jsonl:3: {path}={after.partition(b':')[2].decode()}: ")


@pytest.mark.parametrize("status", ["pending", "failed", "completed"])
def test_the_largest_numbers_are_written(status: str) -> None:
    most = {"extra": {"fence": LAST_FENCE, "crash_count": MOST_CRASHES}, "retry_count": MOST}
    import_dicts([{"job_id": "x", "job_type": "t", "status": status, **most}])
    row = Job.objects.get()
    assert (row.fence, row.crash_count, row.retry_count) == (LAST_FENCE, MOST_CRASHES, MOST)


def test_a_running_job_with_the_last_fence_is_refused_by_its_path_or_written() -> None:
    item = {"job_id": "x", "job_type": "t", "status": "running", "extra": {"fence": LAST_FENCE}}
    try:
        import_dicts([item], include_running=True)
    except InvalidJob as refused:
        (problem,) = refused.problems
        assert problem.startswith("item 0: extra.fence=")
    else:
        assert Job.objects.get().status == "pending"
