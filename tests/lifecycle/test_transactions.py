"""Transactions of our own are run again after a passing error, and those of a caller never."""

import pytest
from django.db import OperationalError, connection

from django_jobs.db.transactions import retried, transactional
from tests.support.effects.models import leave_effect

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("kind", [transactional, retried])
def test_a_transaction_that_the_caller_began_by_hand_is_not_run_again(kind: object) -> None:
    tries: list[int] = []

    @kind  # type: ignore[operator]
    def move() -> str:
        tries.append(1)
        if len(tries) % 2:
            raise OperationalError(1213, "deadlock")
        return "moved"

    assert move() == "moved"
    tries.clear()
    connection.set_autocommit(False)
    try:
        leave_effect("a", 1, "of the caller")
        with pytest.raises(OperationalError):
            move()
        assert len(tries) == 1
    finally:
        connection.rollback()
        connection.set_autocommit(True)
