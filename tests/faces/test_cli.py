"""`manage.py jobs`: every verb, what it prints, and how it refuses."""

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_jobs.lifecycle.processes import register
from django_jobs.models import DeadLetter, Job, Queue, Schedule
from django_jobs.scheduler import Scheduler
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory

pytestmark = pytest.mark.django_db
SHELL_ON = override_settings(DJANGO_JOBS={"SHELL_JOBS": True})


def jobs(*args: str) -> str:
    """Run `manage.py jobs args` here and return what it prints."""
    out = io.StringIO()
    call_command("jobs", *args, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def json_lines(*args: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in jobs(*args, "--json").splitlines()]


def refused(*args: str) -> tuple[int, list[str]]:
    """Return the exit code and the problems of a command that is refused, and see that it changed no job."""
    before = list(Job.objects.order_by("pk").values())
    with pytest.raises(CommandError) as error:
        jobs(*args)
    assert list(Job.objects.order_by("pk").values()) == before
    return error.value.returncode, str(error.value).splitlines()


# --- enqueue


def test_enqueue_takes_a_type_a_payload_and_every_option() -> None:
    JobFactory(id="first")
    printed = jobs(
        "enqueue", "effects.record", "--payload", '{"user": 7}', "--queue", "mail", "--priority", "9",
        "--max-retries", "2", "--timeout", "2.5", "--delay", "60", "--id", "job-1", "--depends-on", "first",
        "--unique-key", "k",
    )  # fmt: skip
    assert printed == "job-1\n"
    job = Job.objects.get(pk="job-1")
    assert (job.queue, job.priority, job.max_retries, job.timeout_seconds) == ("mail", 9, 2, 2.5)
    assert (job.payload, job.status, job.depends_on, job.unique_key) == ({"user": 7}, "scheduled", ["first"], "k")


@SHELL_ON
def test_the_habits_of_queuectl_work() -> None:
    assert jobs("enqueue", "--json", '{"id":"job-1","command":"ls -la","max_retries":2}') == "job-1\n"
    other = jobs("enqueue", "--command", "echo 'Hello World'").strip()
    (job, second) = sorted(json_lines("list", "--status", "pending"), key=lambda one: one["created_at"])
    assert second["id"] == other
    assert {"id", "command", "state", "attempts", "max_retries", "created_at", "updated_at"} <= set(job)
    assert (job["command"], job["state"], job["attempts"], job["max_retries"]) == ("ls -la", "pending", 0, 2)
    assert job["created_at"].endswith("Z")


def test_enqueue_reads_every_key_of_a_spec() -> None:
    spec = {
        "id": "s", "type": "effects.record", "payload": {"a": 1}, "queue": "mail", "priority": 1, "timeout": 5,
        "run_at": "2090-01-01T00:00:00+00:00", "metadata": {"m": 1}, "unique_key": "u", "max_retries": 0,
    }  # fmt: skip
    assert jobs("enqueue", "--json", json.dumps(spec)) == "s\n"
    job = Job.objects.get()
    assert (job.status, job.metadata, job.timeout_seconds, job.max_retries) == ("scheduled", {"m": 1}, 5.0, 0)


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["effects.recrod"], 1, "Did you mean 'effects.record'"),
        (["--command", "ls"], 1, "shell jobs are off"),
        (["--json", '{"id": "x", "command": "ls"}'], 1, "shell jobs are off"),
        (["effects.record", "--payload", "{"], 1, "--payload: this is not JSON"),
        (["effects.record", "--payload", "[1]"], 1, "payload: give a JSON object"),
        (["effects.record", "--payload", '{"when": NaN}'], 1, "payload.when: nan"),
        (["effects.record", "--payload", '{"a": 1, "a": 2}'], 1, "twice"),
        (["effects.record", "--payload", '{"a": "\\u0000"}'], 1, "payload.a: a NUL character"),
        (["effects.record", "--priority", "11"], 1, "priority=11"),
        (["effects.record", "--max-retries", "-1"], 1, "max_retries=-1"),
        (["effects.record", "--timeout", "inf"], 1, "timeout_seconds=inf"),
        (["effects.record", "--queue", "a;drop"], 1, "queue 'a;drop'"),
        (["effects.record", "--id", ""], 1, "job_id ''"),
        (["effects.record", "--depends-on", "nobody"], 1, "there is no job 'nobody'"),
        (["effects.record", "--delay", "-1"], 1, "delay=-1.0"),
        (["--json", "7"], 1, "--json: give an object"),
        (["--json", '{"type": "effects.record", "prioriy": 3}'], 1, "Did you mean 'priority'"),
        (["--json", '{"type": "effects.record", "run_at": "soon"}'], 1, "ISO 8601"),
        (["--json", '{"type": "effects.record", "run_at": "2090-01-01"}'], 1, "no time zone"),
        (["--json", '{"id": "a", "job_id": "b", "type": "effects.record"}'], 1, "both of its names"),
        (["effects.record", "--json", '{"type": "effects.record"}'], 2, "job_type: given in --json and as an option"),
        (["effects.record", "--command", "ls"], 2, "give a command, or a job type"),
        ([], 2, "give a job type"),
    ],
)
def test_a_bad_enqueue_is_refused_and_writes_nothing(args: list[str], code: int, problem: str) -> None:
    returncode, problems = refused("enqueue", *args)
    assert returncode == code
    assert any(problem in one for one in problems), problems


