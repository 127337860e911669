"""LISTEN on PostgreSQL: a connection of its own that wakes idle threads; elsewhere, and behind poolers, they poll."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from django.db import Error, connections

from django_jobs.db import notify

from .loop import Loop
from .shared_poll import SharedPoll
from .stagger import Stagger, longest_delay
from .state import WorkerState

logger = logging.getLogger("django_jobs")
PROOF_SECONDS = 3.0
WAIT_SECONDS = 1.0
PAUSE_SECONDS = 2.0


class Listener(Loop):
    """Waits for notifications of new work, and for cancel and stop requests to this process.

    Args:
        look_at_requests: called when somebody asked this process to stop, or a job of it to be cancelled.
    """

    def __init__(self, state: WorkerState, look_at_requests: Callable[[], None]) -> None:
        super().__init__("listener", state)
        self._look_at_requests = look_at_requests

    def start(self) -> None:
        """Start the thread where notifications exist."""
        if notify.has_notifications():
            super().start()

    def step(self) -> float:
        """Listen until the connection breaks; return the seconds until the next try."""
        try:
            channels = (notify.WORK_CHANNEL, notify.OLD_CHANNEL, notify.PROCESS_CHANNEL)
            with contextlib.closing(notify.Subscription(*channels)) as subscription:
                self._listen(subscription)
        except Error as error:
            logger.debug("the listening connection broke: %s", error)
        finally:
            pollers = self._state.pollers
            was_notified, pollers.is_notified = pollers.is_notified, False
        if was_notified:  # a try in vain, every few seconds behind a pooler, is no reason to look
            pollers.wake()
        return PAUSE_SECONDS

    def _listen(self, subscription: notify.Subscription) -> None:
        """Pass notifications on. A proof that we sent ourselves must arrive first: poolers lose LISTEN silently."""
        notify.notify_process(self._state.id)
        connections.close_all()  # the proof went over this thread's ordinary connection, which is not needed again
        pollers = self._state.pollers
        poll = SharedPoll(subscription, pollers.processes, pollers.wake)
        stagger = Stagger(partial(pollers.wake, is_told=True))

        def listen(seconds: float) -> bool:
            return self._pass_on(subscription, seconds, stagger)

        started = time.monotonic()
        while not self.is_over:
            was_notified = listen(WAIT_SECONDS)
            if not pollers.is_notified:
                if time.monotonic() - started > PROOF_SECONDS:
                    logger.info("notifications do not arrive (a transaction-pooling proxy?): polling instead")
                    return
            elif was_notified and not self._has_ended() and poll.is_wanted() and (queues := pollers.queues()) != set():
                poll.run(queues, listen, self._has_ended)

    def _has_ended(self) -> bool:
        """Whether this process claims no more, and so has nothing to look for."""
        return self.is_over or self._state.is_stopping

    def _pass_on(self, subscription: notify.Subscription, seconds: float, stagger: Stagger) -> bool:
        """Pass on what arrives first within so many seconds; return whether there was work."""
        queues, pollers = [], self._state.pollers
        for channel, payload in subscription.wait(stagger.seconds_left(seconds)):
            if channel == notify.WORK_CHANNEL:
                queues.append(payload)
            elif channel == notify.OLD_CHANNEL:
                pollers.expect_old(payload)
            elif payload != self._state.id:
                continue
            elif not pollers.is_notified:
                pollers.is_notified = True
            else:
                self._look_at_requests()
        for queue in queues:
            stagger.put_off(queue, longest_delay(pollers.processes.number, pollers.wakes_in_vain))
        stagger.look_if_due()
        if queues:  # after it: nobody is to wait for a count
            pollers.processes.refresh(subscription.count_processes)
        return bool(queues)
