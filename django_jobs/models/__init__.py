"""The nouns: what is stored. Fields, constraints, indexes and read-only questions; no move is made here."""

from .alert import Alert
from .attempt import Attempt, AttemptOutcome
from .batch import Batch, BatchMember, BatchStatus, OpenMember
from .cause import Cause
from .dead_letter import DeadLetter, DeadLetterReason
from .dependency import DependencyState, JobDependency, OnFailure
from .event import Event
from .gone_process import Ending, GoneProcess
from .job import Job, JobStatus
from .job_log import JobLog
from .limit import Limit, LimitLock, LimitSlot, LimitStart, LimitTurn
from .operation import Operation, OperationKind, OperationState
from .overview import Overview
from .queue import Queue
from .schedule import Schedule, ScheduleTick
from .step import JobStep, StepKind
from .turn import FairTurn
from .worker_process import WorkerProcess

__all__ = [
    "Alert",
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
    "FairTurn",
    "GoneProcess",
    "Job",
    "JobDependency",
    "JobLog",
    "JobStatus",
    "JobStep",
    "Limit",
    "LimitLock",
    "LimitSlot",
    "LimitStart",
    "LimitTurn",
    "OnFailure",
    "OpenMember",
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
