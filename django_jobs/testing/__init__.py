"""For tests of sites: run jobs inside a test's own transaction, ask what was submitted, let time go by without waiting.

Nothing here starts a thread or commits. Timeouts are not enforced, and `isolation="process"` runs in the test's process.
"""

from .making import make_job
from .moments import advance_time, tick_schedules
from .running import adrain, arun_due, drain, run_due
from .submitted import assert_submitted, refute_submitted

__all__ = [
    "adrain",
    "advance_time",
    "arun_due",
    "assert_submitted",
    "drain",
    "make_job",
    "refute_submitted",
    "run_due",
    "tick_schedules",
]
