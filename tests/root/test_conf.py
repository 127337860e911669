"""The setting DJANGO_JOBS: read once, and every mistake in it named, with its mend."""

from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_jobs import checks
from django_jobs.conf import JobsSettings, QueueSettings, get_settings, parse
from django_jobs.db import connections


def complaint(raw: Any) -> str:
    """Return the one complaint about a setting, with its hint."""
    _, problems = parse(raw)
    (problem,) = problems
    return f"{problem.message} {problem.hint}"


def test_an_empty_setting_gives_the_defaults() -> None:
    settings, problems = parse({})
    assert problems == []
    assert settings == JobsSettings()
    assert (settings.LEASE_SECONDS, settings.THREADS, settings.MAX_RETRIES, settings.PRIORITY) == (60.0, 4, 3, 5)
    assert (settings.TIMEOUT_SECONDS, settings.SHELL_JOBS, settings.NOTIFY) == (None, False, True)
    assert dict(settings.RETENTION) == {"completed": 7, "cancelled": 7, "failed": 30, "dead": 30, "events": 7}
    assert dict(settings.QUEUES) == {}


def test_what_is_said_is_kept_and_the_rest_has_its_default() -> None:
    settings, problems = parse(
        {
            "LEASE_SECONDS": 2,
            "TIMEOUT_SECONDS": 0.5,
            "RETENTION": {"dead": None, "completed": 0.5},
            "REDACT": ["pin"],
            "QUEUES": {"mail": {"default_priority": 7, "dead_letter": False, "timeout_seconds": None}},
        }
    )
    assert problems == []
    assert settings.LEASE_SECONDS == 2
    assert settings.REDACT == ("pin",)
    assert dict(settings.RETENTION) == {"completed": 0.5, "cancelled": 7, "failed": 30, "dead": None, "events": 7}
    assert settings.QUEUES["mail"] == QueueSettings(default_priority=7, dead_letter=False)
    assert settings.QUEUES["mail"].max_workers is None


