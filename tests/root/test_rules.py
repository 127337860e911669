"""One table of rules: an option means the same to `submit()`, `@job`, a schedule, an import and the setting."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_jobs import conf
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, make_handler
from django_jobs.rules import RULES, check
from django_jobs.scheduling.spec import check_schedule
from django_jobs.submission import SubmitOptions, check_submission

BAD: list[tuple[str, Any, str]] = [
    ("priority", 11, "an integer from 1 to 10"),
    ("priority", True, "an integer from 1 to 10"),
    ("priority", "5", "an integer from 1 to 10"),
    ("max_retries", -1, "an integer from 0 to 1000000"),
    ("max_retries", 1.0, "an integer from 0 to 1000000"),
    ("timeout_seconds", 0, "a positive number of seconds, at most 315360000"),
    ("timeout_seconds", float("nan"), "a positive number of seconds, at most 315360000"),
    ("base_delay", -1, "a number of seconds from 0 to 315360000"),
    ("max_delay", float("inf"), "a number of seconds from 0 to 315360000"),
    ("max_crashes", 0, "an integer from 1 to 100"),
    ("dead_letter", 1, "True or False"),
    ("isolation", "proces", "'thread' or 'process'. Did you mean 'process'?"),
    ("retry_on", [ValueError], "an exception class or a tuple of them"),
    ("on_dependency_failure", "stop", "'fail' or 'run'"),
    ("scheduled_at", "now", "a datetime with a time zone, such as django.utils.timezone.now()"),
    ("delay", -1, "a timedelta or seconds, from 0 to 3660 days"),
]


def submit(options: dict[str, Any]) -> None:
    check_submission("a", None, options)


def decorate(options: dict[str, Any]) -> None:
    make_handler(lambda payload: None, "a", options)


def schedule(options: dict[str, Any]) -> None:
    check_schedule("a", "b", every=5, **options)


TAKERS = {
    submit: set(SubmitOptions.__annotations__),
    decorate: {*Handler.__dataclass_fields__} - {"job_type", "function", "is_async"},
    schedule: {"queue", "priority", "max_retries", "timeout_seconds", "metadata"},
}


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_an_option_is_refused_in_the_same_words_by_all_who_take_it(name: str, value: Any, words: str) -> None:
    takers = [take for take, names in TAKERS.items() if name in names]
    assert takers
    for take in takers:
        with pytest.raises(InvalidJob) as caught:
            take({name: value})
        assert caught.value.problems == (f"{name}={value!r}: give {words}",)


@pytest.mark.parametrize("name", ["max_retries", "base_delay", "max_delay", "timeout_seconds", "dead_letter"])
def test_the_setting_of_a_queue_has_the_rule_of_the_option(name: str) -> None:
    for option, value, words in BAD:
        if option == name:
            _, problems = conf.parse({"QUEUES": {"mail": {name: value}}})
            assert f"must be {words}, or None, not {value!r}" in problems[0].message


def test_values_are_kept_as_they_are_stored() -> None:
    kept = {
        name: check(name, value, RULES[name])
        for name, value in {
            "timeout_seconds": 5, "delay": 90, "retry_on": ValueError, "scheduled_at": datetime(2024, 1, 1, tzinfo=UTC),
        }.items()
    }  # fmt: skip
    assert kept == {
        "timeout_seconds": 5.0, "delay": timedelta(seconds=90), "retry_on": (ValueError,),
        "scheduled_at": datetime(2024, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    assert type(kept["timeout_seconds"]) is float
