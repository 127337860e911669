"""What comes of a failure: how long the wait, and when it is enough."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_jobs.exceptions import Cancelled, Fail, InvalidJob, Retry, Snooze, TimedOut
from django_jobs.retry import RetryDecision, RetryPolicy, backoff_delay, decide

POLICY = RetryPolicy(max_retries=3, base_delay=1.0, max_delay=100.0)


def dead(reason: str, retry_count: int = 0) -> RetryDecision:
    return RetryDecision(action="dead", retry_count=retry_count, reason=reason)


def test_the_wait_doubles_with_each_retry_and_grows_by_up_to_half() -> None:
    assert [backoff_delay(count, 1.0, 1e9, random=lambda: 0.0) for count in (1, 2, 3)] == [2, 4, 8]
    assert [backoff_delay(count, 1.0, 1e9, random=lambda: 1.0) for count in (1, 2, 3)] == [3, 6, 12]
    assert backoff_delay(2, 0.5, 1e9, random=lambda: 0.5) == 2.5


def test_the_wait_is_bounded() -> None:
    assert backoff_delay(3, 1.0, 10.0, random=lambda: 1.0) == 10
    assert backoff_delay(5, 1.0, 10.0, random=lambda: 0.0) == 10
    assert backoff_delay(3, 0.0, 10.0) == 0


@given(
    st.integers(0, 10**6),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1, exclude_max=True),
)
def test_no_wait_is_longer_than_the_longest_whatever_the_count(
    retry_count: int, base: float, longest: float, chance: float
) -> None:
    assert 0 <= backoff_delay(retry_count, base, longest, random=lambda: chance) <= longest


def test_three_retries_are_four_starts() -> None:
    decision, retry_count, starts = None, 0, 0
    while decision is None or decision.action == "retry":
        starts += 1
        decision = decide(POLICY, retry_count=retry_count, exception=ValueError(), random=lambda: 0.0)
        if decision.action == "retry":
            assert decision.retry_count == retry_count + 1
            assert decision.delay_seconds == 2.0**decision.retry_count
        retry_count = decision.retry_count
    assert starts == 4
    assert decision == dead("retries exhausted", 3)


def test_a_job_without_retries_is_dead_at_its_first_failure() -> None:
    assert decide(RetryPolicy(max_retries=0), retry_count=0, exception=ValueError()) == dead("retries exhausted")


def test_a_timeout_is_retried_and_then_named_as_the_reason() -> None:
    assert decide(POLICY, retry_count=0, exception=TimedOut()).action == "retry"
    assert decide(POLICY, retry_count=3, exception=TimedOut()) == dead("timeout", 3)
    assert decide(POLICY, retry_count=3, exception=TimeoutError()) == dead("retries exhausted", 3)


def test_a_handler_that_gives_up_is_not_retried() -> None:
    assert decide(POLICY, retry_count=0, exception=Fail("why")) == dead("failed by handler")


def test_a_handler_may_say_when_to_retry() -> None:
    decision = decide(POLICY, retry_count=1, exception=Retry(after=7))
    assert (decision.action, decision.retry_count, decision.delay_seconds) == ("retry", 2, 7)
    assert decide(POLICY, retry_count=1, exception=Retry(), random=lambda: 0.0).delay_seconds == 4
    assert decide(POLICY, retry_count=3, exception=Retry(after=7)) == dead("retries exhausted", 3)


def test_only_what_the_policy_names_is_retried() -> None:
    policy = RetryPolicy(retry_on=(OSError,), fail_on=(FileNotFoundError,))
    assert decide(policy, retry_count=0, exception=ConnectionError()).action == "retry"
    assert decide(policy, retry_count=0, exception=FileNotFoundError()) == dead("failed by handler")
    assert decide(policy, retry_count=0, exception=ValueError()) == dead("failed by handler")
    assert decide(policy, retry_count=0, exception=Retry(after=1)).action == "retry"


def test_every_exception_is_retried_unless_the_policy_says_otherwise() -> None:
    for error in (ValueError(), SystemExit(1), KeyboardInterrupt(), MemoryError()):
        assert decide(POLICY, retry_count=0, exception=error).action == "retry"
    assert decide(RetryPolicy(fail_on=(SystemExit,)), retry_count=0, exception=SystemExit()).action == "dead"


@pytest.mark.parametrize("exception", [Snooze(1), Cancelled()])
def test_what_is_no_failure_is_not_decided_upon(exception: BaseException) -> None:
    with pytest.raises(TypeError, match="no failure"):
        decide(POLICY, retry_count=0, exception=exception)


def test_a_wait_may_be_a_timedelta() -> None:
    assert Retry(timedelta(minutes=2)).after == 120
    assert Snooze(timedelta(minutes=2)).seconds == 120


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "5", True, 10**400, 1e10, timedelta(days=-1)])
def test_an_unsound_wait_is_refused(wait: object) -> None:
    for steering in (Retry, Snooze):
        with pytest.raises(InvalidJob, match="give seconds from 0"):
            steering(wait)  # type: ignore[arg-type]
