"""Who did it: the user that a dead letter refers to."""

from __future__ import annotations

from typing import Any

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_alias


def known_here(user: Any) -> Any:
    """Return a user that rows of this database may refer to; None in the place of one of another database.

    Where a site has several databases with jobs, its users are in one of them, and the admin's log says who it was.
    """
    if user is None or get_settings().DATABASES is None:
        return user
    state = getattr(user, "_state", None)
    return user if state is None or state.db == jobs_alias() else None
