"""The operations console in the site's admin: importing this package registers its pages."""

from .dead_letters import DeadLetterAdmin
from .jobs import JobAdmin

__all__ = ["DeadLetterAdmin", "JobAdmin"]
