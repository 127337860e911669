"""Let time go by for jobs and schedules, without waiting and without changing a clock."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import DateTimeField, F

from django_jobs.db.connections import on_database
from django_jobs.models import (
    Attempt,
    Batch,
    DeadLetter,
    Event,
    Job,
    JobStep,
    LimitSlot,
    LimitStart,
    LimitTurn,
    Queue,
    Schedule,
    ScheduleTick,
)
from django_jobs.scheduling.ticks import tick

from .assertions import databases_of_test


def advance_time(delta: timedelta) -> None:
    """Let `delta` go by for jobs, schedules and rates: every time in their rows moves back by it, and what was to come is due.

    The clock stays as it is. Raises ValueError for a negative time.
    """
    if delta < timedelta(0):
        raise ValueError("time goes forward only")
    for database in databases_of_test():
        with on_database(database):
            _advance(delta)


def _advance(delta: timedelta) -> None:
    limits = (LimitSlot, LimitStart, LimitTurn)
    for model in (Job, JobStep, Event, Attempt, Batch, DeadLetter, Schedule, Queue, *limits):
        times = [field.name for field in model._meta.concrete_fields if isinstance(field, DateTimeField)]
        model._default_manager.update(**{name: F(name) - delta for name in times})
    ticks = ScheduleTick.objects.order_by("due_at").values_list("pk", flat=True)
    for pk in list(ticks):  # one by one: the time of a tick is unique
        ScheduleTick.objects.filter(pk=pk).update(due_at=F("due_at") - delta)


def tick_schedules() -> list[Job]:
    """Submit the jobs of schedules that are due and return them; `run_due` leaves schedules alone."""
    made: list[Job] = []
    for database in databases_of_test():
        with on_database(database):
            made += _tick_schedules()
    return made


def _tick_schedules() -> list[Job]:
    known = set(ScheduleTick.objects.values_list("pk", flat=True))
    while (rest := tick()) is not None and rest <= 0:
        pass
    made = ScheduleTick.objects.exclude(pk__in=known).values("job_id")
    return list(Job.objects.filter(pk__in=made).order_by("pk"))
