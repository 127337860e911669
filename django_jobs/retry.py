"""The retry policy: what follows a failed attempt. Pure decisions that neither write nor sleep."""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from django_jobs.exceptions import Cancelled, Fail, Retry, Snooze, TimedOut

# The reasons of a dead letter that this module decides on.
RETRIES_EXHAUSTED = "retries exhausted"
FAILED_BY_HANDLER = "failed by handler"
TIMEOUT = "timeout"

_LARGEST_EXPONENT = 1_000  # 2.0 ** 1024 overflows


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and after which delay a job is tried again; delays in seconds.

    `retry_on` None retries after every exception, else only after those; `fail_on` wins over it.
    """

    max_retries: int = 3
    base_delay: float = 1.0
    max_delay: float = 3600.0
    retry_on: tuple[type[BaseException], ...] | None = None
    fail_on: tuple[type[BaseException], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryDecision:
    """What follows a failure: "retry" after `delay_seconds`, or "dead" with the dead letter's reason.

    `retry_count` is the row's new value.
    """

    action: Literal["retry", "dead"]
    retry_count: int
    delay_seconds: float = 0.0
    reason: str = ""


def backoff_delay(
    retry_count: int, base_delay: float, max_delay: float, random: Callable[[], float] = _random.random
) -> float:
    """Return the seconds before a retry: base_delay·2**retry_count + U(0, half of that), at most max_delay.

    `retry_count` has been counted up already: 1 for the first retry.
    """
    # Bounded before the jitter: infinity times a random 0.0 would be no number.
    delay = min(max_delay, base_delay * 2.0 ** min(retry_count, _LARGEST_EXPONENT))
    return min(max_delay, delay + random() * delay / 2)


def decide(
    policy: RetryPolicy, *, retry_count: int, exception: BaseException, random: Callable[[], float] = _random.random
) -> RetryDecision:
    """Return what follows a failed attempt.

    `retry_count` is the row's: the retries spent before this failure. `Retry(after)` is granted as long as retries are
    left, whatever `retry_on` and `fail_on` are. Raises TypeError for `Snooze` and `Cancelled`, which are no failures.
    """
    if isinstance(exception, Snooze | Cancelled):
        raise TypeError(f"{type(exception).__name__} is no failure: there is nothing to decide")
    if _gives_up(policy, exception):
        return RetryDecision(action="dead", retry_count=retry_count, reason=FAILED_BY_HANDLER)
    if retry_count >= policy.max_retries:
        reason = TIMEOUT if isinstance(exception, TimedOut) else RETRIES_EXHAUSTED
        return RetryDecision(action="dead", retry_count=retry_count, reason=reason)
    retry_count += 1
    if isinstance(exception, Retry) and exception.after is not None:
        delay = exception.after
    else:
        delay = backoff_delay(retry_count, policy.base_delay, policy.max_delay, random)
    return RetryDecision(action="retry", retry_count=retry_count, delay_seconds=delay)


def _gives_up(policy: RetryPolicy, exception: BaseException) -> bool:
    if isinstance(exception, Retry):
        return False
    if isinstance(exception, (Fail, *policy.fail_on)):
        return True
    return policy.retry_on is not None and not isinstance(exception, policy.retry_on)
