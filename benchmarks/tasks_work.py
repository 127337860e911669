"""The job and the task that `tasks_enqueue.py` compares; they do nothing."""

from django_jobs import job
from django_jobs.backends import task


@job
def as_job(payload):
    """Do nothing."""


@task
def as_task(number, text, numbers):
    """Do nothing."""
