"""Queues: who is told when one is resumed."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from django.db import transaction

from django_jobs.db import notify
from django_jobs.lifecycle.queues import pause, resume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    """Listen as a worker process of this very process does."""
    heard: list[tuple[str, str]] = []
    ends = [
        notify.listen_in_process(lambda queue: heard.append(("work", queue))),
        notify.old_in_process(lambda queue: heard.append(("old", queue))),
    ]
    yield heard
    for end in ends:
        end()


def test_a_resume_wakes_the_workers_of_this_process_and_lets_them_look_behind_their_marks(
    told: list[tuple[str, str]],
) -> None:
    pause("mail")
    assert told == []
    with transaction.atomic():
        resume("mail")
        assert told == [], "not before the commit"
    assert sorted(told) == [("old", "mail"), ("work", "mail")]


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("channel", [notify.OLD_CHANNEL, notify.WORK_CHANNEL])
def test_a_resume_notifies_the_workers_of_other_processes(channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_last", {})  # of a test that has resumed it a moment ago
    pause("mail")
    with closing(notify.Subscription(channel)) as subscription:
        resume("mail")
        assert [*subscription.wait(60)] == [(channel, "mail")]
