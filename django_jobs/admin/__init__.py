"""The operations console in the site's admin: importing this package registers its pages."""

from .dead_letters import DeadLetterAdmin
from .jobs import JobAdmin
from .overview import OverviewAdmin
from .queues import QueueAdmin
from .schedules import ScheduleAdmin
from .workers import WorkerProcessAdmin

__all__ = ["DeadLetterAdmin", "JobAdmin", "OverviewAdmin", "QueueAdmin", "ScheduleAdmin", "WorkerProcessAdmin"]