def test_all_problems_of_an_enqueue_are_told_one_a_line() -> None:
    _, problems = refused("enqueue", "effects.record", "--priority", "0", "--max-retries", "-1", "--queue", "")
    assert len(problems) == 3


# --- look


def test_list_filters_and_prints_a_table() -> None:
    JobFactory(id="p", job_type="t.one", queue="mail")
    JobFactory(id="d", job_type="t.two", status="dead", error="ValueError: a\nb\x1b[31m")
    AttemptFactory(job=Job.objects.get(pk="d"))
    table = jobs("list").splitlines()
    assert table[0].split() == ["ID", "TYPE", "QUEUE", "STATUS", "PRIORITY", "ATTEMPTS", "CREATED", "ERROR"]
    assert len(table) == 3
    assert "\x1b" not in jobs("list")
    assert [one["id"] for one in json_lines("list", "--queue", "mail")] == ["p"]
    assert [one["id"] for one in json_lines("list", "--status", "dead")] == ["d"]
    assert [one["id"] for one in json_lines("list", "--type", "t.two")] == ["d"]
    assert [one["id"] for one in json_lines("list", "--limit", "1")] == ["p"]
    assert json_lines("list", "--status", "dead")[0]["attempts"] == 1
    assert jobs("list", "--status", "running") == "nothing\n"


def test_show_prints_everything_about_a_job() -> None:
    job = JobFactory(id="d", status="dead", error="ValueError: no", payload={"a": 1})
    AttemptFactory(job=job, traceback="Traceback (most recent call last):\n  …\nValueError: no")
    DeadLetterFactory(job=job)
    text = jobs("show", "d")
    for part in ('payload: {"a": 1}', "attempt 1: failed", "    Traceback", "dead letter: retries exhausted", "open"):
        assert part in text
    (shown,) = json_lines("show", "d")
    assert (shown["tries"][0]["outcome"], shown["dead_letters"][0]["reason"]) == ("failed", "retries exhausted")
    assert refused("show", "nobody") == (1, ["there is no job 'nobody'"])


def test_stats_and_queues_count() -> None:
    JobFactory(queue="mail")
    JobFactory(status="dead")
    DeadLetterFactory()
    register("test:1:a", queues=[], threads=1)
    (stats,) = json_lines("stats")
    assert (stats["pending"], stats["dead"], stats["workers"], stats["dead_letters"]) == (1, 2, 1, 1)
    assert "dead letters: 1" in jobs("stats")
    by_name = {one["queue"]: one for one in json_lines("queues")}
    assert (by_name["mail"]["ready"], by_name["default"]["ready"]) == (1, 0)
    assert "mail" in jobs("queues")


def test_graph_prints_text_mermaid_and_json() -> None:
    edge = JobDependencyFactory(job__id="b", depends_on__id="a", depends_on__status="completed", state="satisfied")
    assert jobs("graph", edge.job_id).splitlines() == [
        "a effects.record completed", "b effects.record pending", "  needs a (satisfied)",
    ]  # fmt: skip
    mermaid = jobs("graph", "a", "--mermaid").splitlines()
    assert mermaid[0] == "graph TD"
    assert "  n0 --> n1" in mermaid
    assert json_lines("graph", "a")[1]["depends_on"] == [{"id": "a", "edge": "satisfied"}]
    assert refused("graph", "nobody")[0] == 1


# --- wait


def test_wait_exits_0_for_completed_and_1_otherwise() -> None:
    JobFactory(id="c", status="completed")
    JobFactory(id="d", status="dead", error="no")
    JobFactory(id="p")
    assert jobs("wait", "c") == "completed\n"
    assert json_lines("wait", "c")[0]["state"] == "completed"
    assert refused("wait", "d") == (1, ["job 'd' ended dead: no"])
    code, (problem,) = refused("wait", "p", "--timeout", "0.05")
    assert (code, "still pending" in problem) == (1, True)
    assert refused("wait", "nobody")[0] == 1


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
    from datetime import UTC, datetime

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


def test_another_database_is_chosen_by_its_alias() -> None:
    JobFactory(id="here")
    assert json_lines("list", "--database", "default")[0]["id"] == "here"
    with pytest.raises(CommandError, match="invalid choice"):
        jobs("list", "--database", "elsewhere")
