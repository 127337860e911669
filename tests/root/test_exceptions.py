"""Errors: their families, their messages, and their way between processes."""

import pickle

import pytest

from django_jobs.exceptions import (
    Cancelled,
    CycleError,
    DeadLetterNotFound,
    Fail,
    HandlerNotFound,
    InvalidJob,
    JobNotFound,
    JobsError,
    LeaseLost,
    Retry,
    Snooze,
    TimedOut,
)


def test_errors_are_of_one_family_and_of_pythons_kinds() -> None:
    for error in (InvalidJob, CycleError, JobNotFound, HandlerNotFound, LeaseLost, TimedOut, Retry, Snooze, Fail):
        assert issubclass(error, JobsError)
    assert issubclass(InvalidJob, ValueError)
    assert issubclass(CycleError, InvalidJob)
    assert issubclass(JobNotFound, KeyError)
    assert issubclass(TimedOut, TimeoutError)


def test_errors_read_well() -> None:
    assert str(InvalidJob("one", "two")) == "one; two"
    assert InvalidJob("one", "two").problems == ("one", "two")
    many = InvalidJob(*(f"item {number}" for number in range(3_020)))
    assert str(many).endswith("item 18; item 19; and 3,000 more")
    assert len(many.problems) == 3_020
    assert str(JobNotFound("x")) == "there is no job 'x'"
    assert str(DeadLetterNotFound(5)) == "there is no dead letter 5"
    assert str(Fail("why")) == "why"
    assert str(Cancelled()) == "Cancelled"
    assert str(Retry(5, "busy")) == "busy"


@pytest.mark.parametrize(
    "error", [InvalidJob("a", "b"), JobNotFound("x"), Retry(5, "busy"), Snooze(2, "x"), Fail("why"), TimedOut("slow")]
)
def test_errors_travel_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_timeout_can_be_raised_in_a_thread_by_its_class() -> None:
    with pytest.raises(TimeoutError):
        raise TimedOut
