"""Numbers are written for people in text only: addresses, forms, attributes, pictures and JSON are for machines."""

import io
import json
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.test import Client, override_settings
from django.urls import include, path
from django.utils import translation

from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.operations import move_operations
from django_jobs.models import DeadLetter, Job, JobDependency, Schedule, ScheduleTick
from testproject.urls import urlpatterns as site
from tests.support.console import ROOT, pages, send_every_form, tags_of
from tests.support.factories import (
    AttemptFactory,
    DeadLetterFactory,
    JobDependencyFactory,
    JobFactory,
    QueueFactory,
    WorkerProcessFactory,
)
from tests.support.staff import operator
from tests.support.workflows import add_step

urlpatterns = [*site, path("jobs/", include("django_jobs.urls"))]
# On one database: a page writes its numbers alike whatever database they come from.
pytestmark = [pytest.mark.django_db, pytest.mark.databases("sqlite"), pytest.mark.urls(__name__)]

FOR_PEOPLE = {"aria-label", "title", "alt", "placeholder", "content"}
GROUPED = re.compile(r"\d[.,\u2019'\u066c\u00a0\u202f]\d{3}(?!\d)")
MANY = 1_234


@pytest.fixture(
    params=[
        pytest.param(("de", 3, "1.23"), marks=pytest.mark.slow),
        ("en-in", (3, 2, 0), "1,23"),
        pytest.param(("ar", 3, "1.23"), marks=pytest.mark.slow),
        pytest.param(("fr", 3, "1\u00a023"), marks=pytest.mark.slow),
    ],
    ids=lambda one: one[0],
)
def language(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Speak a language that groups digits; give it, and how it begins to write 1234 and 1236."""
    code, grouping, written = request.param
    with (
        override_settings(LANGUAGE_CODE=code, USE_THOUSAND_SEPARATOR=True, NUMBER_GROUPING=grouping),
        translation.override(code),
    ):
        yield code, written


@pytest.fixture
def rows() -> None:
    """Write rows of each kind and state, with keys and counts of four digits and more."""
    now = database_now()
    times = {"created_at": now - timedelta(minutes=1), "started_at": now - timedelta(seconds=50), "finished_at": now}
    for number, status in enumerate(("pending", "scheduled", "dead", "failed", "cancelled"), 123_450):
        JobFactory(id=str(number), status=status, retry_count=2_345, max_retries=3_456, timeout_seconds=4_567)
    add_step(
        Job.objects.get(pk="123451"), "approval", kind="event", ended_at=None, event_name="approved", event_key="1234"
    )
    JobFactory(
        id="4321", status="running", progress=0.5, progress_message="1234 of 5678", worker_id="1234", crash_count=1_234
    )
    completed = JobFactory(id="5432", status="completed", **times)
    dead = JobFactory(id="6543", status="dead", payload={"amount": 1_234_567}, retry_count=1_234)
    for number in (1_234, 2_345):
        AttemptFactory(id=number, job=dead, number=number)
    DeadLetterFactory(id=1_234, job=dead)
    DeadLetterFactory(id=2_345_678, fingerprint="")
    schedule = Schedule.objects.create(
        id=3_456, name="1234", job_type="effects.record", kind="interval", interval_seconds=12_345, enabled=True,
        next_run_at=now + timedelta(hours=1),
    )  # fmt: skip
    ScheduleTick.objects.create(id=4_567, schedule=schedule, due_at=now, job=completed)
    Schedule.objects.create(
        id=1_111_222, name="off", job_type="effects.record", kind="interval", interval_seconds=9_999, enabled=False
    )
    QueueFactory(name="9876", paused_at=now)
    WorkerProcessFactory(id="1234", threads=MANY)
    center = JobFactory(id="8765", pending_dependencies=MANY)
    others = JobFactory.create_batch(40, status="running", started_at=now)  # a picture more than 1000 units high
    JobDependency.objects.bulk_create(JobDependency(job=center, depends_on=job) for job in others)
    JobDependencyFactory(job=JobFactory(id="9999"), depends_on=center)


def write_many() -> None:
    """Write so many jobs, and as many dead letters, that their counts have four digits."""
    Job.objects.bulk_create(JobFactory.build(id=f"r{n}", queue="9876", status="running") for n in range(MANY))
    dead = Job.objects.bulk_create(JobFactory.build(id=f"d{n}", status="dead", error="e") for n in range(MANY))
    DeadLetter.objects.bulk_create(DeadLetterFactory.build(id=5_000 + n, job=job) for n, job in enumerate(dead))


def grouped(text: str) -> list[tuple[str, str, str | None]]:
    """Return the attributes of a page that programs read and that have a number with grouped digits."""
    return [
        (tag, name, value)
        for tag, attributes in tags_of(text)
        for name, value in attributes.items()
        if name not in FOR_PEOPLE and GROUPED.search(value or "")
        if tag != "path" or attributes.get("class")  # the others are the admin's icons
    ]


@pytest.mark.usefixtures("rows")
@pytest.mark.slow
def test_every_form_of_every_page_works_on_rows_with_keys_of_four_digits(language: tuple[str, str]) -> None:
    client = operator()
    sent = {url: send_every_form(client, url) for url in [*pages(rows=12)] if "/history/" not in url}
    for model in (DeadLetter, Schedule):
        for row in model._default_manager.all():
            assert sent[f"{ROOT}{model._meta.model_name}/{row.pk}/change/"] >= 2, (
                "replay and acknowledge, run and switch"
            )
    assert sum(sent.values()) > 50


@pytest.mark.usefixtures("rows", "language")
@pytest.mark.slow
def test_no_page_has_grouped_digits_where_a_program_reads() -> None:
    client, links = operator(), set()
    addresses = [*pages(rows=12)]
    assert {f"{ROOT}deadletter/1234/change/", f"{ROOT}job/123450/change/"} <= {*addresses}
    for url in addresses:
        answer = client.get(url)
        assert answer.status_code == 200, url
        assert grouped(answer.text) == [], url
        links |= {attributes.get("href") or "" for tag, attributes in tags_of(answer.text) if tag == "a"}
    for link in sorted(link for link in links if link.startswith(ROOT)):
        assert client.get(link, follow=True).status_code == 200, link  # a process may be gone from where a job names it


@pytest.mark.usefixtures("rows")
@pytest.mark.slow
def test_a_large_site_counts_in_the_readers_way_and_links_in_the_machines(language: tuple[str, str]) -> None:
    write_many()
    client, (_, written) = operator(), language
    for url in (f"{ROOT}overview/", f"{ROOT}deadletter/causes/", f"{ROOT}queue/"):
        text = client.get(url).text
        assert written in text, url
        assert grouped(text) == [], url
    across = {"action": "acknowledge_selected", "select_across": "1", "index": "0", "_selected_action": "1234"}
    asked = client.post(f"{ROOT}deadletter/", across)
    assert grouped(asked.text) == []
    assert 'name="_selected_action" value="1234"' in asked.text
    answer = client.post(f"{ROOT}deadletter/", {**across, "confirmed": "1"}, follow=True)
    assert answer.status_code == 200
    assert written in answer.text, "the page of the operation"
    while move_operations() is not None:
        pass
    assert not DeadLetter.objects.open().exists()


@pytest.mark.usefixtures("rows", "language")
@pytest.mark.slow
def test_pages_of_a_list_are_turned_by_keys_of_four_digits() -> None:
    write_many()
    client, seen = operator(), []
    answer = client.get(f"{ROOT}deadletter/")
    for _ in range(3):
        rows = answer.context["cl"]
        seen += [row.pk for row in rows.result_list]
        answer = client.get(f"{ROOT}deadletter/{rows.older_url}")
    assert seen == list(DeadLetter.objects.order_by("-pk").values_list("pk", flat=True)[:150])


@pytest.mark.usefixtures("rows")
@pytest.mark.slow
def test_probes_and_commands_answer_with_numbers_of_json(language: tuple[str, str]) -> None:
    write_many()
    with override_settings(
        MIDDLEWARE=["django.middleware.locale.LocaleMiddleware"], LANGUAGES=[(language[0], "spoken")]
    ):
        answer = Client(headers={"accept-language": language[0]})
        health = answer.get("/jobs/health/").json()
        metrics = answer.get("/jobs/metrics").text
    assert health["dead_letters"] == MANY + 2
    assert f"django_jobs_dead_letters_open {MANY + 2}.0" in metrics
    out = io.StringIO()
    call_command("jobs", "stats", "--json", stdout=out)
    assert json.loads(out.getvalue())["dead_letters"] == MANY + 2
