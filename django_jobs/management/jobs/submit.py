"""The verbs enqueue and wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.submit import submit
from django_jobs.models import JobStatus
from django_jobs.names import did_you_mean
from django_jobs.payloads import read_json
from django_jobs.shell import SHELL
from django_jobs.submission import OPTIONS, with_moments
from django_jobs.text import shown
from django_jobs.waiting import wait

from .jobs import find_job, job_values
from .output import Output, UsageError
from .verbs import JOB, SUBMIT, Verbs

OTHER_NAMES = {"id": "job_id", "type": "job_type", "timeout": "timeout_seconds", "run_at": "scheduled_at"}
SPEC_KEYS = ("job_type", "payload", "command", *OPTIONS)


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "enqueue",
        enqueue,
        "submit a job and print its id",
        "enqueue email.welcome --payload '{\"user\": 7}' --priority 9",
        "enqueue --command \"echo 'Hello World'\" --timeout 30",
        'enqueue --json \'{"id": "job-1", "command": "ls -la", "max_retries": 2}\'',
        as_json=False,
        over=SUBMIT,
    )
    parser.add_argument("job_type", nargs="?", metavar="TYPE", help="the registered job type")
    parser.add_argument("--payload", metavar="JSON", help="a JSON object for the handler")
    parser.add_argument("--command", metavar="SH", dest="shell", help="run this with /bin/sh (the job type `shell`)")
    parser.add_argument("--json", metavar="SPEC", dest="spec", help=f"the job as an object: {', '.join(SPEC_KEYS)}")
    parser.add_argument("--queue")
    parser.add_argument("--priority", type=int, metavar="1..10", help="higher runs first")
    parser.add_argument("--max-retries", type=int, metavar="N")
    parser.add_argument("--timeout", type=float, dest="timeout_seconds", metavar="SECONDS")
    parser.add_argument("--delay", type=float, metavar="SECONDS", help="do not start before")
    parser.add_argument("--id", dest="job_id", help="an id of your own")
    parser.add_argument(
        "--depends-on", action="append", metavar="ID", help="a job that must complete first (repeatable)"
    )
    parser.add_argument("--unique-key", metavar="KEY", help="while a live job holds it, print that job's id instead")
    parser.add_argument("--limit-key", metavar="KEY", help="the value by which its type's limit counts it")
    parser.add_argument(
        "--fair-key", metavar="KEY", help="the key by which it takes turns with the others of its queue"
    )
    parser = verbs.add(
        "wait",
        wait_for,
        "wait until a job is finished; exit code 0 when it completed",
        "wait job-1 --timeout 60",
        over=JOB,
    )
    parser.add_argument("job_id", metavar="ID")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after that (default: never)")


def enqueue(options: dict[str, Any], out: Output) -> None:
    """Submit one job."""
    given = {name: options[name] for name in ("job_type", *OPTIONS) if options.get(name) is not None}
    if options["payload"] is not None:
        given["payload"] = read_json(options["payload"], "--payload")
    if options["shell"] is not None:
        given["command"] = options["shell"]
    spec = _spec(options["spec"]) if options["spec"] is not None else {}
    if twice := [name for name in given if name in spec]:
        raise UsageError(f"{', '.join(twice)}: given in --json and as an option")
    values = {**spec, **given}
    _take_command(values)
    if "job_type" not in values:
        raise UsageError("give a job type, --command or --json")
    job_type, payload = values.pop("job_type"), values.pop("payload", None)
    if job_type == SHELL and not get_settings().SHELL_JOBS:
        raise InvalidJob("shell jobs are off; set DJANGO_JOBS['SHELL_JOBS'] = True to allow them")
    out.line(submit(job_type, payload, options=with_moments(values)).id)


def _take_command(values: dict[str, Any]) -> None:
    """Turn a command into the job type `shell` and its payload."""
    if "command" not in values:
        return
    if "job_type" in values or "payload" in values:
        raise UsageError("give a command, or a job type with its payload")
    command = values.pop("command")
    if not isinstance(command, str) or not command.strip():
        raise InvalidJob(f"command={shown(command)}: give a shell command")
    values |= {"job_type": SHELL, "payload": {"command": command}}


def _spec(text: str) -> dict[str, Any]:
    """Return the job that `--json` describes, under the names that submit knows."""
    spec = read_json(text, "--json")
    if not isinstance(spec, Mapping):
        raise InvalidJob(f"--json: give an object, not {shown(spec)}")
    values: dict[str, Any] = {OTHER_NAMES.get(str(name), str(name)): value for name, value in spec.items()}
    known = (*SPEC_KEYS, *OTHER_NAMES)
    problems = [f"--json: unknown key {shown(name)}.{did_you_mean(name, known)}" for name in spec if name not in known]
    if len(values) < len(spec):
        problems.append("--json: a key stands there under both of its names")
    if isinstance(values.get("scheduled_at"), str):
        try:
            values["scheduled_at"] = datetime.fromisoformat(values["scheduled_at"])
        except ValueError:
            problems.append(f"--json: scheduled_at={shown(values['scheduled_at'])}: give an ISO 8601 time")
    if problems:
        raise InvalidJob(*problems)
    return values


def wait_for(options: dict[str, Any], out: Output) -> None:
    """Wait for one job."""
    try:
        wait(options["job_id"], options["timeout"])
    except TimeoutError as error:
        raise CommandError(str(error)) from None
    job = find_job(options["job_id"])
    out.result(str(job.status), **job_values(job))
    if job.status != JobStatus.COMPLETED:
        raise CommandError(f"job {job.id!r} ended {job.status}" + (f": {job.error}" if job.error else ""))
