"""System checks of the TASKS setting, for each alias whose backend is one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error

from django_jobs.db.connections import check_holds_jobs
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import check_handler_options
from django_jobs.names import did_you_mean, queue_problem
from django_jobs.text import shown

from .options import BACKEND_OPTIONS

if TYPE_CHECKING:
    from django_jobs.compat import BaseTaskBackend


def check_backend(backend: BaseTaskBackend) -> Iterator[CheckMessage]:
    """Name each mistake in one alias of TASKS."""
    if not apps.is_installed("django_jobs"):
        yield Error(
            f"TASKS[{backend.alias!r}] uses django_jobs, which is not installed.",
            hint="Add 'django_jobs' to INSTALLED_APPS and run migrate.",
            id="django_jobs.tasks.E001",
        )
    yield from _check_queues(backend.alias)
    yield from _check_options(backend)


def _check_queues(alias: str) -> Iterator[CheckMessage]:
    queues: Any = settings.TASKS[alias].get("QUEUES", [])
    where = f"TASKS[{alias!r}]['QUEUES']"
    if isinstance(queues, str):
        yield Error(
            f"{where} is a string, and so it allows one queue for each of its characters.",
            hint=f"Give a list: [{queues!r}].",
            id="django_jobs.tasks.E002",
        )
        return
    for name in queues:
        if problem := queue_problem(name):
            yield Error(f"{where}: {problem}.", hint="Give the queue another name.", id="django_jobs.tasks.E003")


def _check_database(where: str, value: Any) -> Iterator[CheckMessage]:
    try:
        check_holds_jobs(value)
    except InvalidJob as error:
        yield Error(f"{where}: {error}.", hint="Correct it, or leave it out.", id="django_jobs.tasks.E005")


def _check_options(backend: BaseTaskBackend) -> Iterator[CheckMessage]:
    where = f"TASKS[{backend.alias!r}]['OPTIONS']"
    known: dict[str, Any] = {}
    if not isinstance(backend.options, Mapping):
        yield Error(f"{where} must be a dict, not {shown(backend.options)}.", id="django_jobs.tasks.E005")
        return
    for name, value in backend.options.items():
        if name in BACKEND_OPTIONS:
            known[name] = value
        elif name == "using":
            yield from _check_database(where, value)
        else:
            options = (*BACKEND_OPTIONS, "using")
            hint = did_you_mean(name, options).strip() or f"The options are: {', '.join(options)}."
            yield Error(f"{where} has an unknown option {name!r}.", hint=hint, id="django_jobs.tasks.E004")
    failure = known.pop("on_dependency_failure", None)
    problems = [] if failure in (None, "fail", "run") else [f"on_dependency_failure={failure!r}: give 'fail' or 'run'"]
    try:
        check_handler_options(lambda: None, "check", known)
    except InvalidJob as error:
        problems += error.problems
    for problem in problems:
        yield Error(f"{where}: {problem}.", hint="Correct it, or leave it out.", id="django_jobs.tasks.E005")
