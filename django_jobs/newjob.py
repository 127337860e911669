"""A job that is not submitted yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NewJob:
    """A job for `submit_many`: the arguments of `submit()`, kept until then."""

    __slots__ = ("job_type", "options", "payload")

    def __init__(self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.job_type = job_type
        self.payload = payload
        self.options = options

    def __repr__(self) -> str:
        return f"NewJob({self.job_type!r}, job_id={self.options.get('job_id')!r})"
