"""The form of a new job: a field for each argument of the handler, its type and default; who may, and what is refused."""

from datetime import date
from typing import Any

import pytest
from django.contrib.admin.models import ADDITION, LogEntry

from django_jobs import job
from django_jobs.handlers import registry
from django_jobs.models import Job
from tests.support.factories import JobFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

TYPES = "/admin/django_jobs/job/_types/"
NEW = f"{TYPES}shop.new/new/"


@pytest.fixture(autouse=True)
def _handler() -> Any:
    """Register a handler with arguments of many kinds."""

    def new(account: int, name: str = "Ada", loud: bool = False, when: date | None = None, tags=("a",), size=3):
        """Do it."""

    job("shop.new", queue="mail", priority=7)(new)
    yield
    for name in ("shop.new", "shop.whole", "shop.rest", "shop.none"):
        registry.forget(name)


def make(fields: dict[str, str], url: str = NEW) -> Any:
    return operator().post(url, {f"argument-{name}": value for name, value in fields.items()}, follow=True)


def test_a_job_is_made_with_values_of_the_types_that_the_handler_names() -> None:
    client = operator()
    page = client.get(f"{TYPES}shop.new/")
    assert f'href="{NEW}"' in page.text
    text = client.get(NEW).text
    assert 'type="number" name="argument-account"' in text
    assert 'value="Ada"' in text
    assert 'type="checkbox" name="argument-loud"' in text
    fields = {"argument-account": "7", "argument-name": " Eve ", "argument-loud": "on", "argument-tags": '["b"]'}
    options = {"priority": "9", "delay": "60", "unique_key": "once"}
    answer = client.post(NEW, {**fields, **options, "argument-size": "3"}, follow=True)
    made = Job.objects.get()
    assert made.payload == {"account": 7, "name": " Eve ", "loud": True, "tags": ["b"]}
    assert (made.job_type, made.queue, made.priority, made.status) == ("shop.new", "mail", 9, "scheduled")
    assert made.unique_key == "once"
    assert f"Made job {made.pk}." in answer.text
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (ADDITION, made.pk)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "required"),
        ({"account": "x"}, "whole number"),
        ({"account": "7", "tags": "{"}, "no JSON"),
        ({"account": "7", "tags": "[" * 100_000}, "no JSON"),
        ({"account": "7", "tags": "NaN"}, "payload.tags"),
        ({"account": "7", "tags": '"\\u0000"'}, "payload.tags"),
    ],
)
def test_a_job_that_cannot_be_is_refused_and_what_was_typed_is_kept(fields: dict[str, str], told: str) -> None:
    answer = make({**fields, "name": "Grace"})
    assert told in answer.text
    assert 'value="Grace"' in answer.text
    assert not Job.objects.exists()


def test_a_handler_that_takes_the_whole_payload_or_further_keys_gets_a_field_for_them() -> None:
    job("shop.whole")(lambda payload: None)
    job("shop.rest")(lambda account, **rest: None)
    job("shop.none")(lambda: None)
    client = operator()
    client.post(f"{TYPES}shop.whole/new/", {"payload": '{"a": [1]}'})
    client.post(f"{TYPES}shop.rest/new/", {"argument-account": '"x"', "payload": '{"b": 2}'})
    client.post(f"{TYPES}shop.none/new/", {})
    assert list(Job.objects.order_by("pk").values_list("payload", flat=True)) == [
        {"a": [1]}, {"account": "x", "b": 2}, {},
    ]  # fmt: skip
    assert "takes no payload" in client.get(f"{TYPES}shop.none/new/").text


@pytest.mark.parametrize("job_type", ["nobody.knows", "shell"])
def test_a_type_that_nobody_knows_here_and_commands_of_the_shell_have_no_form(job_type: str) -> None:
    JobFactory(job_type=job_type)
    client = operator()
    assert "/new/" not in client.get(f"{TYPES}{job_type}/").text
    assert client.post(f"{TYPES}{job_type}/new/", {"payload": "{}"}).status_code == 403


def test_making_a_job_takes_its_own_right() -> None:
    blind = browse(staff())
    assert "/new/" not in blind.get(f"{TYPES}shop.new/").text
    assert blind.get(NEW).status_code == 403
    assert blind.post(NEW, {"argument-account": "7"}).status_code == 403
    allowed = browse(staff("add_job", name="bob"))
    allowed.post(NEW, {"argument-account": "7"})
    assert Job.objects.get().payload == {"account": 7}
