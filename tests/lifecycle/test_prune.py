"""Prune: what is finished goes after its days, in small batches; what somebody may still need stays."""

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

import django_jobs
from django_jobs.lifecycle.prune import prune, prune_batch
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, JobLog, JobStatus, ScheduleTick
from django_jobs.queue import JobQueue, Scheduler
from django_jobs.testing import advance_time, drain, make_job, tick_schedules

pytestmark = pytest.mark.django_db
EVERYTHING = override_settings(DJANGO_JOBS={"RETENTION": {"completed": 0, "cancelled": 0, "failed": 0, "dead": 0}})
A_MOMENT = timedelta(seconds=1)


def ids() -> set[str]:
    return set(Job.objects.values_list("pk", flat=True))


def test_each_final_status_has_its_days() -> None:
    made = {status: make_job("effects.record", status=status).pk for status in JobStatus.values}
    DeadLetter.objects.get().acknowledge()
    for days, gone in ((6.9, set()), (0.2, {"completed", "cancelled"}), (22.8, set()), (0.2, {"failed", "dead"})):
        advance_time(timedelta(days=days))
        prune()
        made = {status: pk for status, pk in made.items() if status not in gone}
        assert ids() == set(made.values()), f"after {days} days more"
    assert set(made) == {"pending", "scheduled", "running"}


@override_settings(DJANGO_JOBS={"RETENTION": {"completed": 1, "cancelled": None, "failed": 0.5}})
def test_the_setting_is_honoured_and_none_means_for_ever() -> None:
    made = {status: make_job("effects.record", status=status).pk for status in ("completed", "cancelled", "failed")}
    advance_time(timedelta(hours=13))
    assert (prune(), ids()) == (1, {made["completed"], made["cancelled"]})
    advance_time(timedelta(hours=12))
    assert (prune(), ids()) == (1, {made["cancelled"]})
    advance_time(timedelta(days=3650))
    assert prune() == 0


@EVERYTHING
@pytest.mark.parametrize("close", ["acknowledge", "replay"])
def test_a_dead_job_stays_until_its_letter_is_closed(close: str) -> None:
    job = make_job("effects.record", status="dead")
    advance_time(timedelta(days=3650))
    assert prune() == 0
    getattr(DeadLetter.objects.get(), close)()
    if close == "replay":
        assert prune() == 0, "it waits to run again"
        drain()
        advance_time(A_MOMENT)
    assert (prune(), Job.objects.filter(pk=job.pk).exists()) == (1, False)
    assert DeadLetter.objects.count() == Attempt.objects.count() == 0


@EVERYTHING
def test_a_failed_job_with_an_open_letter_stays_too() -> None:
    make_job("effects.gone")
    drain(reraise=False)
    assert Job.objects.get().status == JobStatus.FAILED
    advance_time(A_MOMENT)
    assert prune() == 0
    DeadLetter.objects.get().acknowledge()
    assert prune() == 1


@EVERYTHING
def test_a_dependency_stays_while_a_live_job_may_ask_for_its_result() -> None:
    first = django_jobs.submit("effects.record")
    drain()
    second = django_jobs.submit("effects.record", depends_on=[first], delay=timedelta(hours=1))
    advance_time(A_MOMENT)
    assert prune() == 0
    advance_time(timedelta(hours=1))
    drain()
    advance_time(A_MOMENT)
    assert (prune(), ids(), JobDependency.objects.count()) == (2, set(), 0)
    assert not Job.objects.filter(pk=second.pk).exists()


@EVERYTHING
def test_attempts_ticks_and_logs_go_with_their_job() -> None:
    Scheduler().schedule_interval("minutely", "effects.flaky", 60, {"failures": 1})
    advance_time(timedelta(seconds=60))
    assert len(tick_schedules()) == 1
    drain(reraise=False)
    advance_time(timedelta(hours=1))
    drain()
    advance_time(A_MOMENT)
    JobLog.objects.create(job=Job.objects.get(), number=1, text="once")
    assert (Attempt.objects.count(), ScheduleTick.objects.count()) == (1, 1)
    assert prune() == 1
    assert (Attempt.objects.count(), ScheduleTick.objects.count(), JobLog.objects.count()) == (0, 0, 0)


@EVERYTHING
def test_a_batch_is_as_large_as_asked_and_takes_the_oldest() -> None:
    made = [make_job("effects.record", status="completed").pk for _ in range(5)]
    advance_time(A_MOMENT)
    assert (prune_batch(limit=2), ids()) == (2, set(made[2:]))
    assert (prune_batch(limit=2), prune_batch(limit=2), prune_batch(limit=2)) == (2, 1, 0)


@EVERYTHING
def test_what_stays_does_not_hide_what_goes() -> None:
    for _ in range(5):
        make_job("effects.record", status="dead")
    make_job("effects.record", status="completed")
    advance_time(A_MOMENT)
    assert prune_batch(limit=2) == 1, "the open letters before it are passed over"


@EVERYTHING
def test_a_batch_takes_a_handful_of_statements(django_assert_max_num_queries: object) -> None:
    for _ in range(20):
        make_job("effects.record", status="completed")
    advance_time(A_MOMENT)
    with django_assert_max_num_queries(15):  # type: ignore[operator]
        assert prune_batch() == 20


@EVERYTHING
def test_the_command_asks_first_and_tells_how_many() -> None:
    make_job("effects.record", status="completed")
    advance_time(A_MOMENT)
    with pytest.raises(CommandError, match="--yes"):
        call_command("jobs", "prune")
    assert Job.objects.count() == 1
    out = io.StringIO()
    call_command("jobs", "prune", "--yes", "--json", stdout=out)
    assert (json.loads(out.getvalue()), Job.objects.count()) == ({"deleted": 1}, 0)


@EVERYTHING
def test_cleanup_of_a_queue_prunes() -> None:
    make_job("effects.record", status="completed")
    advance_time(A_MOMENT)
    assert JobQueue().cleanup() == 1
