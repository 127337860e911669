"""`manage.py jobs`: the verbs that change things, move files and watch over the whole."""

import io
import os
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_jobs import checks
from django_jobs.lifecycle.leases import register
from django_jobs.models import DeadLetter, Event, Job, JobLog, JobStep, Queue, Schedule
from django_jobs.queue import Scheduler
from tests.support.commands import jobs, json_lines, refused
from tests.support.factories import DeadLetterFactory, JobDependencyFactory, JobFactory
from tests.support.workflows import add_step

pytestmark = pytest.mark.django_db


# --- operate


def test_cancel_cancels_what_waits_and_names_what_cannot_be() -> None:
    JobFactory(id="p")
    JobFactory(id="c", status="completed")
    assert jobs("cancel", "p") == "p cancelled\n"
    assert Job.objects.get(pk="p").status == "cancelled"
    code, problems = refused("cancel", "c", "nobody")
    assert code == 1
    assert len(problems) == 2
    JobFactory(id="r", status="running")
    assert json_lines("cancel", "r") == [{"id": "r", "state": "was asked to stop"}]


def test_jobs_are_named_in_the_order_given_and_each_problem_after_them() -> None:
    for job_id in ("a", "b", "c"):
        JobFactory(id=job_id, status="completed" if job_id == "c" else "pending")
    out = io.StringIO()
    with pytest.raises(CommandError) as error:
        call_command("jobs", "cancel", "nobody", "b", "c", "a", stdout=out)
    assert out.getvalue() == "b cancelled\na cancelled\n"
    assert [line.split(" is ")[0] for line in str(error.value).splitlines()] == ["there", "job 'c'"]
    assert "nobody" in str(error.value).splitlines()[0]


def test_retry_runs_scheduled_jobs_now_and_others_again() -> None:
    JobFactory(id="s", status="scheduled")
    JobFactory(id="d", status="dead")
    DeadLetterFactory(job=Job.objects.get(pk="d"))
    assert jobs("retry", "s", "d") == "s pending\nd pending\n"
    assert not Job.objects.exclude(status="pending").exists()
    assert not DeadLetter.objects.open().exists()
    JobFactory(id="c", status="completed")
    assert refused("retry", "c")[0] == 1


def test_pause_and_resume_know_the_queues() -> None:
    JobFactory(queue="mail")
    assert jobs("pause", "mail") == "mail paused\n"
    assert Queue.objects.get(name="mail").paused_at is not None
    assert "mail" in jobs("queues")
    assert json_lines("resume", "mail") == [{"id": "mail", "state": "resumed"}]
    assert Queue.objects.get(name="mail").paused_at is None
    code, (problem,) = refused("pause", "mial")
    assert (code, "Did you mean 'mail'" in problem) == (1, True)


