"""The alerter: one process of all looks now and then for what operators are to be told."""

from __future__ import annotations

from datetime import timedelta

from django.db import connections

from django_jobs.alerts.tell import tell
from django_jobs.conf import get_settings
from django_jobs.lifecycle.alerts import take_turn

from .loop import Loop
from .state import WorkerState

LOOK_SECONDS = 30.0


class Alerter(Loop):
    """Tells in a thread of its own, which a mail or web server may hold up as long as it likes. Only where ALERTS is set."""

    foreseen = Exception  # whatever a mail backend raises: it is no reason to stop running jobs

    def __init__(self, state: WorkerState) -> None:
        super().__init__("alerts", state)

    def step(self) -> float:
        """Look if it is this process's turn; return the seconds to rest. Between two looks no connection is held."""
        alerts = get_settings().ALERTS
        try:
            if alerts is not None and take_turn(timedelta(seconds=LOOK_SECONDS)):
                tell(alerts)
        finally:
            connections.close_all()
        return LOOK_SECONDS
