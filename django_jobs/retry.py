"""The retry policy: a pure decision that neither writes nor sleeps."""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from dataclasses import dataclass

from .exceptions import Fail, Retry

RETRIES_EXHAUSTED = "retries exhausted"
FAILED_BY_HANDLER = "failed by handler"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how late a job is tried again; delays in seconds."""

    max_retries: int
    base_delay: float
    max_delay: float
    retry_on: tuple[type[BaseException], ...] | None = None
    fail_on: tuple[type[BaseException], ...] = ()


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What comes of a failure: another try after `delay_seconds`, or the end with a reason."""

    retry: bool
    delay_seconds: float = 0.0
    reason: str = ""


def backoff_delay(
    retry_count: int, base_delay: float, max_delay: float, random: Callable[[], float] = _random.random
) -> float:
    """Return the seconds before retry number `retry_count`: base·2**count, plus up to half of that, at most max_delay."""
    if retry_count > 64:
        return max_delay
    delay = base_delay * 2.0**retry_count
    return min(max_delay, delay + random() * delay / 2)


def decide(policy: RetryPolicy, *, retry_count: int, exception: BaseException | None) -> RetryDecision:
    """Decide what comes of a failed attempt of a job that was retried `retry_count` times so far."""
    if isinstance(exception, Fail):
        return RetryDecision(False, reason=FAILED_BY_HANDLER)
    if not isinstance(exception, Retry) and exception is not None:
        refused = policy.retry_on is not None and not isinstance(exception, policy.retry_on)
        if refused or isinstance(exception, policy.fail_on):
            return RetryDecision(False, reason=FAILED_BY_HANDLER)
    if retry_count >= policy.max_retries:
        return RetryDecision(False, reason=RETRIES_EXHAUSTED)
    if isinstance(exception, Retry) and exception.after is not None:
        return RetryDecision(True, delay_seconds=max(0.0, float(exception.after)))
    return RetryDecision(True, delay_seconds=backoff_delay(retry_count + 1, policy.base_delay, policy.max_delay))
