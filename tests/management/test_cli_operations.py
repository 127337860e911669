"""`manage.py jobs operations`: list, show, pause, resume and stop what goes on with many rows."""

import pytest

from django_jobs.lifecycle.operations import begin, move_operations
from django_jobs.models import Operation, OperationKind
from tests.support.commands import jobs, json_lines, refused
from tests.support.factories import JobFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def operation() -> Operation:
    """Give an operation on three jobs, one of which it has moved."""
    JobFactory.create_batch(3, status="dead")
    row = begin(OperationKind.REPLAY, filters={"status": "dead"}, per_second=1)
    move_operations()
    return row


def test_operations_are_listed_and_shown_with_how_far_they_are(operation: Operation) -> None:
    (line,) = json_lines("operations", "list")
    assert {name: line[name] for name in ("id", "kind", "state", "total", "done", "per_second")} == {
        "id": operation.pk, "kind": "replay", "state": "running", "total": 3, "done": 1, "per_second": 1.0,
    }  # fmt: skip
    assert "replay  running  1     0        3" in jobs("operations", "list")
    assert json_lines("operations", "list", "--state", "failed") == []
    assert "done: 1" in jobs("operations", "show", str(operation.pk))
    (shown,) = json_lines("operations", "show", str(operation.pk))
    assert shown["filters"]["status"] == "dead"


def test_an_operation_is_paused_resumed_and_stopped_by_its_number(operation: Operation) -> None:
    key = str(operation.pk)
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        assert jobs("operations", verb, key) == f"{key} {state}\n"
        operation.refresh_from_db()
        assert operation.state == state
    code, lines = refused("operations", "stop", key)
    assert code == 1
    assert "is stopped" in lines[0]
    assert refused("operations", "show", "77") == (1, ["there is no operation 77"])
    assert refused("operations", "pause", "x")[0] != 0
