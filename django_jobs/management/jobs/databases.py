"""Run a verb on the databases that it is about: the named one, each, that of a submit, or those that have its rows."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from django_jobs.conf import get_settings
from django_jobs.db.connections import database_of_submit, use_database
from django_jobs.exceptions import JobsError

from .output import Output, UsageError, problems_of
from .verbs import EACH, SUBMIT, Named


def run_verb(options: dict[str, Any], out: Output) -> None:
    """Run the verb that the options choose."""
    databases, over = get_settings().DATABASES, options["over"]
    if options["database"] is not None:
        with use_database(options["database"]):
            options["function"](options, out)
    elif databases is None or over is None:
        options["function"](options, out)
    elif over == SUBMIT:
        with database_of_submit():
            options["function"](options, out)
    elif over == EACH:
        _run_on_each(dict.fromkeys(databases, options), out)
    elif keys := over.keys(options):
        _run_on_each(_where(over, keys, options, databases), out)
    else:
        options["function"](options, out)


def _where(over: Named, keys: list[str], options: dict[str, Any], databases: tuple[str, ...]) -> dict[str, Any]:
    """Return the options for each database that has rows which the verb names; the last one has what none of them knows."""
    found: dict[str, list[str]] = {}
    left = list(dict.fromkeys(keys))
    for database in databases:
        with use_database(database):
            known = over.known(keys)
        if known - {*left}:
            raise UsageError(f"{sorted(known - {*left})[0]!r} is in several databases; give --database")
        found[database] = [key for key in left if key in known]
        left = [key for key in left if key not in known]
    found = {database: some for database, some in found.items() if some} or {databases[0]: []}
    found[[*found][-1]] += left
    return {database: over.narrowed(options, some) for database, some in found.items()}


def _run_on_each(options_of: dict[str, dict[str, Any]], out: Output) -> None:
    """Run the verb on each database; then refuse what any of them refused, with the name of the database."""
    refused: list[str] = []
    code = 1
    for database, options in options_of.items():
        out.begin(database, is_alone=len(options_of) == 1)
        try:
            with use_database(database):
                options["function"](options, out)
        except (CommandError, JobsError) as error:
            lines = problems_of(error) if isinstance(error, JobsError) else str(error).splitlines()
            refused += [f"database {database!r}: {line}" for line in lines]
            code = getattr(error, "returncode", 1)
    if refused:
        raise CommandError("\n".join(refused), returncode=code)
