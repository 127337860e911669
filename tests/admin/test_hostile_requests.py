"""Requests that no page of the console makes: any text as a parameter, a key or a field. Each gets an answer, and no crash.

`-m load` sends thousands.
"""

from typing import Any
from urllib.parse import quote

import pytest
from django.http import QueryDict
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_jobs.models import Batch, DeadLetter, Job, JobStatus, Operation, Queue, Schedule, WorkerProcess
from tests.support.console import LISTS, ROOT
from tests.support.edits import fill
from tests.support.staff import operator

pytestmark = pytest.mark.django_db

NASTY = (
    "", "0", "-1", "1", "abc", str(2**63), str(2**70), "9" * 5_000, "1e400", "nan", "-inf", "\0", "a\0b", "\ud800", "é" * 300,
    "x" * 70_000, "'", '"', "%", "%s", "_", "\\", "..", "../..", "//", "<b>", "null", "[]", "{}", '{"a": NaN}', "[" * 2_000,
    "0001-01-01", "9999-12-31", "9999-12-31T23:59:59+14:00", "2024-13-45", "12:99", "٣", "½", "1_000", " 1 ", "1,5", "True",
    "all", "seen", "pending", "dead", "1.2.3", "-id", "id__in", "a:b", 'payload.a:"b"', "job:", "*", "default",
    "effects.record",
)  # fmt: skip
PARAMETERS = (
    "p", "q", "o", "e", "all", "older", "newer", "sort", "scope", "status", "queue", "job_type", "worker_id", "age",
    "schedule",
    "batch", "state", "reason__exact", "fingerprint", "user", "kind", "key", "older_than", "older_than", "database", "_popup",
    "_to_field", "_facets", "_changelist_filters", "id", "id__in", "pk__lt", "payload", "payload__a", "payload__contains",
    "job__payload", "created_at__gte", "created_at__year", "job__worker_id__regex", "limit_key", "site", "nobody", "",
)  # fmt: skip
FIELDS = (
    "action", "_selected_action", "select_across", "index", "confirmed", "back", "per_second", "priority", "queue", "note",
    "payload", "switch", "limit", "concurrency", "rate", "filters", "from_start", "muted_until", "mute", "name", "job_type",
    "kind",
    "cron", "interval", "interval_seconds", "run_at", "run_at_0", "run_at_1", "timezone", "max_retries", "timeout_seconds",
    "delay",
    "scheduled_at", "scheduled_at_0", "unique_key", "metadata", "grace_seconds", "jitter_seconds", "overlap", "catch_up",
    "event",
)  # fmt: skip
ACTIONS = (
    "replay_selected", "cancel_selected", "acknowledge_selected", "run_selected_now", "change_selected", "delete_selected",
    "discard_selected", "send_event_selected", "stop_selected", "enable_selected", "disable_selected", "pause_selected",
    "resume_selected",
)  # fmt: skip
MODELS = (Job, DeadLetter, Schedule, Batch, WorkerProcess, Operation, Queue)

text = st.sampled_from(NASTY) | st.text(max_size=50)
queries = st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=10), text, max_size=4)
forms = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ACTIONS) | text, max_size=6)
lists = st.sampled_from(LISTS)
settled: Any = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow], "deadline": None}


def _keys() -> list[str]:
    """Return keys of rows that are there, and of none."""
    return [str(row.pk) for model in MODELS for row in model.objects.all()[:2]] + list(NASTY)


def _addresses(number: int, key: str) -> list[str]:
    there = quote(key, safe="", errors="surrogatepass")
    name = MODELS[number % len(MODELS)]._meta.model_name
    return [
        f"{ROOT}{name}/{there}/change/", f"{ROOT}{name}/{there}/history/", f"{ROOT}{name}/{there}/delete/",
        f"{ROOT}{name}/{there}/",
        f"{ROOT}job/_types/{there}/", f"{ROOT}job/_types/{there}/new/", f"{ROOT}schedule/{there}/edit/",
        f"{ROOT}deadletter/causes/{there}/", f"{ROOT}deadletter/causes/{there}/note/",
        f"{ROOT}deadletter/{there}/replay-edited/",
        f"{ROOT}operation/{there}/switch/", f"{ROOT}limit/set/", f"{ROOT}queue/switch/", f"{ROOT}overview/",
        f"{ROOT}alert/test/",
        f"{ROOT}schedule/add/", f"{ROOT}job/add/",
    ]  # fmt: skip


