"""How much memory this process uses."""

from __future__ import annotations

import os
import resource
import sys


def resident_megabytes() -> float:
    """Return the resident memory of this process in megabytes; where the system does not say, its highest so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
