"""`manage.py jobs`: submit, look at and operate jobs from the command line."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob, JobsError
from django_jobs.lifecycle.readiness import missing_migrations
from django_jobs.lifecycle.transactions import jobs_alias, use_database
from django_jobs.management.jobs import files, health, letters, look, operate, schedules, state, submit
from django_jobs.management.jobs.output import Output, clean
from django_jobs.management.jobs.verbs import HelpFormatter, Verbs

EXIT_INTERRUPTED = 130


class Command(BaseCommand):
    """Take a verb and run it. Errors are one line each on stderr; exit code 1 when refused, 2 for wrong usage."""

    help = "Submit, look at and operate background jobs. `manage.py jobs VERB --help` has examples."
    requires_system_checks = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, formatter_class=HelpFormatter, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = Verbs(parser)
        for group in (submit, look, operate, letters, schedules, files, state, health):
            group.add(verbs)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the verb; on the command line, say what was refused without the name of an exception class."""
        try:
            self._run(options)
        except CommandError as error:
            if not getattr(self, "_called_from_command_line", False) or options.get("traceback"):
                raise
            for line in str(error).splitlines() or ["refused"]:
                self.stderr.write(clean(line))
            sys.exit(error.returncode)

    def _run(self, options: dict[str, Any]) -> None:
        """Run the verb; what our API and the database refuse becomes a CommandError."""
        out = Output(self.stdout, self.stderr, as_json=options.get("as_json", False), yes=options.get("yes", False))
        try:
            get_settings()  # wrong settings are told by every verb, whether it asks for one or not
            with use_database(options.get("database")):
                options["function"](options, out)
        except InvalidJob as error:
            raise CommandError("\n".join(error.problems)) from error
        except (JobsError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(_database_problem(error, options.get("database"))) from error
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. What is left to flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _database_problem(error: DatabaseError, database: str | None) -> str:
    """Say in one line why the database refused."""
    alias = database or jobs_alias()
    first = " ".join(str(error).split()) or type(error).__name__
    try:
        missing = missing_migrations(alias)
    except DatabaseError:
        return f"the database {alias!r} cannot be used: {first}"
    finally:
        connections[alias].close()
    if missing:
        return f"the database {alias!r} lacks {', '.join(missing)}: run manage.py migrate"
    return f"the database {alias!r} refused: {first}"
