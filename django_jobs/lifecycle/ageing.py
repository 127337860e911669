"""Ageing: the order in which a queue's jobs are claimed where waiting weighs as much as priority. The claim has it in SQL."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from django_jobs.db.dialects.words import aged_place
from django_jobs.models import Job
from django_jobs.models.job import JobQuerySet


def aged(ready: JobQuerySet, ageing: float) -> Iterator[Job]:
    """Yield the jobs of one queue in their aged order; each rank is read as far as it is needed."""
    ranks = ready.order_by("rank").values_list("rank", flat=True).distinct()
    in_time = [ready.filter(rank=rank).order_by("available_at", "id").iterator() for rank in ranks]
    return heapq.merge(*in_time, key=lambda job: aged_place(job.rank, job.available_at, job.id, ageing))
