"""A MariaDB primary that fails over to its replica under load, and an address that is moved from one to the other."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection

from tests.support.address import Address, address
from tests.support.databases import create_database, default_database_at, migrate, new_url
from tests.support.mariadb_replica import ReplicatedMariaDB, sequence

from .test_failover import lose_what_was_not_received

pytestmark = pytest.mark.fault
Servers = tuple[ReplicatedMariaDB, ReplicatedMariaDB, Address]


def _written() -> int:
    """Return the number of this session's last transaction in the server's log."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@last_gtid")
        return sequence(cursor.fetchone()[0])


@pytest.fixture
def servers(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[Servers]:
    """Give a primary, its replica, and the address of whichever takes writes, which is `default`, migrated."""
    semi = request.param == "semi-synchronous"
    with ExitStack() as stack:
        primary = stack.enter_context(ReplicatedMariaDB(semi_synchronous=semi))
        replica = stack.enter_context(ReplicatedMariaDB(semi_synchronous=semi))
        replica.follow(primary)
        stack.enter_context(django_db_blocker.unblock())
        url = new_url("mariadb", tmp_path, primary.url)
        create_database(url)
        there = stack.enter_context(address(primary.port))
        moving = urlunsplit(urlsplit(url)._replace(netloc=f"root@127.0.0.1:{there.port}"))
        stack.enter_context(default_database_at(moving))
        migrate()
        yield primary, replica, there


@pytest.mark.parametrize("servers", ["asynchronous"], indirect=True)
def test_an_asynchronous_replica_loses_only_what_it_had_not_received(servers: Servers) -> None:
    primary, replica, there = servers

    def take_over() -> None:
        replica.promote()
        there.move(replica.port)

    lose_what_was_not_received(_written, replica.stop_receiving, primary.kill, take_over)
