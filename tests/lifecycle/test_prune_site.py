"""Prune where a model of the site refers to jobs: what each `on_delete` says is done, and one row holds up no other job."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models
from django.test import override_settings

import django_jobs
from django_jobs.lifecycle.delete import delete_finished
from django_jobs.lifecycle.prune import prune
from django_jobs.models import Attempt, Job
from django_jobs.testing import advance_time, make_job
from tests.support.factories import AttemptFactory

pytestmark = pytest.mark.django_db(transaction=True)
EVERYTHING = override_settings(DJANGO_JOBS={"RETENTION": {"completed": 0, "cancelled": 0, "failed": 0, "dead": 0}})
Site = Callable[[Any], Any]


@pytest.fixture
def site() -> Iterator[Site]:
    """Give a function that makes a model of the site, with a foreign key to jobs; it is gone after the test."""
    made: list[Any] = []

    def make(on_delete: Any) -> Any:
        fields: dict[str, Any] = {
            "__module__": "tests.support.effects.models",
            "Meta": type("Meta", (), {"app_label": "effects"}),
            "job": models.ForeignKey(Job, on_delete=on_delete, null=True, related_name="+"),
        }
        model = type("Invoice", (models.Model,), fields)
        made.append(model)
        with connection.schema_editor() as editor:
            editor.create_model(model)
        return model

    try:
        yield make
    finally:
        for model in made:
            with connection.schema_editor() as editor:
                editor.delete_model(model)
            del apps.all_models["effects"]["invoice"]
        apps.clear_cache()


def finished(number: int) -> list[Job]:
    """Make completed jobs, past their retention, with an attempt each."""
    made = [make_job("effects.record", status="completed") for _ in range(number)]
    for job in made:
        AttemptFactory(job=job)
    advance_time(timedelta(seconds=1))
    return made


@EVERYTHING
@pytest.mark.parametrize(("on_delete", "left"), [(models.CASCADE, []), (models.SET_NULL, [None])])
def test_a_row_of_the_site_goes_with_its_job_or_forgets_it(site: Site, on_delete: Any, left: list[Any]) -> None:
    invoice = site(on_delete)
    old, live = finished(2)[0], django_jobs.submit("effects.record")
    invoice.objects.create(job=old)
    kept = invoice.objects.create(job=live)
    assert prune() == 2
    assert [*Job.objects.values_list("pk", flat=True)] == [live.pk]
    assert not Attempt.objects.exists()
    assert [*invoice.objects.exclude(pk=kept.pk).values_list("job_id", flat=True)] == left
    kept.refresh_from_db()
    assert kept.job_id == live.pk


@EVERYTHING
@pytest.mark.parametrize("on_delete", [models.PROTECT, models.RESTRICT])
def test_a_row_that_protects_its_job_keeps_that_and_no_other(site: Site, on_delete: Any) -> None:
    invoice = site(on_delete)
    first, second, _ = finished(3)
    row = invoice.objects.create(job=second)
    assert delete_finished([first.pk, second.pk]).done == [first.pk]
    assert prune() == 1
    assert [*Job.objects.values_list("pk", flat=True)] == [second.pk]
    assert [*Attempt.objects.values_list("job_id", flat=True)] == [second.pk]
    row.delete()
    assert (prune(), Job.objects.count()) == (1, 0)
