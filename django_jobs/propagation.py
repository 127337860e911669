"""What a job carries from its submit to its run besides the payload: the trace it belongs to, when tracing is connected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler
from django_jobs.payloads import decode, encode_payload
from django_jobs.submission import Submission

if TYPE_CHECKING:
    from django_jobs.lifecycle.claim import ClaimedJob

KEY = "trace"  # in the job's metadata
Carrier = dict[str, str]

_give: Callable[[], Carrier] | None = None
_follow: Callable[[ClaimedJob, Handler, Carrier], Callable[..., Any]] | None = None


def connect(
    give: Callable[[], Carrier] | None, follow: Callable[[ClaimedJob, Handler, Carrier], Callable[..., Any]] | None
) -> None:
    """Have `give()` say what a submit carries, and `follow(job, handler, carried)` make the function that runs in that trace."""
    global _give, _follow
    _give, _follow = give, follow


def with_trace(submission: Submission) -> Submission:
    """Return the submission with what it carries in its metadata; as it is when nothing is to be carried."""
    carried = _give() if _give is not None else None
    if not carried:
        return submission
    metadata = decode(submission.metadata)
    metadata.setdefault(KEY, carried)
    try:
        return replace(submission, metadata=encode_payload(metadata))
    except InvalidJob:  # metadata at the limit of their size: the job matters more
        return submission


def traced(job: ClaimedJob, handler: Handler) -> Callable[..., Any]:
    """Return the handler's function; one that runs it in the trace of the job's submit, when the job carries one."""
    if _follow is None or f'"{KEY}"' not in job.metadata_text:
        return handler.function
    carried = decode(job.metadata_text).get(KEY)
    return _follow(job, handler, carried) if isinstance(carried, dict) else handler.function
