"""The operations console in the site's admin: importing this package registers its pages."""

from .alerts import AlertAdmin
from .batches import BatchAdmin
from .dead_letters import DeadLetterAdmin
from .jobs import JobAdmin
from .limits import LimitAdmin
from .operation_pages import OperationAdmin
from .overview import OverviewAdmin
from .queues import QueueAdmin
from .schedules import ScheduleAdmin
from .workers import GoneProcessAdmin, WorkerProcessAdmin

__all__ = [
    "AlertAdmin",
    "BatchAdmin",
    "DeadLetterAdmin",
    "GoneProcessAdmin",
    "JobAdmin",
    "LimitAdmin",
    "OperationAdmin",
    "OverviewAdmin",
    "QueueAdmin",
    "ScheduleAdmin",
    "WorkerProcessAdmin",
]
