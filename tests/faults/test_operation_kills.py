"""An operation whose workers are killed: others go on behind the last step, and no row is moved twice or passed over."""

import pytest

from django_jobs.lifecycle.operations import begin
from django_jobs.models import Job, Operation, OperationKind
from tests.support.factories import JobFactory, QueueFactory
from tests.support.invariants import check_invariants
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
ROWS = 2_000
SETTINGS = {"LEASE_SECONDS": 4}


@pytest.mark.slow
@pytest.mark.quick("postgresql")
def test_an_operation_survives_the_kill_of_all_workers() -> None:
    QueueFactory(name="held", paused_at=JobFactory.build().created_at)
    Job.objects.bulk_create(JobFactory.build(queue="held") for _ in range(ROWS))
    operation = begin(OperationKind.CANCEL, filters={"queue": "held"}, per_second=400)

    def treated() -> int:
        operation.refresh_from_db()
        return operation.done + operation.skipped

    with spawn_workers("--processes", "2", "--threads", "1", settings=SETTINGS) as workers:
        wait_until(lambda: treated() > 0, 60, "the first step")
        workers.kill()
    assert operation.state == "running"
    assert treated() == Job.objects.filter(status="cancelled").count() < ROWS
    with spawn_workers("--processes", "2", "--threads", "1", settings=SETTINGS) as workers:
        wait_until(lambda: Operation.objects.filter(state="finished").exists(), 60, "the end of the operation")
        check_invariants(output=workers.output())
    # A step made twice would count its rows as left, for they are cancelled already.
    assert (treated(), operation.done, operation.skipped) == (ROWS, ROWS, 0)
    assert Job.objects.filter(status="cancelled").count() == ROWS