def _encoded(given: dict[str, str]) -> str:
    return "&".join(
        f"{quote(name, errors='surrogatepass')}={quote(value, errors='surrogatepass')}" for name, value in given.items()
    )


def _ask(client: Client, url: str, given: dict[str, str]) -> None:
    answer = client.get(f"{url}?{_encoded(given)}")  # what a view raises comes out here
    assert answer.status_code < 500, (url, given)


def _post(client: Client, url: str, given: dict[str, Any]) -> None:
    answer = client.generic("POST", url, _encoded(given), content_type="application/x-www-form-urlencoded")
    assert answer.status_code < 500, (url, given)


@pytest.fixture
def client() -> Client:
    fill()
    return operator()


def _send(client: Client, number: int, name: str, key: str, query: dict[str, str], form: dict[str, str]) -> None:
    _ask(client, f"{ROOT}{name}/", query)
    _post(client, f"{ROOT}{name}/?{_encoded(query)}", form)
    for url in _addresses(number, key):
        _ask(client, url, query)
        _post(client, url, form)


requests = {"number": st.integers(0, 6), "name": lists, "key": text, "query": queries, "form": forms}


@settings(max_examples=15, **settled)
@given(**requests)
@pytest.mark.slow
def test_any_request_is_answered(client: Client, **request: Any) -> None:
    _send(client, **request)


@pytest.mark.load
@settings(max_examples=1_000, derandomize=False, **settled)
@given(**requests)
def test_thousands_of_requests_are_answered(client: Client, **request: Any) -> None:
    _send(client, **request)


@pytest.mark.load
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_each_parameter_of_each_list_takes_any_text(client: Client, parameter: str) -> None:
    for name in LISTS:
        for value in NASTY:
            _ask(client, f"{ROOT}{name}/", {parameter: value})


@pytest.mark.load
@pytest.mark.parametrize("key", NASTY)
def test_each_page_of_a_row_takes_any_key(client: Client, key: str) -> None:
    for number in range(len(MODELS)):
        for url in _addresses(number, key):
            _ask(client, url, {})
            _post(client, url, {})


@pytest.mark.load
@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_takes_any_row_and_any_field(client: Client, action: str) -> None:
    for model in MODELS:
        url = f"{ROOT}{model._meta.model_name}/"
        for key in _keys():
            given = {
                "action": action,
                "_selected_action": key,
                "index": "0",
                "confirmed": "1",
                "note": key,
                "per_second": key,
            }
            _post(client, url, given)
            _post(
                client,
                f"{url}?status={quote(key, errors='surrogatepass')}",
                {**given, "select_across": "1", "priority": key, "queue": key},
            )


def test_a_form_takes_fields_that_stand_there_twice(client: Client) -> None:
    data = QueryDict(mutable=True)
    data.setlist("_selected_action", ["ready", "ready", "nobody", "\0"])
    data["action"] = "cancel_selected"
    assert (
        client.generic("POST", f"{ROOT}job/", data.urlencode(), "application/x-www-form-urlencoded").status_code < 500
    )
    assert Job.objects.get(pk="ready").status in JobStatus.values


@pytest.mark.parametrize("page", ["change", "history", "delete"])
def test_no_row_has_a_key_with_nul(client: Client, page: str) -> None:
    """PostgreSQL refuses to look for such a queue."""
    for model in MODELS:
        _ask(client, f"{ROOT}{model._meta.model_name}/a%00b/{page}/", {})


@pytest.mark.parametrize("key", ["\0", "abc", "", str(2**70), "-1", "x" * 300])
def test_what_is_no_rows_key_is_not_selected(client: Client, key: str) -> None:
    """A dead letter's key is a number, of which a database takes some."""
    for model in (Job, DeadLetter):
        given = {"action": "replay_selected", "_selected_action": key, "index": "0"}
        _post(client, f"{ROOT}{model._meta.model_name}/", given)
        _post(client, f"{ROOT}{model._meta.model_name}/", {**given, "select_across": "1"})
