"""`manage.py runworkers`: run jobs until told to stop, or until none is left."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_databases
from django_jobs.names import did_you_mean, queue_problem
from django_jobs.worker.child.main import run_isolated
from django_jobs.worker.child.start import remember_program, restore_environment
from django_jobs.worker.cli import (
    Options,
    StopSignals,
    begin_lifeline,
    check_ready,
    run_alone,
    run_reloading,
    run_supervised,
)
from django_jobs.worker.several import check_all_ready, run_several


class Command(BaseCommand):
    """Start worker threads, in this process or in several supervised ones."""

    help = "Run background jobs. Ctrl-C or SIGTERM finishes what runs and hands the rest back."
    requires_migrations_checks = False
    _signals: StopSignals | None = None  # set where the command line of this process called the command

    def add_arguments(self, parser: CommandParser) -> None:
        # The settings are read in handle(): wrong ones are for the system checks to report, which run in between.
        parser.add_argument("--queues", type=_queues, metavar="A,B", help="queues to run, by commas (default: all)")
        parser.add_argument(
            "--databases", type=_words, metavar="A,B", help="databases to serve (default: all of the setting DATABASES)"
        )
        parser.add_argument("--threads", type=_positive, help="threads per process (default: the setting THREADS)")
        parser.add_argument("--processes", type=_positive, help="run this many processes under a supervisor")
        parser.add_argument("--drain", action="store_true", help="exit when nothing is left that is due")
        parser.add_argument("--poll-interval", type=_seconds, help="seconds between looks at an idle database")
        parser.add_argument("--max-jobs", type=_positive, help="recycle after this many jobs")
        parser.add_argument("--max-rss", type=_positive, metavar="MB", help="recycle above this memory")
        parser.add_argument("--reload", action="store_true", help="start anew when code changes (for development)")
        # How a process of ours starts another one: the descriptor of the line between them.
        parser.add_argument("--supervised", type=int, help=argparse.SUPPRESS)
        parser.add_argument("--isolated", type=int, help=argparse.SUPPRESS)

    def run_from_argv(self, argv: list[str]) -> None:
        """Handle signals from here on: the checks that come before the work take their time."""
        with StopSignals(is_program=True) as self._signals:
            remember_program(argv)
            super().run_from_argv(argv)

    def handle(self, *args: Any, **given: Any) -> None:
        restore_environment()
        if given["isolated"] is not None:
            run_isolated(given["isolated"])
        settings = get_settings()
        options = Options(
            queues=given["queues"],
            threads=given["threads"] or settings.THREADS,
            processes=given["processes"],
            drain=given["drain"],
            poll_interval=given["poll_interval"],
            max_jobs=given["max_jobs"] or settings.MAX_JOBS,
            max_rss=given["max_rss"],
            supervised=given["supervised"],
            databases=_databases(given["databases"]),
        )
        if self._signals is not None:
            self._run(options, self._signals, with_reloader=given["reload"])
        else:
            with StopSignals(is_program=False) as signals:
                self._run(options, signals, with_reloader=given["reload"])

    def _run(self, options: Options, signals: StopSignals, *, with_reloader: bool) -> None:
        is_several = options.databases is not None and len(options.databases) > 1
        lifeline = begin_lifeline(options)
        if is_several:
            check_all_ready(options, signals)
        else:
            check_ready(options, signals, lifeline)
        run = partial(run_several if is_several else run_alone, options, signals, lifeline, self.stdout)
        if with_reloader:
            run_reloading(run, signals)
        elif options.processes is not None:
            run_supervised(options, signals)
        else:
            run()


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r}: give an integer from 1 to 10000")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds from 0.001 to 3600")
    return value


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _databases(given: list[str] | None) -> tuple[str, ...] | None:
    """Return the databases to serve, None for that of the routers where the site names none; exit 2 for others."""
    if given is None:
        return get_settings().DATABASES
    known = jobs_databases()
    if unknown := [alias for alias in given if alias not in known]:
        message = (
            f"--databases: {unknown[0]!r} holds no jobs.{did_you_mean(unknown[0], known)} Known: {', '.join(known)}."
        )
        raise CommandError(message, returncode=2)
    return tuple(dict.fromkeys(given))


def _queues(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        problem = queue_problem(name)
        if problem:
            raise argparse.ArgumentTypeError(problem)
    return sorted(set(names))
