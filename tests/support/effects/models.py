"""The row that a handler of the tests leaves each time it starts."""

from django.db import models


class Effect(models.Model):
    """One run of a handler, written by the handler itself."""

    job_id = models.CharField(max_length=64, db_index=True)
    fence = models.BigIntegerField()
    kind = models.CharField(max_length=32)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.kind} of {self.job_id} at fence {self.fence}"