def test_prune_asks_first() -> None:
    JobFactory(status="completed", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    code, (problem,) = refused("prune")
    assert (code, "--yes" in problem) == (1, True)
    assert jobs("prune", "--yes") == "1 jobs deleted\n"
    assert json_lines("prune", "--yes") == [{"deleted": 0}]


def test_on_a_terminal_it_asks_and_takes_no_for_an_answer() -> None:
    with (
        mock.patch("sys.stdin.isatty", return_value=True),
        mock.patch("builtins.input", side_effect=["", "y"]) as asked,
    ):
        assert refused("prune") == (1, ["nothing was changed"])
        assert jobs("prune") == "0 jobs deleted\n"
    assert asked.call_args.args[0].endswith("[y/N] ")


# --- dead letters


def test_dead_letters_are_listed_shown_replayed_and_acknowledged() -> None:
    for number, error in enumerate(("timed out", "refused", "refused")):
        job = JobFactory(id=f"d{number}", status="dead", job_type=f"t.{number}", queue="mail", error=error)
        DeadLetterFactory(job=job, error=error)
    assert [one["job_id"] for one in json_lines("dlq", "list")] == ["d2", "d1", "d0"]
    assert [one["job_id"] for one in json_lines("dlq", "list", "--error", "timed")] == ["d0"]
    assert len(jobs("dlq", "list", "--type", "t.1").splitlines()) == 2
    assert "dead letter: retries exhausted" in jobs("dlq", "show", "d0")
    assert jobs("dlq", "replay", "d0") == "d0 replayed\n"
    assert Job.objects.get(pk="d0").status == "pending"
    assert jobs("dlq", "ack", "d1", "--note", "by hand") == "d1 acknowledged\n"
    assert DeadLetter.objects.get(job="d1").note == "by hand"
    assert {one["job_id"] for one in json_lines("dlq", "list", "--closed")} == {"d0", "d1"}
    code, problems = refused("dlq", "replay", "d0", "d1", "nobody")
    assert (code, len(problems)) == (1, 3)
    assert refused("dlq", "ack", "d1")[0] == 1


def test_many_dead_letters_are_replayed_by_a_filter() -> None:
    for number in range(7):
        DeadLetterFactory(job__job_type="t.a" if number else "t.b", error="refused")
    code, (problem,) = refused("dlq", "replay", "--all")
    assert (code, problem) == (1, "This will replay 7 dead letters. Give --yes to do it.")
    assert jobs("dlq", "replay", "--type", "t.a", "--error", "refu", "--yes") == "6 replayed\n"
    assert json_lines("dlq", "ack", "--all", "--yes") == [{"acknowledged": 1}]
    assert Job.objects.filter(status="pending").count() == 6


@pytest.mark.parametrize("args", [["replay"], ["ack"], ["replay", "x", "--all"]])
def test_dead_letters_must_be_chosen(args: list[str]) -> None:
    assert refused("dlq", *args)[0] == 2


# --- schedules


def test_schedules_are_listed_enabled_disabled_and_run() -> None:
    Scheduler().schedule_cron("nightly", "effects.record", "0 3 * * *", {"n": 1}, timezone="Europe/Berlin")
    Scheduler().schedule_interval("often", "effects.record", 60)
    assert "0 3 * * * Europe/Berlin" in jobs("schedules")
    assert [one["name"] for one in json_lines("schedules")] == ["nightly", "often"]
    assert jobs("schedules", "disable", "nightly") == "nightly disabled\n"
    assert not Schedule.objects.get(name="nightly").enabled
    assert json_lines("schedules", "enable", "nightly") == [{"id": "nightly", "state": "enabled"}]
    job_id = jobs("schedules", "run", "nightly").strip()
    assert Job.objects.get(pk=job_id).payload == {"n": 1}
    assert refused("schedules", "run", "nightli")[0] == 1


def test_a_schedule_that_was_made_at_run_time_is_deleted() -> None:
    Scheduler().schedule_interval("often", "effects.record", 60)
    ran = jobs("schedules", "run", "often").strip()
    assert refused("schedules", "delete", "often")[1] == [
        "This deletes schedule 'often'. The jobs that it submitted stay. Give --yes to do it."
    ]
    assert jobs("schedules", "delete", "often", "--yes") == "often deleted\n"
    assert not Schedule.objects.exists()
    assert Job.objects.filter(pk=ran).exists()
    assert refused("schedules", "delete", "often", "--yes")[0] == 1
    Scheduler().schedule_interval("declared", "effects.record", 60)
    Schedule.objects.update(declared=True)
    assert "declared in the code" in refused("schedules", "delete", "declared", "--yes")[1][0]
    assert Schedule.objects.exists()


def test_nothing_is_encrypted_where_nothing_can_encrypt() -> None:
    with override_settings(DJANGO_JOBS={"ENCRYPT": True}), mock.patch.object(checks, "find_spec", return_value=None):
        assert "pip install 'django-durable-jobs[encryption]'" in refused("encrypt")[1][0]


# --- files


def test_export_and_import_through_a_file(tmp_path: Path) -> None:
    JobFactory.create_batch(5, queue="mail")
    JobFactory(queue="other", status="completed")
    file = tmp_path / "jobs.jsonl"
    assert jobs("export", str(file)) == f"6 jobs exported to {file}\n"
    assert jobs("export", "-") == file.read_text()
    assert json_lines("export", str(tmp_path / "mail"), "--queue", "mail", "--status", "pending")[0]["exported"] == 5
    Job.objects.all().delete()
    assert jobs("import", str(file)) == "6 jobs imported\n"
    assert json_lines("import", str(file)) == [{"file": str(file), "imported": 0, "known": 6}]
    with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()))):
        assert jobs("import", "-") == "0 jobs imported, 6 were there already\n"


def test_an_import_that_is_refused_names_file_line_and_path(tmp_path: Path) -> None:
    JobFactory.create_batch(3, payload={"when": 5})
    file = tmp_path / "jobs.jsonl"
    jobs("export", str(file))
    Job.objects.all().delete()
    file.write_text(file.read_text().replace('"when":5', '"when":NaN'))
    code, problems = refused("import", str(file))
    assert code == 1
    assert [problem.partition(" nan")[0] for problem in problems] == [
        f"jobs.jsonl:{n}: payload.when:" for n in (2, 3, 4)
    ]


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such.jsonl"
    assert refused("import", str(missing)) == (1, [f"{missing}: No such file or directory"])
    assert refused("export", str(missing)) == (1, [f"{missing}: No such file or directory"])
    assert refused("export", str(tmp_path))[0] == 1
    assert list(tmp_path.iterdir()) == [], "a failed export leaves no file"


