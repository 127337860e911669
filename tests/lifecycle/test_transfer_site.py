"""Export and import of queues and schedules: their state goes with the jobs, all of it or nothing."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.models import Job, Queue, Schedule, ScheduleTick
from django_jobs.queue import JobQueue, Scheduler
from django_jobs.scheduling import spec
from django_jobs.scheduling.spec import declare
from django_jobs.scheduling.store import create_schedule, disable, sync_declared
from django_jobs.scheduling.ticks import run_schedule_now, tick
from django_jobs.transfer.exporting import all_jobs, export_dicts, export_file
from django_jobs.transfer.importing import import_dicts
from django_jobs.transfer.site_lines import _QUEUE, _SCHEDULE, COUNTS
from tests.support.commands import jobs, json_lines, refused
from tests.support.databases import VENDORS, created_database, new_url, why_unreachable
from tests.support.factories import JobFactory
from tests.support.transfers import delete_all, exported, imported, make_mixed_jobs, refusal

pytestmark = pytest.mark.django_db
LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_declared_schedules(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_declared", {})
    Schedule.objects.all().delete()


def make_site() -> None:
    """Write queues and schedules in every state."""
    pause("mail")
    pause("was.paused")
    resume("was.paused")
    Queue.objects.create(name="long", paused_at=LONG_AGO)
    scheduler = Scheduler("feeds")
    scheduler.schedule_interval(
        "poll", "effects.record", 3600, {"ß": ["日本", 2.5]}, overlap="skip", jitter_seconds=1.5
    )
    scheduler.schedule_cron(
        "night", "effects.record", "0 3 * * *", timezone="Europe/Berlin", catch_up="all", priority=9
    )
    create_schedule("party", "unknown.here", at=datetime(2100, 1, 1, tzinfo=UTC), handlers=None, queue="feeds")
    run_schedule_now("poll")
    disable("night")
    declare("code", "effects.record", every=60, metadata={"tenant": "a"}, max_retries=2, timeout_seconds=30.5)
    sync_declared()
    Schedule.objects.filter(name="code").update(next_run_at=database_now() - timedelta(seconds=5))
    tick()
    due_at = database_now() - timedelta(seconds=1)
    Schedule.objects.create(
        name="broken", job_type="effects.record", kind="cron", cron="61 * * * *", next_run_at=due_at
    )
    tick()
    assert Schedule.objects.get(name="broken").last_error


def delete_site() -> None:
    delete_all()
    Schedule.objects.all().delete()
    Queue.objects.all().delete()


def state() -> dict[str, Any]:
    """Return what an operator sees of queues and schedules."""
    names = ("enabled", "next_run_at", "last_run_at", "last_error", "declared", "site")
    return {
        "queues": dict(Queue.objects.values_list("name", "paused_at")),
        "schedules": {row.pop("name"): row for row in Schedule.objects.values("name", *names)},
        "ticks": set(ScheduleTick.objects.values_list("schedule__name", "due_at", "job_id")),
    }


def test_queues_and_schedules_arrive_with_their_state() -> None:
    make_site()
    make_mixed_jobs(12)
    first, before = exported(), state()
    delete_site()
    done = imported(first)
    assert (done.written, done.queues, done.schedules) == (14, 3, 5)
    assert state() == before
    assert exported() == first
    assert done.unknown_types == ("type.0", "type.1", "type.2", "type.3", "type.4", "unknown.here")


def test_a_paused_queue_with_its_jobs_arrives_paused() -> None:
    queue = JobQueue("mail")
    queue.register_handler("t", lambda payload: None)
    ids = [queue.enqueue("t") for _ in range(20)]
    pause("mail")
    data = exported()
    delete_site()
    imported(data)
    assert Queue.objects.paused_names() == {"mail"}
    assert queue.size == len(ids)


def test_a_second_import_changes_nothing() -> None:
    make_site()
    first = exported()
    done = imported(first)
    assert (done.written, done.queues, done.schedules) == (0, 0, 0)
    assert (done.known, done.queues_known, done.schedules_known) == (2, 3, 5)
    assert exported() == first


def test_a_pause_on_either_side_holds() -> None:
    Queue.objects.create(name="a", paused_at=LONG_AGO)
    Queue.objects.create(name="b")
    Queue.objects.create(name="c", paused_at=LONG_AGO)
    data = exported()
    Queue.objects.filter(name="a").update(paused_at=None)
    pause("b")
    pause("c")
    here = dict(Queue.objects.values_list("name", "paused_at"))
    done = imported(data)
    assert (done.queues, done.queues_known) == (1, 2)
    assert dict(Queue.objects.values_list("name", "paused_at")) == {**here, "a": LONG_AGO}


def test_a_schedule_that_overlaps_nothing_still_knows_its_last_job() -> None:
    Scheduler().schedule_interval("poll", "effects.record", 3600, overlap="skip")
    run_schedule_now("poll")
    data = exported()
    delete_site()
    imported(data)
    Schedule.objects.update(next_run_at=database_now() - timedelta(seconds=1))
    tick()
    assert Job.objects.count() == 1, "the job of the last tick is not finished"


def test_what_migrate_has_just_declared_takes_the_state_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ran", "stopped"):
        declare(name, "effects.record", every=3600)
    sync_declared()
    disable("stopped")
    Schedule.objects.filter(name="ran").update(next_run_at=timezone.now() - timedelta(seconds=1))
    tick()
    data, before = exported(), state()
    delete_site()
    declare("new", "effects.record", every=3600)
    sync_declared()  # as `migrate` does in the new database
    done = imported(data)
    assert (done.schedules, done.schedules_known) == (2, 0)
    after = state()
    assert after["schedules"].pop("new")["enabled"]
    assert after == before


def test_a_schedule_that_is_here_with_other_content_is_refused() -> None:
    make_site()
    data = exported()
    delete_all()
    Queue.objects.all().delete()
    Schedule.objects.filter(name="poll").update(payload={"other": 1})
    Schedule.objects.filter(name="code").update(enabled=False, next_run_at=None)
    lines = [json.loads(line) for line in data.splitlines()]
    places = {line["schedule"]["name"]: number for number, line in enumerate(lines, 1) if "schedule" in line}
    problems = refusal(lambda: imported(data))
    for name in ("poll", "code"):  # the declared one has ticked here
        assert f"jobs.jsonl:{places[name]}: schedule {name!r} exists already, with other content" in problems
    assert not Job.objects.exists()
    assert not Queue.objects.exists()


def test_a_bad_job_keeps_queues_and_schedules_out_too() -> None:
    make_site()
    data = exported()
    delete_site()
    problems = refusal(lambda: imported(data.replace(b'"status":"pending"', b'"status":"lost"', 1)))
    assert "status='lost'" in problems[0]
    assert state() == {"queues": {}, "schedules": {}, "ticks": set()}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"name":"mail"', '"name":"ma il"', "jobs.jsonl:3: queue.name: queue 'ma il'"),
        ('"name":"mail"', '"name":"long"', "jobs.jsonl:3: queue 'long' is taken by jobs.jsonl:2"),
        ('"name":"mail"', '"nam":"mail"', "jobs.jsonl:3: queue.'nam': this key is unknown. Did you mean 'name'?"),
        ('"name":"mail"', '"name":7', "jobs.jsonl:3: queue.name: "),
        ('{"queue":{"name":"mail"', '{"queues":{"name":"mail"', 'jobs.jsonl:3: a line {"queue": …} is due here'),
        ('"paused_at":null', '"paused_at":"now"', "jobs.jsonl:4: queue.paused_at: give Unix seconds"),
        ('"cron":"0 3 * * *"', '"cron":5', "schedule.cron=5: give a string"),
        ('"enabled":false', '"enabled":"no"', "schedule.enabled='no': give True or False"),
        ('"interval_seconds":3600.0', '"interval_seconds":0', "schedule.every=0.0: an interval is"),
        ('"overlap":"skip"', '"overlap":"maybe"', "schedule.overlap='maybe': give 'allow' or 'skip'"),
        ('"jitter_seconds":1.5,', "", "schedule: jitter_seconds is missing"),
        ('"last_tick":{"due_at"', '"last_tick":{"due"', "schedule.last_tick.'due': this key is unknown"),
        ('"last_tick":null', '"last_tick":5', "schedule.last_tick: give an object, not 5"),
        ('"job_type":"unknown.here"', '"job_type":"shell"', "schedule.job_type 'shell': shell jobs are off"),
        ('"queues":3', '"queues":2', "jobs.jsonl:4: a line {\"schedule\": …} is due here"),
        ('"queues":3', '"queues":-3', "jobs.jsonl:1: queues=-3 is no number of lines"),
        ('"queues":3', '"limits":3', "jobs.jsonl:1: 'limits' is nothing that this release can import"),
        ('"schedules":5', '"schedules":6', "a line {\"schedule\": …} is due here"),
        ('"schedules":5', '"schedules":900', "the first line announces 900 schedules, but 7 follow; is it truncated?"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_imported(old: str, new: str, problem: str) -> None:
    make_site()
    data = exported().decode()
    delete_site()
    assert data.count(old) >= 1, data
    problems = refusal(lambda: imported(data.replace(old, new, 1).encode()))
    assert any(problem in found for found in problems), problems


def test_a_file_that_is_cut_off_is_refused_at_every_line() -> None:
    make_site()
    lines = exported().splitlines(keepends=True)
    delete_site()
    for number in range(1, len(lines)):
        (problem,) = refusal(lambda number=number: imported(b"".join(lines[:number])))  # type: ignore[misc]
        assert "is it truncated?" in problem


def test_files_of_jobs_alone_are_as_they_were() -> None:
    JobFactory(id="a")
    lines = exported().splitlines()
    assert json.loads(lines[0]) == {"format": "django_jobs", "version": 1, "jobs": 1}
    assert [json.loads(line) for line in lines[1:]] == export_dicts(all_jobs())
    pause("default")
    assert export_dicts(all_jobs()) == JobQueue().export_jobs() == [json.loads(lines[1])]
    data = exported()
    first = json.loads(data.splitlines()[0])
    assert first == {"format": "django_jobs", "version": 1, "jobs": 1, "queues": 1}
    with pytest.raises(InvalidJob, match="job_type"):
        import_dicts([json.loads(line) for line in data.splitlines()[1:]])


def test_every_column_is_exported_or_left_out_for_a_reason() -> None:
    def columns(model: Any, *, without: set[str]) -> set[str]:
        return {field.name for field in model._meta.fields} - without

    assert set(_QUEUE) == columns(Queue, without=set())
    # When a row was written says something of its database only.
    assert set(_SCHEDULE) == columns(Schedule, without={"id", "created_at", "updated_at"})
    assert set(COUNTS.values()) == {"queue", "schedule"}


def test_the_commands_say_what_went_and_what_was_there(tmp_path: Path) -> None:
    make_site()
    file = str(tmp_path / "all.jsonl")
    assert jobs("export", file) == f"2 jobs, 3 queues and 5 schedules exported to {file}\n"
    assert json_lines("export", file) == [{"file": file, "exported": 2, "queues": 3, "schedules": 5}]
    Schedule.objects.filter(name="night").delete()
    Queue.objects.filter(name="mail").delete()
    said = "0 jobs, 1 queue and 1 schedule imported, 2 jobs, 2 queues and 4 schedules were there already\n"
    assert jobs("import", file) == said
    assert json_lines("import", file) == [
        {
            "file": file, "imported": 0, "known": 2,
            "queues": 0, "schedules": 0, "queues_known": 3, "schedules_known": 5,
        }
    ]  # fmt: skip
    Schedule.objects.filter(name="night").update(cron="1 1 * * *")
    code, problems = refused("import", file)
    assert (code, len(problems)) == (1, 1)


def test_an_export_of_a_queue_has_what_is_said_of_it_and_one_by_status_jobs_alone() -> None:
    make_site()
    JobFactory(queue="mail")

    def kinds(*args: str) -> list[str]:
        lines = [json.loads(line) for line in jobs("export", "-", *args).splitlines()[1:]]
        return [line[kind]["name"] for line in lines for kind in COUNTS.values() if isinstance(line.get(kind), dict)]

    assert kinds("--queue", "mail") == ["mail"]
    assert kinds("--queue", "feeds") == ["night", "party", "poll"]
    assert kinds("--queue", "feeds", "--status", "pending") == kinds("--status", "pending") == []
    assert len(kinds()) == 8


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
def test_a_site_moves_through_every_database_byte_by_byte(tmp_path: Path, django_db_blocker: Any) -> None:
    make_site()
    make_mixed_jobs(30)
    first = exported()
    for vendor in [vendor for vendor in VENDORS if why_unreachable(vendor) is None]:
        with django_db_blocker.unblock(), created_database(new_url(vendor, tmp_path, suffix="_site")):
            imported(first)
            assert exported() == first, vendor
            assert imported(first).schedules_known == 5


def test_an_export_by_code_may_leave_the_site_out() -> None:
    from django_jobs.transfer.site_lines import no_lines

    make_site()
    file = io.BytesIO()
    assert export_file(all_jobs(), file, site_lines=no_lines) == (2, 0, 0)
