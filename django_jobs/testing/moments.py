"""Let time go by for jobs and schedules, without waiting and without another clock."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import DateTimeField, F

from django_jobs.lifecycle.schedule import tick
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Attempt, DeadLetter, Job, Queue, Schedule, ScheduleTick


def advance_time(delta: timedelta) -> None:
    """Let `delta` go by for jobs and schedules: every time in their rows moves back by it, so that what was to come is due.

    The clock stays as it is. Raises ValueError for a negative time.
    """
    if delta < timedelta(0):
        raise ValueError("time goes forward only")
    using = jobs_alias()
    for model in (Job, Attempt, DeadLetter, Schedule, Queue):
        moments = [one.name for one in model._meta.concrete_fields if isinstance(one, DateTimeField)]
        model._default_manager.using(using).update(**{name: F(name) - delta for name in moments})
    ticks = ScheduleTick.objects.using(using)
    for pk in list(ticks.order_by("due_at").values_list("pk", flat=True)):  # one by one: the time of a tick is unique
        ticks.filter(pk=pk).update(due_at=F("due_at") - delta)


def tick_schedules() -> list[Job]:
    """Submit the jobs of schedules that are due and return them; `run_due` leaves schedules alone."""
    using = jobs_alias()
    known = set(ScheduleTick.objects.using(using).values_list("pk", flat=True))
    while (rest := tick()) is not None and rest <= 0:
        pass
    made = Job.objects.using(using).filter(
        pk__in=ScheduleTick.objects.using(using).exclude(pk__in=known).values("job_id")
    )
    return list(made.order_by("pk"))
