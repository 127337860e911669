"""The nouns: what is stored. Fields, constraints, indexes and read-only questions; no move is made here."""

from .attempt import Attempt, AttemptOutcome
from .dead_letter import DeadLetter, DeadLetterReason
from .dependency import DependencyState, JobDependency, OnFailure
from .job import Job, JobStatus
from .overview import Overview
from .queue import Queue
from .schedule import Schedule, ScheduleTick
from .worker_process import WorkerProcess

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "DeadLetter",
    "DeadLetterReason",
    "DependencyState",
    "Job",
    "JobDependency",
    "JobStatus",
    "OnFailure",
    "Overview",
    "Queue",
    "Schedule",
    "ScheduleTick",
    "WorkerProcess",
]
