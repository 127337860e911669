"""Alerts: who tells what, so that of any number of processes one does, and once an hour at most.

The claim commits before anything is sent. A process that is killed in between has told nothing: its claim lapses, and the next
look of any process tells it. One that is killed between sending and `told` has it told twice: rather that than never.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from django.db.models import F, Q
from django.db.models.functions import Coalesce

from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import retried, transactional
from django_jobs.models import Alert
from django_jobs.models.fields import DbNow

AGAIN = timedelta(hours=1)
CLAIM = timedelta(seconds=60)  # longer than any sending takes
KEPT = timedelta(days=30)
TURN = "turn"  # the key of the row by which processes take turns


@transactional
def claim_alert(key: str, text: str, since: datetime | None = None) -> bool:
    """Take it upon this process to tell something; return False when another one does, or it was told within the hour.

    Args:
        since: when it happened last; it is not told again for what was known then. None: it goes on.
    """
    told_before = Q(told_at__isnull=True) | Q(told_at__lt=DbNow() - AGAIN)
    if since is not None:
        told_before &= Q(told_at__isnull=True) | Q(told_at__lt=since)
    return _claim(key, told_before, CLAIM, text)


@transactional
def take_turn(every: timedelta) -> bool:
    """Return whether this process is the one to look for what is to be told: one does in so much time."""
    return _claim(TURN, Q(), every, "")


def _claim(key: str, condition: Q, lasts: timedelta, text: str) -> bool:
    is_free = Q(claimed_at__isnull=True) | Q(claimed_at__lt=DbNow() - lasts)
    row = Alert.objects.filter(condition, is_free, key=key)
    if row.update(claimed_at=DbNow(), text=text):
        return True
    if Alert.objects.filter(key=key).exists():
        return False
    Alert.objects.bulk_create([Alert(key=key)], ignore_conflicts=True)
    return row.update(claimed_at=DbNow(), text=text) == 1


@retried
def told(keys: Collection[str]) -> None:
    """Record that what this process has claimed was sent: what was known at the claim."""
    # In this order: MariaDB sets one column after the other.
    Alert.objects.filter(key__in=keys).update(told_at=Coalesce(F("claimed_at"), DbNow()), claimed_at=None)


@retried
def forget_told() -> None:
    """Delete what was told a month ago or earlier."""
    Alert.objects.filter(told_at__lt=DbNow() - KEPT)._raw_delete(jobs_alias())
