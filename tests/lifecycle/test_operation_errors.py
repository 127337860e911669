"""Operations whose step fails for a reason of its own: it ends as failed, and those behind it go on."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError

from django_jobs.lifecycle import operations
from django_jobs.lifecycle.operations import begin, move_operations
from django_jobs.models import Job, Operation, OperationKind
from tests.support.factories import JobFactory

pytestmark = pytest.mark.django_db


def fail_with(monkeypatch: pytest.MonkeyPatch, move: Callable[..., Any]) -> list[Operation]:
    """Begin two operations, of which the first one's move is this one; return both."""
    monkeypatch.setitem(operations.MOVES, OperationKind.CANCEL, move)
    rows = [JobFactory(), JobFactory(status="failed")]
    kinds = (OperationKind.CANCEL, OperationKind.REPLAY)
    return [begin(kind, ids=[job.pk]) for kind, job in zip(kinds, rows, strict=True)]


def test_an_integrity_error_fails_its_operation_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_a_constraint(ids: Any, by: Any, options: Any) -> Any:
        Job.objects.filter(pk__in=ids).update(progress_message="half of the step")
        JobFactory(id=ids[0])

    bad, good = fail_with(monkeypatch, break_a_constraint)
    assert move_operations() in (None, 0.0)
    while move_operations() is not None:
        pass
    for operation in (bad, good):
        operation.refresh_from_db()
    assert (bad.state, bad.done, bad.next_at) == ("failed", 0, None)
    assert "IntegrityError: " in bad.error
    assert bad.ended_at is not None
    assert Job.objects.get(pk=bad.ids[0]).progress_message == "", "the step was undone"
    assert (good.state, good.done) == ("finished", 1)
    assert Job.objects.get(pk=good.ids[0]).status == "pending"


def test_an_outage_fails_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_server(ids: Any, by: Any, options: Any) -> Any:
        raise OperationalError("the server closed the connection")

    fail_with(monkeypatch, lose_the_server)
    with pytest.raises(OperationalError):
        move_operations()
    assert {*Operation.objects.values_list("state", flat=True)} == {"running"}
