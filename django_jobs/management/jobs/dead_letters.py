"""The verbs of dead letters: dlq list, show, replay, ack."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from django.core.management.base import CommandParser

from django_jobs.exceptions import InvalidJob, JobsError
from django_jobs.lifecycle.acknowledge import acknowledge
from django_jobs.lifecycle.moved import Moved
from django_jobs.lifecycle.replay import replay_dead_letters
from django_jobs.models import DeadLetter
from django_jobs.models.dead_letter import DeadLetterQuerySet

from .jobs import show
from .output import Output, UsageError, streamed
from .verbs import EACH, JOB, JOBS, Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    dlq = Verbs(verbs.add("dlq", None, "list, replay and acknowledge dead letters"), dest="action")
    parser = dlq.add(
        "list",
        list_dead_letters,
        "list open dead letters, the newest first",
        "dlq list --type email.welcome",
        over=EACH,
    )
    parser.add_argument("--closed", action="store_true", help="those that were acknowledged or replayed instead")
    _add_filters(parser)
    parser = dlq.add("show", show, "show a dead job with its attempts", "dlq show job-1", over=JOB)
    parser.add_argument("job_id", metavar="JOB_ID")
    parser = dlq.add(
        "replay", replay_chosen, "run dead jobs again, behind the steps that were done",
        "dlq replay job-1 job-2", "dlq replay --type email.welcome --error timed --yes", asks=True, over=JOBS,
    )  # fmt: skip
    _add_choice(parser)
    parser.add_argument("--from-start", action="store_true", help="forget which steps were done, and do them again")
    parser = dlq.add(
        "ack", acknowledge_chosen, "close dead letters; their jobs stay dead",
        "dlq ack job-1 --note 'sent by hand'", asks=True, over=JOBS,
    )  # fmt: skip
    _add_choice(parser)
    parser.add_argument("--note", default="", help="why")


def _add_filters(parser: CommandParser) -> None:
    parser.add_argument("--type", dest="job_type", help="of this job type")
    parser.add_argument("--error", help="whose error contains this")
    parser.add_argument("--queue", help="of this queue")


def _add_choice(parser: CommandParser) -> None:
    parser.add_argument("job_ids", nargs="*", metavar="JOB_ID")
    parser.add_argument("--all", action="store_true", help="every open dead letter")
    _add_filters(parser)


def _filters(options: dict[str, Any]) -> dict[str, str]:
    """Return the filters that the options ask for, as keywords of `QuerySet.filter`."""
    lookups = {"job_type": "job_type", "error": "error__contains", "queue": "job__queue"}
    return {lookup: options[name] for name, lookup in lookups.items() if options[name]}


def list_dead_letters(options: dict[str, Any], out: Output) -> None:
    """Print dead letters, newest first."""
    objects: DeadLetterQuerySet = DeadLetter.objects  # type: ignore[assignment]
    chosen = objects.acknowledged() | objects.replayed() if options["closed"] else objects.open()
    with streamed(chosen.filter(**_filters(options)).select_related("job").order_by("-pk")) as dead_letters:
        out.rows(dead_letters, _values, ("JOB", "TYPE", "QUEUE", "REASON", "DIED", "ERROR"), _row)


def _values(dead_letter: DeadLetter) -> dict[str, Any]:
    own = ("reason", "error", "died_at", "acknowledged_at", "replayed_at", "note", "fingerprint")
    job = {"job_id": dead_letter.job_id, "job_type": dead_letter.job.job_type, "queue": dead_letter.job.queue}
    return job | {name: getattr(dead_letter, name) for name in own}


def _row(dead_letter: DeadLetter) -> tuple[Any, ...]:
    job, error = dead_letter.job, dead_letter.error.partition("\n")[0][:80]
    return (job.pk, job.job_type, job.queue, dead_letter.reason, dead_letter.died_at, error)


def replay_chosen(options: dict[str, Any], out: Output) -> None:
    """Replay the jobs of the chosen dead letters."""
    move = partial(replay_dead_letters, from_start=options["from_start"])
    _move_chosen(options, out, move, "replay", "replayed")


def acknowledge_chosen(options: dict[str, Any], out: Output) -> None:
    """Acknowledge the chosen dead letters."""
    _move_chosen(options, out, partial(acknowledge, note=options["note"]), "acknowledge", "acknowledged")


def _move_chosen(
    options: dict[str, Any], out: Output, move: Callable[[Iterable[int]], Moved], verb: str, done: str
) -> None:
    filters = _filters(options)
    if bool(options["job_ids"]) == bool(options["all"] or filters):
        raise UsageError("give job ids, or --all, --type, --error or --queue")
    if options["job_ids"]:
        out.moved(options["job_ids"], _move_those_of(options["job_ids"], move), lambda job_id: done)
        return
    chosen = list(DeadLetter.objects.open().filter(**filters).values_list("pk", flat=True))
    if chosen:
        out.confirm(f"This will {verb} {len(chosen)} dead letters.")
    moved = move(chosen)
    out.result(f"{len(moved.done)} {done}", **{done: len(moved.done)})
    # Somebody else closed it meanwhile, or a live job holds the unique key of its job.
    out.refuse(moved.left.values())


def _move_those_of(job_ids: list[str], move: Callable[[Iterable[int]], Moved]) -> Moved:
    """Move the open dead letter of each job, or else its newest, which is refused; return what came of it by job id."""
    dead_letters = list(DeadLetter.objects.filter(job_id__in=job_ids).order_by("pk").defer("error", "traceback"))
    newest = {dead_letter.job_id: dead_letter.pk for dead_letter in dead_letters}
    newest |= {dead_letter.job_id: dead_letter.pk for dead_letter in dead_letters if dead_letter.is_open}
    moved = move(newest.values())
    job_of = {pk: job_id for job_id, pk in newest.items()}
    left: dict[str, JobsError] = {
        job_id: InvalidJob(f"job {job_id!r} has no dead letter") for job_id in job_ids if job_id not in newest
    }
    left |= {job_of[pk]: error for pk, error in moved.left.items()}
    return Moved([job_of[pk] for pk in moved.done], left)
