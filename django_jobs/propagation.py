"""What a job carries from its submit to its run besides the payload: the trace it belongs to, when tracing is connected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
Follow = Callable[["Sequence[ClaimedJob]", Handler, list[Carrier]], Callable[..., Any]]

_give: Callable[[], Carrier] | None = None
_follow: Follow | None = None


def connect(give: Callable[[], Carrier] | None, follow: Follow | None) -> None:
    """Have `give()` say what a submit carries, and `follow(jobs, handler, carried)` make the function that runs in that trace.

    There are several jobs where a bulk handler runs a list, and what each of them carries, for those that carry something.
    """
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
    return _follow([job], handler, [carried]) if isinstance(carried, dict) else handler.function


def traced_list(jobs: Sequence[ClaimedJob], handler: Handler) -> Callable[..., Any]:
    """Return a bulk handler's function; one that runs it in a trace that leads to those of its jobs' submits, if any has one."""
    if _follow is None:
        return handler.function
    found = [decode(job.metadata_text).get(KEY) for job in jobs if f'"{KEY}"' in job.metadata_text]
    carried = [one for one in found if isinstance(one, dict)]
    return _follow(jobs, handler, carried) if carried else handler.function
