"""A timeout that lands inside a query: what that connection still has to say must not reach the next job, or our settle."""

import pytest

from django_jobs import submit
from django_jobs.models import Job
from tests.support.processes import spawn_workers


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_the_jobs_after_a_timeout_inside_a_query_are_right() -> None:
    pairs = []
    for _ in range(4):
        slow = submit("effects.slow_query", {"seconds": 0.7}, timeout_seconds=1, max_retries=0)
        pairs.append((slow, submit("effects.sum_of_rows", {}, max_retries=0)))
    with spawn_workers("--drain", "--threads", "1", settings={"TIMEOUT_GRACE_SECONDS": 20}) as workers:
        assert workers.wait(60) == 0, workers.output()
        assert "Commands out of sync" not in workers.output()
    jobs = Job.objects.in_bulk()
    assert [jobs[slow.pk].status for slow, _ in pairs] == ["dead"] * 4
    assert [(jobs[after.pk].status, jobs[after.pk].result) for _, after in pairs] == [("completed", 42)] * 4
