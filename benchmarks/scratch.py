"""A Django site with nothing but the library, for a measurement in one process, on a database that is gone afterwards."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import django
from django.conf import settings

from testproject.database import database_from_url


@contextmanager
def scratch_site(url: str | None) -> Iterator[None]:
    """Set Django up on a new database at `url` (None: a SQLite file in a temporary directory); say at the end how busy it was."""
    with tempfile.TemporaryDirectory() as directory:
        url = url or f"sqlite:///{directory}/scratch.sqlite3"
        settings.configure(
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_jobs"],
            DATABASES={"default": database_from_url(url)},
            USE_TZ=True,
        )
        django.setup()
        from tests.support.databases import created_database

        with created_database(url):
            yield
    print(f"load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
