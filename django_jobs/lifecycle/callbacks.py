"""The callbacks of a batch: jobs that are checked when it begins, kept as JSON, and submitted when it has ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from django_jobs.encryption import carried
from django_jobs.exceptions import EncryptionError, InvalidJob
from django_jobs.handlers import registry, unknown_job_type
from django_jobs.numbers import is_integer
from django_jobs.payloads import decode, opened, sealed
from django_jobs.submission import NewJob, check_submission, resolve
from django_jobs.text import shown

from .submit import submit

logger = logging.getLogger("django_jobs")

# A callback may come again after a replay, and then these would be taken, or mean the first one.
REFUSED = ("job_id", "depends_on", "unique_key")
CALLBACKS = ("on_success", "on_failure", "on_finish")


def checked(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return callbacks, given by name as NewJob or None, as JSON values; raise InvalidJob with every problem."""
    problems: list[str] = []
    kept: dict[str, Any] = {}
    for name, new in callbacks.items():
        if new is None:
            continue
        try:
            kept[name] = _checked(new)
        except InvalidJob as error:
            problems += (f"{name}: {problem}" for problem in error.problems)
    if problems:
        raise InvalidJob(*problems)
    return kept


def _checked(new: Any) -> dict[str, Any]:
    """Return one callback with what its handler, its queue and the site decide: another process may submit it."""
    if not isinstance(new, NewJob):
        raise InvalidJob(f"give NewJob(…), not {type(new).__name__}")
    given = {name: value for name, value in new.options.items() if value is not None}
    if refused := [name for name in REFUSED if name in given]:
        raise InvalidJob(
            *(f"{name}: a callback cannot have it, for it may come again after a replay" for name in refused)
        )
    submission = check_submission(new.job_type, new.payload, given)
    handler = registry.find(new.job_type)
    if handler is None:
        raise InvalidJob(unknown_job_type(new.job_type, registry.job_types()))
    template = resolve(submission, handler, registry)
    template.keys(new.payload)  # refused now rather than at the end
    options = {
        **{name: value for name, value in given.items() if name != "priority"},
        "queue": template.queue,
        "max_retries": template.max_retries,
        "timeout_seconds": template.timeout_seconds,
        "metadata": decode(submission.metadata),
    }
    if submission.delay is not None:
        options["delay"] = submission.delay.total_seconds()
    if submission.scheduled_at is not None:
        options["scheduled_at"] = submission.scheduled_at.isoformat()
    payload = decode(submission.payload)
    if template.encrypts:
        payload = sealed(payload)
    return {"job_type": new.job_type, "payload": payload, "rank": template.rank, "options": options}


def submit_callbacks(batch_id: str, callbacks: Any, *, ended_well: bool) -> None:
    """Submit the callbacks of a batch that has just ended, in the transaction that is open."""
    if not isinstance(callbacks, Mapping):
        logger.error("batch %s ended, and its callbacks are no JSON object: %s", batch_id, shown(callbacks))
        return
    for name in ("on_success" if ended_well else "on_failure", "on_finish"):
        if name in callbacks:
            _submit(batch_id, name, callbacks[name])


def check_callback(path: str, callback: Any) -> None:
    """Raise InvalidJob when a JSON value is no callback as `checked` returns them."""
    _check_shape(path, callback)
    try:
        check_submission(callback["job_type"], opened(callback["payload"]), _options(callback))
    except (InvalidJob, ValueError, TypeError) as error:
        raise InvalidJob(f"{path}: {error}") from None


def _check_shape(path: str, callback: Any) -> None:
    """Raise InvalidJob when a JSON value has not the keys of a callback."""
    if not isinstance(callback, Mapping) or set(callback) != {"job_type", "payload", "rank", "options"}:
        raise InvalidJob(f"{path}: give an object with job_type, payload, rank and options, not {shown(callback)}")
    if not is_integer(callback["rank"], -100, 100) or not isinstance(callback["options"], Mapping):
        raise InvalidJob(f"{path}: rank is an integer from -100 to 100, and options is an object")


def types_of(callbacks: Any) -> dict[str, str]:
    """Return the job types of callbacks by their names; of what a hand has written in their place, what can be shown."""
    if not isinstance(callbacks, Mapping):
        return {"?": shown(callbacks)}
    return {
        name: str(callback.get("job_type")) if isinstance(callback, Mapping) else shown(callback)
        for name, callback in callbacks.items()
    }


def _options(callback: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(callback["options"])
    if "scheduled_at" in options:
        options["scheduled_at"] = datetime.fromisoformat(options["scheduled_at"])
    return options


def _submit(batch_id: str, name: str, callback: Any) -> None:
    try:
        _check_shape(name, callback)
        # A payload that is encrypted for a handler of another site is no business of this one.
        job_type = callback["job_type"]
        with carried() if isinstance(job_type, str) and registry.find(job_type) is None else nullcontext():
            check_callback(name, callback)
            submit(
                callback["job_type"],
                opened(callback["payload"]),
                rank=callback["rank"],
                any_type=True,
                options=_options(callback),
                callback_of=batch_id,
            )
    except (InvalidJob, EncryptionError):
        # The rules have changed since it was checked, or it was written by hand. The members have ended all the same, and
        # must be settled.
        logger.exception("batch %s ended, and its callback %s is refused", batch_id, name)
