"""`manage.py jobs`: the verbs that submit, wait and inspect."""

import json
import re
from unittest import mock

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand, CommandParser
from django.test import override_settings

from django_jobs.lifecycle.leases import register
from django_jobs.models import Job, WorkerProcess
from tests.support.commands import jobs, json_lines, refused
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory

pytestmark = pytest.mark.django_db
SHELL_ON = override_settings(DJANGO_JOBS={"SHELL_JOBS": True})


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


def test_all_problems_of_an_enqueue_are_printed_one_a_line() -> None:
    _, problems = refused("enqueue", "effects.record", "--priority", "0", "--max-retries", "-1", "--queue", "")
    assert len(problems) == 3


# --- inspect


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
    assert text.count("dead\n") == 1, "a state is said once"
    assert re.search(r"^created_at: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", text, re.MULTILINE)
    (shown,) = json_lines("show", "d")
    assert shown["state"] == shown["status"] == "dead"
    assert (shown["tries"][0]["outcome"], shown["dead_letters"][0]["reason"]) == ("failed", "retries exhausted")
    assert refused("show", "nobody") == (1, ["there is no job 'nobody'"])


@pytest.mark.slow
def test_stats_and_queues_count() -> None:
    JobFactory(queue="mail")
    JobFactory(status="dead")
    DeadLetterFactory()
    register("test:1:a", queues=[], threads=4)
    WorkerProcess.objects.update(silent_threads=3)
    (stats,) = json_lines("stats")
    assert (stats["pending"], stats["dead"], stats["workers"], stats["dead_letters"]) == (1, 2, 1, 1)
    assert stats["silent_threads"] == 3
    assert "dead letters:   1" in jobs("stats")
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


def test_the_commands_work_where_another_library_makes_their_parsers() -> None:
    """As django-configurations does: its `create_parser` takes no keywords."""
    made = BaseCommand.create_parser

    def without_keywords(self: BaseCommand, prog_name: str, subcommand: str) -> CommandParser:
        parser = made(self, prog_name, subcommand)
        parser.add_argument("--configuration")
        return parser

    with mock.patch.object(BaseCommand, "create_parser", without_keywords):
        for name in ("jobs", "runworkers"):
            parser = load_command_class("django_jobs", name).create_parser("manage.py", name)
            assert "--configuration" in parser.format_help()
