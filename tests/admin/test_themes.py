"""The console in the frame of whatever draws the admin: Django's own, or the theme that JOBS_TEST_THEME names.

`.ci/matrix` runs this file once with each of the themes. A theme takes the place of Django's templates, and may use
there whatever Django's own views give them; a name that a view of ours leaves out is an error on every page.
"""

from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import include, path
from django.utils import timezone

from django_jobs.lifecycle.operations import begin
from django_jobs.models import OperationKind, Schedule
from tests.support.console import LISTS, ROOT, pages, send_every_form
from tests.support.factories import (
    AttemptFactory,
    DeadLetterFactory,
    JobDependencyFactory,
    JobFactory,
    QueueFactory,
    WorkerProcessFactory,
)
from tests.support.staff import browse, operator, staff
from tests.support.workflows import add_step

urlpatterns = [path("admin/", admin.site.urls)]
if apps.is_installed("grappelli"):
    urlpatterns.append(path("grappelli/", include("grappelli.urls")))
# On one database: tests/admin/test_pages.py opens each page on every database.
pytestmark = [pytest.mark.django_db, pytest.mark.databases("sqlite"), pytest.mark.urls(__name__)]


@pytest.fixture(autouse=True)
def rows() -> None:
    """Write a row of each kind, so that each page has all of its parts."""
    dead = JobFactory(id="dead", status="dead", error="ValueError: no")
    AttemptFactory(job=dead)
    DeadLetterFactory(job=dead)
    waiting = JobFactory(id="waiting", status="scheduled")
    add_step(waiting, "approval", kind="event", ended_at=None, event_name="approved", event_key="7")
    JobDependencyFactory(job=JobFactory(id="last", pending_dependencies=1), depends_on=JobFactory(id="first"))
    JobFactory(id="now", status="running", progress=0.5)
    JobFactory(id="zz done", status="completed")
    begin(OperationKind.CANCEL, filters={"queue": "mail"})
    JobFactory.create_batch(60, queue="mail")  # more than a page of a list
    QueueFactory(name="mail", paused_at=timezone.now())
    WorkerProcessFactory(started_at=timezone.now())
    for number, enabled in enumerate((True, False)):
        Schedule.objects.create(
            name=f"s{number}", job_type="effects.record", kind="interval", interval_seconds=60, enabled=enabled,
            next_run_at=timezone.now(),
        )  # fmt: skip


def context_of(client: Any, url: str) -> set[str]:
    """Return the names that the template of a page is given by its view."""
    answer = client.get(url)
    assert answer.status_code == 200, url
    return set(answer.context_data)


def test_the_theme_asked_for_is_the_one_that_draws() -> None:
    page = operator().get(f"{ROOT}overview/")
    names = {template.origin.name for template in page.templates if template.name == "admin/base.html"}
    (theme,) = names
    assert f"/{settings.THEME or 'django/contrib/admin'}/templates/" in theme


@pytest.mark.slow
def test_every_page_answers_to_those_who_may_do_all_and_to_those_who_may_look() -> None:
    for client in (operator(), browse(staff())):
        for url in ["/admin/", ROOT, *pages(rows=8)]:
            answer = client.get(url)
            assert answer.status_code == 200, url
            assert "</html>" in answer.text, url


@pytest.mark.slow
def test_every_form_of_every_page_works() -> None:
    client = operator()
    sent = {url: send_every_form(client, url) for url in pages(rows=8) if "/history/" not in url}
    assert sent[f"{ROOT}job/dead/change/"] == 1
    assert sent[f"{ROOT}overview/"] == 2, "each queue is switched"
    assert sent[f"{ROOT}deadletter/causes/"] == 2
    assert sent[f"{ROOT}job/"] >= 4, "each action"


def test_every_page_leads_to_the_next_one() -> None:
    client = operator()
    assert "/history/" in client.get(f"{ROOT}job/dead/change/").text
    assert 'href="causes/"' in client.get(f"{ROOT}deadletter/").text
    assert f'href="{ROOT}deadletter/"' in client.get(f"{ROOT}deadletter/causes/").text
    jobs = client.get(f"{ROOT}job/")
    assert jobs.context["cl"].older_url.replace("&", "&amp;") in jobs.text
    assert 'name="q"' in jobs.text
    assert "status=dead" in jobs.text or 'value="dead"' in jobs.text, "the filters, as links or as a choice"


@pytest.mark.slow
def test_the_console_brings_its_style_and_its_script() -> None:
    client = operator()
    for url in pages():
        if "/history/" not in url:
            text = client.get(url).text
            assert "django_jobs/console.css" in text, url
            assert "django_jobs/console.js" in text, url


def test_a_row_page_does_not_give_its_frame_a_form_of_what_is_masked() -> None:
    page = browse(staff()).get(f"{ROOT}job/dead/change/")
    assert [*page.context["adminform"]] == []
    assert not page.context["adminform"].form.fields


@pytest.mark.slow
def test_pages_are_given_all_that_djangos_own_views_give_their_templates() -> None:
    client, group = operator(), Group.objects.create(name="staff")
    own_list, own_row = (
        context_of(client, "/admin/auth/group/"),
        context_of(client, f"/admin/auth/group/{group.pk}/change/"),
    )
    assert {"opts", "cl", "media", "available_apps", "is_nav_sidebar_enabled", "preserved_filters"} <= own_list
    assert {"adminform", "errors", "has_delete_permission", "inline_admin_formsets"} <= own_row
    for name in LISTS:
        assert own_list - context_of(client, f"{ROOT}{name}/") == set(), name
    for url in pages(rows=8):
        if url.endswith("/change/"):
            assert own_row - context_of(client, url) == set(), url
    confirmation = client.post(f"{ROOT}job/", {"action": "cancel_selected", "index": "0", "_selected_action": "last"})
    assert own_list - set(confirmation.context_data) == set()


def test_the_list_that_a_page_without_rows_gives_is_whole() -> None:
    client = operator()
    own = client.get("/admin/auth/group/").context["cl"]
    for name in ("overview", "queue", "deadletter/causes"):
        ours = client.get(f"{ROOT}{name}/?age=1h&anything=x&p=7").context["cl"]
        assert [attribute for attribute in vars(own) if not hasattr(ours, attribute)] == [], name
        assert (ours.result_count, [*ours.result_list], ours.filter_specs) == (0, [], [])
