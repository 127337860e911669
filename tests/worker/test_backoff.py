"""An outage is logged once a minute, however it flickers; and the listener of notifications lives through it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from django.db import Error, OperationalError, connections

from django_jobs.db import notify
from django_jobs.worker import backoff
from django_jobs.worker.backoff import OutageBackoff


@contextmanager
def _time_goes_by() -> Iterator[list[float]]:
    """Replace the clock by one that the test sets."""
    clock = [1000.0]
    with mock.patch.object(backoff, "time", mock.Mock(monotonic=lambda: clock[0])):
        yield clock


def test_an_outage_that_flickers_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "django_jobs")
    outage = OutageBackoff()
    with _time_goes_by() as clock:
        for _ in range(100):
            outage.after(OperationalError("server closed the connection"))
            clock[0] += 0.5
            outage.over()
        assert len(caplog.messages) == 1
        clock[0] += 15
        outage.after(OperationalError("server closed the connection"))
        clock[0] += 20
        outage.over()
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "the database cannot be used",
        "the database cannot be used",
        "the database is back after 20 seconds",
    ]


@pytest.mark.databases("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_server_that_refuses_connections_is_an_error_that_the_listener_expects() -> None:
    settings = connections["default"].settings_dict
    with mock.patch.dict(settings, PORT="1"), pytest.raises(Error):
        notify.Subscription(notify.WORK_CHANNEL)


def test_rests_grow_while_it_lasts_and_are_short_again_afterwards() -> None:
    outage = OutageBackoff()
    rests = [outage.after(OperationalError("gone")) for _ in range(20)]
    assert backoff.FIRST_PAUSE / 2 <= rests[0] <= backoff.FIRST_PAUSE
    assert rests[-1] >= backoff.LONGEST_PAUSE / 2
    outage.over()
    assert outage.after(OperationalError("gone")) <= backoff.FIRST_PAUSE
