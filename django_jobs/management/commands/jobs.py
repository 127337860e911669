"""`manage.py jobs`: submit, inspect and operate jobs from the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_connection, on_database
from django_jobs.db.server import missing_migrations
from django_jobs.exceptions import JobsError
from django_jobs.management.jobs import (
    adopt,
    alerts,
    batches,
    dead_letters,
    events,
    graph,
    health,
    jobs,
    limits,
    maintenance,
    operations,
    queues,
    schedules,
    submit,
    transfer,
)
from django_jobs.management.jobs.databases import run_verb
from django_jobs.management.jobs.output import Output, clean, problems_of
from django_jobs.management.jobs.verbs import HelpFormatter, Verbs
from django_jobs.text import shown

EXIT_INTERRUPTED = 130


class Command(BaseCommand):
    """Take a verb and run it. Errors are one line each on stderr; exit code 1 when refused, 2 for wrong usage."""

    help = "Submit, inspect and operate background jobs. `manage.py jobs VERB --help` has examples."
    requires_system_checks = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Run from the command line; what the terminal's encoding lacks is written as escapes."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        super().run_from_argv(argv)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = HelpFormatter  # not by create_parser(): django-configurations has one without keywords
        verbs = Verbs(parser)
        groups = (
            submit, jobs, graph, batches, events, queues, limits, dead_letters, operations, schedules, transfer, adopt,
            maintenance, health, alerts,
        )  # fmt: skip
        for group in groups:
            group.add(verbs)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the verb; on the command line, print what was refused without the name of an exception class."""
        out = Output(self.stdout, self.stderr, as_json=options.get("as_json", False), yes=options.get("yes", False))
        try:
            with on_database(options.get("database")), _command_errors():
                get_settings()  # every verb refuses wrong settings, whether it needs one or not
                get_user_model()  # and a site without users, whom dead letters refer to
                run_verb(options, out)
        except CommandError as error:
            if not getattr(self, "_called_from_command_line", False) or options.get("traceback"):
                raise
            for line in str(error).splitlines() or ["refused"]:
                self.stderr.write(clean(line))
            sys.exit(error.returncode)


@contextmanager
def _command_errors() -> Iterator[None]:
    """Turn what our API and the database refuse into a CommandError."""
    try:
        yield
    except JobsError as error:
        raise CommandError("\n".join(problems_of(error))) from error
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        raise CommandError(_database_problem(error)) from error
    except UnicodeEncodeError as error:
        # Bytes of an argument that are no UTF-8 have become surrogates, which no driver takes.
        raise CommandError(f"{shown(error.object)} is not text in UTF-8, as all names, ids and keys are") from error
    except KeyboardInterrupt:
        raise CommandError("interrupted", returncode=EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. What is left to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _database_problem(error: DatabaseError) -> str:
    """Say in one line why the database refused."""
    connection = jobs_connection()
    first = " ".join(str(error).split()) or type(error).__name__
    try:
        missing = missing_migrations()
    except DatabaseError:
        return f"the database {connection.alias!r} cannot be used: {first}"
    finally:
        connection.close()
    if missing:
        return f"the database {connection.alias!r} lacks {', '.join(missing)}: run manage.py migrate"
    return f"the database {connection.alias!r} refused: {first}"
