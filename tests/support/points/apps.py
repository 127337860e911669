"""The app's entry: points are armed once all apps are loaded."""

import os
import sys

from django.apps import AppConfig

from . import VARIABLE, arm, breaks


class PointsConfig(AppConfig):
    """Arms what the environment names."""

    name = "tests.support.points"

    def ready(self) -> None:
        """Change the functions, in a process of `runworkers` and not in the child of a single job."""
        if "runworkers" not in sys.argv or "--isolated" in sys.argv:
            return
        if VARIABLE in os.environ:
            arm()
        if breaks.VARIABLE in os.environ:
            breaks.arm()
