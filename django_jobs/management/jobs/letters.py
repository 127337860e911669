"""The verbs of dead letters: dlq list, show, replay, ack."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import DeadLetter
from django_jobs.models.dead_letter import DeadLetterQuerySet

from .look import show
from .output import Output, Usage
from .verbs import Verbs

PAGE = 500


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    dlq = Verbs(verbs.add("dlq", None, "list, replay and acknowledge dead letters"), dest="action")
    parser = dlq.add("list", list_letters, "list open dead letters, the newest first", "dlq list --type email.welcome")
    parser.add_argument("--closed", action="store_true", help="those that were acknowledged or replayed instead")
    _add_filters(parser)
    parser = dlq.add("show", show, "show a dead job with its attempts", "dlq show job-1")
    parser.add_argument("job_id", metavar="JOB_ID")
    parser = dlq.add(
        "replay", replay, "run dead jobs again from the start",
        "dlq replay job-1 job-2", "dlq replay --type email.welcome --error timed --yes", asks=True,
    )  # fmt: skip
    _add_choice(parser)
    parser = dlq.add(
        "ack", acknowledge, "close dead letters; their jobs stay dead", "dlq ack job-1 --note 'sent by hand'", asks=True
    )
    _add_choice(parser)
    parser.add_argument("--note", default="", help="why")


def _add_filters(parser: Any) -> None:
    parser.add_argument("--type", dest="job_type", help="of this job type")
    parser.add_argument("--error", help="whose error contains this")
    parser.add_argument("--queue", help="of this queue")


def _add_choice(parser: Any) -> None:
    parser.add_argument("job_ids", nargs="*", metavar="JOB_ID")
    parser.add_argument("--all", action="store_true", help="every open dead letter")
    _add_filters(parser)


def _filtered(letters: DeadLetterQuerySet, options: dict[str, Any]) -> DeadLetterQuerySet:
    if options["job_type"]:
        letters = letters.filter(job__job_type=options["job_type"])
    if options["error"]:
        letters = letters.filter(error__contains=options["error"])
    if options["queue"]:
        letters = letters.filter(job__queue=options["queue"])
    return letters


def _all() -> DeadLetterQuerySet:
    return DeadLetter.objects.using(jobs_alias()).select_related("job")


def list_letters(options: dict[str, Any], out: Output) -> None:
    """Print dead letters."""
    letters = _all().exclude(pk__in=_all().open().values("pk")) if options["closed"] else _all().open()
    rows = _filtered(letters, options).order_by("-pk").iterator(chunk_size=PAGE)
    if out.as_json:
        for letter in rows:
            out.json(_values(letter))
        return
    out.table(
        ("JOB", "TYPE", "QUEUE", "REASON", "DIED", "ERROR"),
        [
            (one.job_id, one.job.job_type, one.job.queue, one.reason, one.died_at, one.error.partition("\n")[0][:80])
            for one in rows
        ],
    )


def _values(letter: DeadLetter) -> dict[str, Any]:
    return {
        "job_id": letter.job_id,
        "job_type": letter.job.job_type,
        "queue": letter.job.queue,
        "reason": letter.reason,
        "error": letter.error,
        "died_at": letter.died_at,
        "acknowledged_at": letter.acknowledged_at,
        "replayed_at": letter.replayed_at,
        "note": letter.note,
        "fingerprint": letter.fingerprint,
    }


def replay(options: dict[str, Any], out: Output) -> None:
    """Replay the chosen letters."""
    _for_each(options, out, "replay", "replayed", lambda letter: letter.replay())


def acknowledge(options: dict[str, Any], out: Output) -> None:
    """Acknowledge the chosen letters."""
    _for_each(options, out, "acknowledge", "acknowledged", lambda letter: letter.acknowledge(note=options["note"]))


def _for_each(options: dict[str, Any], out: Output, word: str, done: str, move: Any) -> None:
    filtered = options["all"] or options["job_type"] or options["error"] or options["queue"]
    if bool(options["job_ids"]) == bool(filtered):
        raise Usage("give job ids, or --all, --type, --error or --queue")
    if options["job_ids"]:

        def one(job_id: str) -> str:
            letters = _all().filter(job_id=job_id).order_by("-pk")
            letter = letters.open().first() or letters.first()
            if letter is None:
                raise InvalidJob(f"job {job_id!r} has no dead letter")
            move(letter)
            return done

        out.each(options["job_ids"], one)
        return
    chosen = _filtered(_all().open(), options)
    number = chosen.count()
    if number:
        out.confirm(f"This will {word} {number} dead letters.")
    changed = last = 0
    problems: list[str] = []
    while page := list(chosen.filter(pk__gt=last).order_by("pk")[:PAGE]):
        for letter in page:
            last = letter.pk
            try:
                move(letter)
                changed += 1
            except InvalidJob as error:  # somebody else closed it meanwhile, or a live job holds its unique key
                problems += error.problems
    if out.as_json:
        out.json({done: changed})
    else:
        out.line(f"{changed} {done}")
    if problems:
        raise CommandError("\n".join(problems))
