"""A durable background-job queue that is just a Django app. The public names; safe to import before apps are loaded."""

from django_jobs.api import aemit, asubmit, asubmit_many, batch, emit, job, schedule, submit, submit_many
from django_jobs.exceptions import BulkFailure, Cancelled, Fail, Retry, Snooze
from django_jobs.limit import Limit
from django_jobs.submission import NewJob

__all__ = [
    "BulkFailure",
    "Cancelled",
    "Fail",
    "Limit",
    "NewJob",
    "Retry",
    "Snooze",
    "aemit",
    "asubmit",
    "asubmit_many",
    "batch",
    "emit",
    "job",
    "schedule",
    "submit",
    "submit_many",
]
__version__ = "0.1.0.dev0"
