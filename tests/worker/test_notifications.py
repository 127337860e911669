"""Notifications that anybody with a session can send: of no queue, of thousands, of other processes (PostgreSQL)."""

import pytest
from django.db import connection

from django_jobs.db import notify
from django_jobs.lifecycle import turns
from django_jobs.worker import poller

from .conftest import Bench

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql")]

ODD = ("", " ", "default ", "no queue", "x" * 7_999, "\u202e", "'; DROP TABLE x; --", "%s", "\x01", "[]", "1" * 80)


def _notify(channel: str, payloads: str) -> None:
    """Notify of each text that a query gives."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(pg_notify(%s, payload)) FROM ({payloads}) AS given(payload)", (channel,))


def test_any_text_on_any_channel_is_passed_over(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    process = bench.start(threads=2)
    bench.handle("t", lambda payload: None)
    assert bench.submit("t").wait(60).status == "completed"
    for channel in (notify.WORK_CHANNEL, notify.PROCESS_CHANNEL, notify.FINISHED_CHANNEL):
        for text in ODD:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, %s)", (channel, text))
    assert [bench.submit("t", queue=queue).wait(60).status for queue in ("default", "other")] == ["completed"] * 2
    assert not process.is_stopping
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_names_of_thousands_of_queues_are_neither_all_asked_nor_kept(bench: Bench) -> None:
    """Each name once was a claim, and was kept for as long as the process lived."""
    process = bench.start(threads=1)
    bench.handle("t", lambda payload: None)
    for _ in range(3):
        _notify(notify.WORK_CHANNEL, "SELECT 'queue ' || random() FROM generate_series(1, 5000)")
        assert bench.submit("t").wait(60).status == "completed"
    (kind,) = process.state.pollers._all()
    assert len(kind._named) <= poller.MOST_NAMED + 1
    assert len(process.state.pollers.marks._claims) < 1_000
    assert len(turns._known._of) <= turns.MOST_KNOWN