# --- state


def test_check_finds_a_count_that_is_wrong() -> None:
    JobDependencyFactory(job__id="b", depends_on__id="a")
    assert jobs("check") == "0 differences\n"
    assert json_lines("check") == [{"differences": 0}]
    Job.objects.filter(pk="b").update(pending_dependencies=0)
    assert refused("check") == (1, ["job 'b' counts 0 open dependencies and has 1"])


def test_health_wants_workers_that_keep_up() -> None:
    assert refused("health") == (1, ["no worker process is alive"])
    register("test:1:a", queues=[], threads=1)
    assert jobs("health").startswith("healthy: 1 workers")
    assert json_lines("health")[0]["healthy"] is True
    JobFactory(queue="slow")
    code, (problem,) = refused("health", "--max-wait", "-1")
    assert (code, "queue 'slow'" in problem) == (1, True)
    assert "invalid seconds value" in refused("health", "--max-wait", "nan")[1][0]


def test_another_database_is_chosen_by_its_alias() -> None:
    JobFactory(id="here")
    assert json_lines("list", "--database", "default")[0]["id"] == "here"
    with pytest.raises(CommandError, match="invalid choice"):
        jobs("list", "--database", "elsewhere")


# --- steps


def test_show_lists_steps_with_masked_results() -> None:
    job = JobFactory(id="flow", status="running")
    add_step(job, "charge", {"payment": 7, "token": "geheim"})
    add_step(job, "night", kind="sleep", ended_at=None, due_at=datetime(2030, 1, 1, tzinfo=UTC))
    text = jobs("show", "flow")
    assert "step 1: charge (step, done) from" in text
    assert "step 2: night (sleep, waiting) from" in text
    assert "until 2030-01-01 00:00:00" in text
    assert "geheim" not in text
    (shown,) = json_lines("show", "flow")
    first, second = shown["steps"]
    assert (first["position"], first["name"], first["state"], first["result"]["payment"]) == (1, "charge", "done", 7)
    assert first["result"]["token"] != "geheim"
    assert (second["kind"], second["state"], second["ended_at"]) == ("sleep", "waiting", None)


@pytest.mark.parametrize("verb", [("retry",), ("dlq", "replay")])
@pytest.mark.parametrize("from_start", [False, True])
def test_a_replay_keeps_the_records_unless_it_is_from_the_start(verb: tuple[str, ...], from_start: bool) -> None:
    job = DeadLetterFactory(job__status="dead").job
    add_step(job, "charge")
    jobs(*verb, job.pk, *(["--from-start"] if from_start else []))
    assert Job.objects.get().status == "pending"
    assert JobStep.objects.count() == (not from_start)


def test_emit_wakes_what_waits_and_events_lists_it() -> None:
    job = JobFactory(id="flow", status="scheduled")
    add_step(job, "order.approved", kind="event", ended_at=None, event_name="order.approved", event_key="order:7")
    number = jobs("emit", "order.approved", "--key", "order:7", "--payload", '{"by": "ada", "token": "geheim"}').strip()
    assert Job.objects.get().status == "pending"
    assert JobStep.objects.get().result == {"by": "ada", "token": "geheim"}
    jobs("emit", "other", "--retention", "0")
    line = jobs("events", "--name", "order.approved").splitlines()[1]
    assert line.split()[:3] == [number, "order.approved", "order:7"]
    (shown,) = json_lines("events", "--key", "order:7")
    assert (shown["id"], shown["payload"]["by"]) == (int(number), "ada")
    assert shown["payload"]["token"] != "geheim"
    assert refused("emit", "")[0] == 1
    assert refused("emit", "a", "--payload", "[1]")[0] == 1
    assert Event.objects.count() == 2


def test_show_tells_the_logs_when_asked_and_nothing_reaches_the_terminal_raw() -> None:
    job = JobFactory(id="log")
    for number in (1, 2):
        JobLog.objects.create(job=job, number=number, text=f"first \x1b[2J {number}\nsecond\n")
    assert "first" not in jobs("show", "log")
    text = jobs("show", "log", "--logs")
    assert "log of attempt 1:\n    first ?[2J 1\n    second\nlog of attempt 2:\n" in text
    assert "logs" not in json_lines("show", "log")[0]
    assert [log["number"] for log in json_lines("show", "log", "--logs")[0]["logs"]] == [1, 2]


def test_an_export_to_a_pipe_is_written_into_it(tmp_path: Path) -> None:
    """Root's export to `/dev/null` once put a file in its place."""
    JobFactory(id="a")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        jobs("export", str(pipe))
        assert b'"job_id":"a"' in os.read(reader, 65_536)
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
