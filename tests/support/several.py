"""Further databases beside the one under test, each with an alias in this process and its subprocesses."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from django.core.management import call_command
from django.db import connections

from testproject.database import database_from_url

from .databases import create_database, drop_database

VARIABLE = "MORE_DATABASES"  # which the settings of the test project read


@contextmanager
def more_databases(urls: Mapping[str, str], *, migrated: bool = True) -> Iterator[dict[str, str]]:
    """Create a database for each alias, and drop it in the end; give the environment in which subprocesses know them."""
    with ExitStack() as stack:
        for alias, url in urls.items():
            stack.enter_context(_database(alias, url))
            if migrated:
                call_command("migrate", database=alias, verbosity=0, interactive=False, run_syncdb=True)
        yield {VARIABLE: json.dumps(dict(urls))}


@contextmanager
def _database(alias: str, url: str) -> Iterator[None]:
    create_database(url)
    try:
        with known_as(alias, url):
            yield
    finally:
        drop_database(url)


@contextmanager
def known_as(alias: str, url: str) -> Iterator[None]:
    """Give a database an alias in this process until the block ends."""
    connections.settings[alias] = connections.configure_settings({alias: database_from_url(url), "default": {}})[alias]
    try:
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]
