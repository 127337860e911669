"""A job that is not submitted yet, and what may be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    from .models import Job


class SubmitOptions(TypedDict, total=False):
    """The keywords of `submit()`, for type checkers; None stands for "not said"."""

    priority: int | None
    scheduled_at: datetime | None
    delay: timedelta | float | None
    depends_on: Iterable[str | Job] | None
    max_retries: int | None
    timeout_seconds: float | None
    metadata: Mapping[str, Any] | None
    unique_key: str | None
    job_id: str | None
    queue: str | None
    on_dependency_failure: Literal["fail", "run"] | None


class NewJob:
    """A job for `submit_many`: the arguments of `submit()`, kept until then."""

    __slots__ = ("job_type", "options", "payload")

    def __init__(
        self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> None:
        self.job_type = job_type
        self.payload = payload
        self.options: Mapping[str, Any] = options

    def __repr__(self) -> str:
        return f"NewJob({self.job_type!r}, job_id={self.options.get('job_id')!r})"
