"""The row that a handler of the tests leaves each time it starts."""

from django.db import models

from django_jobs.models.fields import DbNow, ExactCharField


class Effect(models.Model):
    """One start of a handler, written by the handler itself."""

    job_id = ExactCharField(max_length=64, db_index=True)
    fence = models.BigIntegerField()
    kind = ExactCharField(max_length=32)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.kind} of {self.job_id} at fence {self.fence}"


def leave_effect(job_id: str, fence: int, kind: str, *, database: str = "default") -> None:
    """Write one row at the database's time, in whatever transaction is open."""
    Effect.objects.using(database).create(job_id=job_id, fence=fence, kind=kind, at=DbNow())
