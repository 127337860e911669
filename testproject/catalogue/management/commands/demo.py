"""`manage.py demo`: catalogue a folder with real jobs in this process, report, and open the admin on the result."""

import argparse
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import django
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, connections
from django.urls import reverse

import django_jobs
from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.models import JobStatus
from django_jobs.worker.process import Process
from django_jobs.worker.thread import start_workers
from testproject.catalogue.models import Scan
from testproject.catalogue.progress import Progress, read_progress, report_lines
from testproject.database import database_from_url

PORT = 8000
NAME = PASSWORD = "demo"


class Command(BaseCommand):
    """Scan a folder, run the workers until its report is there, print it."""

    help = "Catalogue the source files of a folder with background jobs, and report. Nothing has to be set up before."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", nargs="?", metavar="FOLDER", help="what to scan (default: the installed Django)")
        parser.add_argument(
            "--threads", type=_positive, default=get_settings().THREADS, help="worker threads (default: %(default)s)"
        )
        parser.add_argument(
            "--serve",
            type=_port,
            nargs="?",
            const=PORT,
            metavar="PORT",
            help="then open the admin, with workers running; without FOLDER on the last scan, if there is one",
        )
        parser.add_argument("--database-file", metavar="FILE", help="SQLite file to use (default: demo.sqlite3)")

    def handle(self, *args: Any, **options: Any) -> None:
        folder = Path(options["folder"] or django.__path__[0]).resolve()
        if not folder.is_dir():
            raise CommandError(f"{options['folder']} is not a folder")
        if options["database_file"]:
            _use_sqlite(Path(options["database_file"]).resolve())
        if options["verbosity"] < 2:
            # A line for each retry and each death is what a site wants; here the report counts them.
            logging.getLogger("django_jobs").addFilter(lambda record: not hasattr(record, "job_id"))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        call_command("migrate", verbosity=0, interactive=False)
        _make_user()
        try:
            with _workers(options["threads"]) as workers:
                if options["folder"] or options["serve"] is None or not Scan.objects.exists():
                    self._catalogue(folder, workers, options["threads"])
                if options["serve"] is not None:
                    self._serve(options["serve"])
        except KeyboardInterrupt:
            self.stdout.write(
                "\nStopped. Jobs that are left stay in the database; runworkers or the next demo runs them."
            )
            sys.exit(130)
        if options["serve"] is None:
            command = ["manage.py", "demo", "--serve"]
            if options["database_file"]:
                command += ["--database-file", options["database_file"]]
            self.stdout.write("Open the admin, to look at the jobs and to replay or acknowledge the dead letters:")
            self.stdout.write(f"  {shlex.join([sys.executable, *command])}  (user {NAME}, password {PASSWORD})")

    def _catalogue(self, folder: Path, workers: Process, threads: int) -> None:
        """Submit a scan, show its progress until its report is written, and print that."""
        database = connection.settings_dict["NAME"]
        self.stdout.write(f"Cataloguing {folder} with {threads} worker threads; database: {database}")
        began = time.monotonic()
        try:
            scan_job = django_jobs.submit("catalogue.scan", {"folder": str(folder)})
        except InvalidJob as error:
            raise CommandError(str(error)) from None
        shown = _Shown(self.stdout)
        while not (progress := read_progress(scan_job)).is_over:
            if workers.is_stopping or not workers.workers():
                raise CommandError("the workers stopped; run the demo again to go on")
            shown.progress(progress, time.monotonic() - began)
            workers.state.wait_until_stopping(shown.pause)
        seconds = time.monotonic() - began
        shown.last(progress, seconds)
        if scan_job.status != JobStatus.COMPLETED:
            raise CommandError(f"the scan is {scan_job.status}: {scan_job.error}")
        scan = Scan.objects.get(job_id=scan_job.pk)
        self.stdout.write("\n".join(["", *report_lines(scan, scan_job, progress, seconds), ""]))

    def _serve(self, port: int) -> None:
        """Run the development server on this machine only."""
        self.stdout.write(
            f"The admin: http://127.0.0.1:{port}{reverse('admin:index')}  user {NAME}, password {PASSWORD}"
        )
        self.stdout.write("The workers go on: what you replay there is run. Ctrl-C ends it.")
        self.stdout.flush()
        call_command("runserver", f"127.0.0.1:{port}", use_reloader=False)


def _make_user() -> None:
    """Let somebody log in to the admin, also by a `runserver` of his own: a superuser whose password is printed."""
    user, _ = get_user_model().objects.get_or_create(
        username=NAME, defaults={"is_staff": True, "is_superuser": True, "email": "demo@localhost"}
    )
    user.set_password(PASSWORD)
    user.save()


class _Shown:
    """The progress: one line that is written anew on a terminal, a plain line now and then elsewhere."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._is_live = out.isatty()
        self.pause = 0.2 if self._is_live else 0.5
        self._next = 0.0

    def progress(self, progress: Progress, seconds: float) -> None:
        """Show how far it is."""
        if self._is_live:
            self._out.write(f"\r\x1b[K{progress.line(seconds)}", ending="")
        elif seconds >= self._next:
            self._out.write(progress.line(seconds))
            self._next = seconds + 2
        self._out.flush()

    def last(self, progress: Progress, seconds: float) -> None:
        """Show the end, and leave it there."""
        self._next = 0.0
        self.progress(progress, seconds)
        if self._is_live:
            self._out.write("")


@contextmanager
def _workers(threads: int) -> Iterator[Process]:
    """Run worker threads in this process, and stop them in order."""
    process = Process(threads=threads)
    start_workers(process)
    try:
        yield process
    finally:
        process.stop()


def _use_sqlite(file: Path) -> None:
    """Make an SQLite file the database of this process, its new threads and its subprocesses."""
    os.environ["DATABASE_URL"] = url = f"sqlite:///{quote(str(file))}"
    connections.close_all()
    connections.settings["default"] = connections.configure_settings({"default": database_from_url(url)})["default"]
    with suppress(AttributeError):  # this thread may not have one yet
        del connections["default"]


def _positive(text: str) -> int:
    return _integer(text, 1, 1000)


def _port(text: str) -> int:
    return _integer(text, 1, 65535)


def _integer(text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and low <= int(text) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give an integer from {low} to {high}")
