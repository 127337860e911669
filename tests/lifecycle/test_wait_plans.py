"""Thousands of jobs that wait and of events that are kept: an idle worker asks once, an emit and a wait read what is theirs."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from django_jobs.db.dialects.words import StepRow
from django_jobs.due import look_ahead
from django_jobs.lifecycle import leases, steps
from django_jobs.lifecycle.events import deliver, emit, take
from django_jobs.lifecycle.promote import promote
from django_jobs.models import Event, Job, JobStep
from tests.support.factories import JobFactory
from tests.support.workflows import add_step

from .test_plans import copies, plan_of, recorded

pytestmark = pytest.mark.django_db(transaction=True)
NUMBER = 3_000
WHOLE = ("Seq Scan", "SCAN django_jobs", " ALL ")


@pytest.fixture(autouse=True)
def full_tables() -> None:
    leases.register("p", queues=[], threads=1)
    now, later = timezone.now(), timezone.now() + timedelta(days=36_525)
    waiting = [*copies(JobFactory.build(status="scheduled", available_at=later), NUMBER)]
    Job.objects.bulk_create(waiting, batch_size=500)
    names = {"name": "go", "kind": "event", "event_name": "go", "position": 1, "started_at": now}
    JobStep.objects.bulk_create(
        (JobStep(job=job, event_key=f"key:{place}", **names) for place, job in enumerate(waiting)), batch_size=500
    )
    kept = {"name": "go", "created_at": now, "expires_at": later, "delivered_at": now}
    Event.objects.bulk_create((Event(key=f"kept:{place}", **kept) for place in range(NUMBER)), batch_size=500)
    with connection.cursor() as cursor:
        for table in ("job", "jobstep", "event"):
            name = f"django_jobs_{table}"
            cursor.execute(f"ANALYZE TABLE {name}" if connection.vendor == "mysql" else f"ANALYZE {name}")
            if connection.vendor == "mysql":
                cursor.fetchall()


@pytest.mark.slow
def test_jobs_that_wait_cost_an_idle_worker_one_look_along_the_indexes() -> None:
    with recorded() as statements:
        ahead = look_ahead("p")
    assert ahead.due is not None
    assert ahead.due > 1e9
    assert not ahead.has_events
    ((sql, params),) = statements
    plan = plan_of(sql, params)
    assert "django_jobs_job_due" in plan, plan
    assert "django_jobs_event_new" in plan, plan
    assert promote() == []


@pytest.mark.slow
def test_an_emit_reads_the_waits_for_its_event_alone() -> None:
    with recorded() as statements:
        emit("go", key="key:7")
    assert Job.objects.filter(status="pending").count() == 1
    about_waits = (one for one in statements if "django_jobs_jobstep" in one[0] and "JOIN" in one[0])
    look = next(about_waits)
    plan = plan_of(*look)
    assert "django_jobs_step_waits" in plan, plan
    assert not any(whole in plan for whole in WHOLE), plan
    assert deliver() == 1


@pytest.mark.slow
def test_a_wait_reads_the_events_of_its_name_and_key_alone() -> None:
    job = JobFactory(status="running", worker_id="p", fence=3, started_at=timezone.now())
    step = add_step(job, "go", kind="event", ended_at=None, event_name="go", event_key="kept:7")
    with recorded() as statements:
        answer = take(job.pk, 3, step.pk)
    assert answer is not None
    assert answer.is_over
    (look,) = [one for one in statements if 'FROM "django_jobs_event"' in one[0].replace("`", '"')]
    plan = plan_of(*look)
    assert "django_jobs_event_called" in plan, plan


@pytest.mark.slow
def test_a_record_reads_its_job_by_key_however_many_jobs_run() -> None:
    job = JobFactory(status="running", worker_id="p", fence=3, started_at=timezone.now())
    with recorded() as statements:
        step_id = steps.record(job.pk, 3, StepRow(1, "one", "step"))
        assert step_id is not None
        assert steps.change(job.pk, 3, step_id, has_ended=True)
    for look in (one for one in statements if "fence" in one[0]):
        plan = plan_of(*look)
        assert "django_jobs_job_held" not in plan, plan
        assert not any(whole in plan for whole in WHOLE), plan
