"""Connections of a worker process notice a peer that is silent before the lease is over; the site's own options win."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections

from django_jobs.db.connections import discard_connection
from django_jobs.lifecycle import leases
from tests.support.in_process import running_process

pytestmark = [pytest.mark.django_db(transaction=True)]


@pytest.fixture
def options() -> Iterator[dict[str, Any]]:
    """Give the database's options, as the site may have set them, and put them back in the end."""
    settings = connections.settings["default"]
    before = settings["OPTIONS"]
    settings["OPTIONS"] = dict(before)
    yield settings["OPTIONS"]
    settings["OPTIONS"] = before
    discard_connection()


def _server_says(name: str) -> str:
    with connections["default"].cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchone()[0])


@pytest.mark.databases("postgresql")
def test_both_ends_give_up_a_silent_peer_before_the_lease_of_a_minute_is_over(options: dict[str, Any]) -> None:
    leases.limit_silence()
    leases.prepare_connection("p")
    said = connections["default"].connection.info.get_parameters()  # type: ignore[union-attr]
    names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "connect_timeout")
    assert [said[name] for name in names] == ["15", "7", "3", "45000", "10"]
    assert [_server_says(f"tcp_{name}") for name in ("keepalives_idle", "keepalives_interval")] == ["15", "7"]
    assert (_server_says("tcp_keepalives_count"), _server_says("tcp_user_timeout")) == ("3", "45000")


@pytest.mark.databases("postgresql")
def test_what_the_site_says_of_silence_stays(options: dict[str, Any]) -> None:
    options.update({"tcp_user_timeout": 1234, "options": "-c tcp_user_timeout=4321"})
    leases.limit_silence()
    leases.prepare_connection("p")
    assert connections["default"].connection.info.get_parameters()["tcp_user_timeout"] == "1234"  # type: ignore[union-attr]
    assert _server_says("tcp_user_timeout") == "4321"


def test_a_worker_process_runs_with_these_options(options: dict[str, Any]) -> None:
    leases.limit_silence()
    with running_process() as process:
        assert process.state.backoff.count == 0
