"""The words of other queues: what they are called here, for those who write them out of habit."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NoReturn

from django_jobs.exceptions import InvalidJob

_OPTIONS = {
    "acks_late": ("", "a job is settled when its handler has returned, always"),
    "args": ("", 'the payload is the arguments, by name: {"user_id": 7}'),
    "attempts": ("max_retries", "one less: the first start is no retry"),
    "autoretry_for": ("retry_on", ""),
    "bind": ("takes_context", ""),
    "countdown": ("delay", "in seconds, or a timedelta"),
    "default_retry_delay": ("base_delay", ""),
    "delay_seconds": ("delay", ""),
    "dont_autoretry_for": ("fail_on", ""),
    "eta": ("scheduled_at", "an aware datetime"),
    "exchange": ("queue", ""),
    "ignore_result": ("", "return None, and there is no result to keep"),
    "job_timeout": ("timeout_seconds", ""),
    "kwargs": ("", 'the payload is the arguments, by name: {"user_id": 7}'),
    "link": ("depends_on", "of the job that is to follow"),
    "max_attempts": ("max_retries", "one less: the first start is no retry"),
    "queue_name": ("queue", ""),
    "queueing_lock": ("unique_key", ""),
    "retries": ("max_retries", ""),
    "retry_backoff": ("base_delay", ""),
    "retry_backoff_max": ("max_delay", ""),
    "retry_kwargs": ("max_retries", ""),
    "routing_key": ("queue", ""),
    "run_after": ("scheduled_at", "an aware datetime, or delay for a timedelta"),
    "run_at": ("scheduled_at", "an aware datetime"),
    "schedule_at": ("scheduled_at", "an aware datetime"),
    "schedule_in": ("delay", "in seconds, or a timedelta"),
    "soft_time_limit": ("timeout_seconds", ""),
    "task_id": ("job_id", ""),
    "throws": ("fail_on", ""),
    "time_limit": ("timeout_seconds", ""),
    "timeout": ("timeout_seconds", ""),
}
# How others call a function that is a task.
_CALLS = {
    "delay": "Celery",
    "delay_on_commit": "Celery",
    "apply_async": "Celery",
    "apply_async_on_commit": "Celery",
    "enqueue": "Django's tasks",
    "aenqueue": "Django's tasks",
    "send": "Dramatiq",
    "send_with_options": "Dramatiq",
    "defer": "Procrastinate",
    "defer_async": "Procrastinate",
}


def called_here(option: str, known: Container[str]) -> str:
    """Return what another queue's option is called here, as a sentence with a blank before it, or an empty string."""
    name, words = _OPTIONS.get(option, ("", ""))
    if name:
        return f" It is {name} here{f' ({words})' if words else ''}." if name in known else ""
    return f" Leave it out: {words}." if words else ""


def refuse_calls(function: Any) -> None:
    """Let a handler answer `.delay(…)` and its like with the right call, unless it has such a method of its own."""
    for call, queue in _CALLS.items():
        if not hasattr(function, call):
            setattr(function, call, _refusal(getattr(function, "__name__", "handler"), call, queue))


def _refusal(function: str, call: str, queue: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        right = "asubmit" if call in ("aenqueue", "defer_async") else "submit"
        options = {"countdown": "delay=…", "eta": "scheduled_at=…"}
        given = "".join(f", {here}" for there, here in options.items() if there in kwargs)
        raise InvalidJob(
            f"{function}.{call}() is {queue}'s way; here it is {function}.{right}(payload{given}), with the"
            ' arguments by name: {"user_id": 7}'
        )

    return refuse
