"""For tests of sites: run jobs inside a test's own transaction, assert what was submitted, let time go by without waiting.

Nothing here starts a thread or commits. Timeouts are not enforced, and `isolation="process"` runs in the test's process.
"""

from .assertions import assert_submitted, refute_submitted
from .clock import advance_time, tick_schedules
from .crash import crash_after
from .factory import make_job
from .run import adrain, arun_due, drain, run_due

__all__ = [
    "adrain",
    "advance_time",
    "arun_due",
    "assert_submitted",
    "crash_after",
    "drain",
    "make_job",
    "refute_submitted",
    "run_due",
    "tick_schedules",
]
