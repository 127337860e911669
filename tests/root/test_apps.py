"""Which sites have their `tasks.py` imported: those whose TASKS names our backend, or one that is made of it."""

import pytest

from django_jobs import apps
from django_jobs.backends import JobsBackend


class Backend(JobsBackend):
    """A site's own."""


@pytest.mark.parametrize(
    ("path", "is_ours"),
    [
        ("django_jobs.backends.JobsBackend", True),
        (f"{__name__}.Backend", True),
        ("collections.Counter", False),
        ("django_jobs_of_another.Backend", False),
        ("nowhere.Backend", False),
        ("", False),
    ],
)
def test_a_backend_that_is_made_of_ours_is_ours(path: str, is_ours: bool) -> None:
    assert apps._is_ours(path) == is_ours
