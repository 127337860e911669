"""LISTEN on PostgreSQL: a connection of its own that wakes idle threads; elsewhere, and behind poolers, they poll."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from django.db import Error, connections

from django_jobs.conf import get_settings
from django_jobs.lifecycle import notify
from django_jobs.lifecycle.transactions import jobs_connection

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")
PROOF_SECONDS = 3.0
WAIT_SECONDS = 1.0
PAUSE_SECONDS = 2.0


class Listener(threading.Thread):
    """Waits for notifications of new work, and for cancel and stop requests to this process."""

    def __init__(self, process: Process) -> None:
        super().__init__(name=f"listener {process.id}", daemon=True)
        self._process = process
        self._stopped = threading.Event()
        self.is_healthy = False

    def start(self) -> None:
        """Start the thread where notifications exist."""
        if get_settings().NOTIFY and jobs_connection().vendor == "postgresql":
            super().start()

    def stop(self) -> None:
        """End the thread within a second."""
        self._stopped.set()

    def run(self) -> None:
        """Listen, and start over after an error, until stopped."""
        try:
            while not self._stopped.is_set():
                self._listen_once()
                self.is_healthy = False
                self._process.wakeup.call()
                self._stopped.wait(PAUSE_SECONDS)
        except Exception as error:
            self._process.is_broken(error)
        finally:
            self.is_healthy = False
            connections.close_all()  # the proof was sent on this thread's own

    def _listen_once(self) -> None:
        try:
            with contextlib.closing(notify.Subscription(self._process.id)) as subscription:
                self._listen(subscription)
        except Error as error:
            logger.debug("the listening connection broke: %s", error)

    def _listen(self, subscription: notify.Subscription) -> None:
        """Pass notifications on. A proof that we sent ourselves must arrive first: poolers lose LISTEN silently."""
        notify.tell_process(self._process.id, subscription.alias)
        connections.close_all()  # the proof went over this thread's ordinary connection, which is not needed again
        started = time.monotonic()
        proven = False
        while not self._stopped.is_set():
            for queue in subscription.wait(WAIT_SECONDS):
                if queue is not None:
                    self._process.wakeup.call(queue)
                elif not proven:
                    proven = self.is_healthy = True
                else:
                    self._process.maintenance.look_at_requests()
            if not proven and time.monotonic() - started > PROOF_SECONDS:
                logger.info("notifications do not arrive (a transaction-pooling proxy?): polling instead")
                return
