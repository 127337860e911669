"""A MariaDB primary that fails over to its replica under load, and an address that is moved from one to the other."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection

from django_jobs.models import Attempt, Job
from tests.support.address import Address, address
from tests.support.databases import create_database, default_database_at, migrate, new_url
from tests.support.invariants import check_drained
from tests.support.mariadb_replica import ReplicatedMariaDB, sequence
from tests.support.waiting import wait_until

from .test_failover import GOAL, drain, first_new_job, load, lose_what_was_not_received

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


@pytest.mark.parametrize("servers", ["semi-synchronous"], indirect=True)
def test_a_semi_synchronous_replica_loses_nothing_that_was_acknowledged(servers: Servers) -> None:
    primary, replica, there = servers
    with load(_written) as (workers, producer):
        primary.kill()
        replica.promote()
        there.move(replica.port)
        seconds = first_new_job(time.monotonic())
        count = len(producer.acknowledged)
        wait_until(lambda: len(producer.acknowledged) > count + 100, 60, "jobs submitted to the new primary")
        producer.__exit__()
        drain(workers)
    acknowledged = len(producer.acknowledged)
    print(f"\nsemi-synchronous: {acknowledged} acknowledged, none lost; first new job after {seconds:.1f} s")
    check_drained(producer.acknowledged, output=workers.output())
    assert [*Job.objects.exclude(status="completed")] == []
    assert not Attempt.objects.filter(outcome="crashed").exists(), "nobody who lives was rescued"
    assert seconds < GOAL


@pytest.mark.parametrize("servers", ["asynchronous"], indirect=True)
def test_an_asynchronous_replica_loses_only_what_it_had_not_received(servers: Servers) -> None:
    primary, replica, there = servers

    def take_over() -> None:
        replica.promote()
        there.move(replica.port)

    lose_what_was_not_received(_written, replica.stop_receiving, primary.kill, take_over)
