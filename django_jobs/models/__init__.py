"""The nouns: what is stored. Fields, constraints, indexes and read-only questions; no move is made here."""

from .attempt import Attempt, AttemptOutcome
from .batch import Batch, BatchMember, BatchStatus, MemberState
from .cause import Cause
from .dead_letter import DeadLetter, DeadLetterReason
from .dependency import DependencyState, JobDependency, OnFailure
from .event import Event
from .gone_process import Ending, GoneProcess
from .job import Job, JobStatus
from .limit import Limit, LimitLock, LimitSlot
from .operation import Operation, OperationKind, OperationState
from .overview import Overview
from .queue import Queue
from .schedule import Schedule, ScheduleTick
from .step import JobStep, StepKind
from .worker_process import WorkerProcess

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "Batch",
    "BatchMember",
    "BatchStatus",
    "Cause",
    "DeadLetter",
    "DeadLetterReason",
    "DependencyState",
    "Ending",
    "Event",
    "GoneProcess",
    "Job",
    "JobDependency",
    "JobStatus",
    "JobStep",
    "Limit",
    "LimitLock",
    "LimitSlot",
    "MemberState",
    "OnFailure",
    "Operation",
    "OperationKind",
    "OperationState",
    "Overview",
    "Queue",
    "Schedule",
    "ScheduleTick",
    "StepKind",
    "WorkerProcess",
]