def test_settings_cannot_be_changed_in_place() -> None:
    settings, _ = parse({"QUEUES": {"mail": {}}})
    for change in (
        lambda: setattr(settings, "THREADS", 8),
        lambda: settings.QUEUES.update(a=1),  # type: ignore[attr-defined]
        lambda: settings.RETENTION.clear(),  # type: ignore[attr-defined]
    ):
        with pytest.raises(AttributeError):
            change()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([], "DJANGO_JOBS must be a dict, not []."),
        ({"THREDS": 4}, "DJANGO_JOBS has an unknown key 'THREDS'. Did you mean 'THREADS'?"),
        ({"threads": 4}, "Did you mean 'THREADS'?"),
        ({7: 4}, "DJANGO_JOBS has an unknown key 7. The keys are: LEASE_SECONDS,"),
        ({"THREADS": "5"}, "DJANGO_JOBS['THREADS'] must be an integer from 1 to 1000, not '5'."),
        ({"THREADS": True}, "not True."),
        ({"THREADS": 4.0}, "not 4.0."),
        ({"THREADS": 0}, "not 0."),
        ({"LEASE_SECONDS": 0.5}, "must be a number of seconds from 1 to 315360000, not 0.5."),
        ({"LEASE_SECONDS": float("nan")}, "not nan."),
        ({"LEASE_SECONDS": float("inf")}, "not inf."),
        ({"LEASE_SECONDS": None}, "not None."),
        ({"TIMEOUT_SECONDS": 0}, "or None, not 0."),
        ({"SHELL_JOBS": 1}, "must be True or False, not 1."),
        ({"PRIORITY": 11}, "from 1 to 10, not 11."),
        ({"MAX_RETRIES": -1}, "not -1."),
        ({"REDACT": "password"}, "must be a list or tuple of strings, not 'password'."),
        ({"REDACT": ["a", 1]}, "must be a list or tuple of strings"),
        ({"RETENTION": 7}, "DJANGO_JOBS['RETENTION'] must be a dict, not 7."),
        ({"RETENTION": {"complete": 7}}, "Did you mean 'completed'?"),
        ({"RETENTION": {"dead": -1}}, "['dead'] must be a number of days from 0 to 36500, or None, not -1."),
        ({"QUEUES": ["mail"]}, "DJANGO_JOBS['QUEUES'] must be a dict"),
        ({"QUEUES": {"a;drop": {}}}, "queue 'a;drop': use letters, digits and _ - . :"),
        ({"QUEUES": {"mail": 4}}, "DJANGO_JOBS['QUEUES']['mail'] must be a dict, not 4."),
        ({"QUEUES": {"mail": {"MAX_WORKERS": 4}}}, "has an unknown key 'MAX_WORKERS'. Did you mean 'max_workers'?"),
        ({"QUEUES": {"mail": {"max_workers": "4"}}}, "DJANGO_JOBS['QUEUES']['mail']['max_workers'] must be an integer"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_mend(raw: Any, said: str) -> None:
    assert said in complaint(raw)


def test_a_setting_with_mistakes_is_refused_with_all_of_them() -> None:
    raw = {"THREADS": 0, "NOTFY": True, "RETENTION": {"dead": "x"}}
    with override_settings(DJANGO_JOBS=raw), pytest.raises(ImproperlyConfigured) as caught:
        get_settings()
    assert all(word in str(caught.value) for word in ("'THREADS'", "'NOTIFY'", "'dead'"))


def test_a_changed_setting_is_read_anew_and_an_unchanged_one_is_not() -> None:
    before = get_settings()
    assert get_settings() is before
    with override_settings(DJANGO_JOBS={"THREADS": 9}):
        assert get_settings().THREADS == 9
    assert get_settings() == before
    kept = get_settings()
    with override_settings(DEBUG=True):
        assert get_settings() is kept


def ids(messages: list[Any]) -> list[str]:
    assert all(message.hint for message in messages)
    return [message.id for message in messages]


def test_checks_report_each_mistake_of_the_setting_with_a_hint() -> None:
    assert checks.check_settings() == []
    with override_settings(DJANGO_JOBS={"THREADS": 0, "NOTFY": True, "QUEUES": []}):
        assert ids(checks.check_settings()) == ["django_jobs.E003", "django_jobs.E002", "django_jobs.E001"]


def test_a_site_without_time_zones_is_refused() -> None:
    assert checks.check_use_tz() == []
    with override_settings(USE_TZ=False):
        assert ids(checks.check_use_tz()) == ["django_jobs.E004"]


class ElsewhereRouter:
    def db_for_write(self, model: type, **hints: Any) -> str:
        return "elsewhere"


@pytest.mark.parametrize(("zone", "found"), [(None, []), ("UTC", []), ("Europe/Berlin", ["django_jobs.E005"])])
def test_the_database_that_holds_the_jobs_must_keep_utc(
    zone: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = {"default": {"TIME_ZONE": "Asia/Tokyo"}, "elsewhere": {"TIME_ZONE": zone}}
    monkeypatch.setattr(checks, "settings", SimpleNamespace(DATABASES=databases))
    monkeypatch.setattr(connections, "router", ElsewhereRouter())
    assert ids(checks.check_database_time_zone()) == found


@pytest.mark.parametrize("value", ["10m", "600s", 600, 600.0])
def test_an_ageing_is_given_in_seconds_or_with_a_unit(value: Any) -> None:
    found, problems = parse({"QUEUES": {"mail": {"ageing": value}}})
    assert (found.QUEUES["mail"].ageing, problems) == (600.0, [])


@pytest.mark.parametrize(
    "value", ["10", "fast", "0m", "-1m", "1.5h", "10 m", "10w", 0, -5, True, float("nan"), "9999999d"]
)
def test_an_ageing_that_is_no_span_is_refused(value: Any) -> None:
    _, (problem,) = parse({"QUEUES": {"mail": {"ageing": value}}})
    assert "ageing" in problem.message
    assert '"10m"' in problem.message
