"""Send alerts by e-mail and to a web address, each in a thread of its own that nobody waits for without end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.request import HTTPRedirectHandler, Request, build_opener

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connections

from django_jobs.conf import AlertSettings, this_site
from django_jobs.db.connections import jobs_alias, jobs_databases
from django_jobs.text import describe_exception

from .find import Finding

logger = logging.getLogger("django_jobs")
ANSWER_SECONDS = 10.0  # for each answer of the other side
SEND_SECONDS = 30.0  # in all
LONGEST_SUBJECT = 150
Send = Callable[[AlertSettings, str, Sequence[Finding]], None]


class Channel(threading.Thread):
    """One way to tell, used once. While a use of a way hangs that was given up, this process does not begin another one."""

    hanging: ClassVar[set[Channel]] = set()

    def __init__(self, kind: str, work: Callable[[], None]) -> None:
        super().__init__(name=f"alerts {kind}", daemon=True)
        self.kind = kind
        self.problem = ""
        self._work = work

    def start(self) -> None:
        """Send, unless an earlier use hangs."""
        if any(other.kind == self.kind and other.is_alive() for other in list(self.hanging)):
            self.problem = "an earlier one is still being sent"
        else:
            super().start()

    def run(self) -> None:
        """Send; this is the thread."""
        try:
            self._work()
        except Exception as error:
            self.problem = describe_exception(error, 200)
        finally:
            connections.close_all()  # a mail backend may keep its mails in the database
            self.hanging.discard(self)

    def wait(self, seconds: float) -> None:
        """Wait at most so long until it is sent."""
        if self.ident is not None:
            self.join(max(0.0, seconds))
            if self.is_alive():
                self.hanging.add(self)
                self.problem = f"not sent within {SEND_SECONDS:g} seconds"


def send(alerts: AlertSettings, findings: Sequence[Finding]) -> dict[str, str]:
    """Send by every way that the setting names; return what went wrong by way (`email`, `webhook`), empty where nothing did.

    Takes SEND_SECONDS at most. What went wrong is logged.
    """
    ways: dict[str, Send] = {}
    if alerts.email:
        ways["email"] = _send_email
    if alerts.webhook is not None:
        ways["webhook"] = _send_to_webhook
    # Here, because a thread of its own knows only the usual one.
    database = jobs_alias() if len(jobs_databases()) > 1 else ""
    channels = [
        Channel(kind, lambda way=way: way(alerts, database, findings))  # type: ignore[misc]
        for kind, way in ways.items()
    ]
    for channel in channels:
        channel.start()
    deadline = time.monotonic() + SEND_SECONDS
    for channel in channels:
        channel.wait(deadline - time.monotonic())
        if channel.problem:
            logger.error("alerts were not sent by %s: %s", channel.kind, channel.problem)
    return {channel.kind: channel.problem for channel in channels}


def _sender(database: str) -> str:
    return f"{this_site()} jobs on {database}" if database else f"{this_site()} jobs"


def _lines(findings: Sequence[Finding]) -> str:
    return "\n".join(finding.text for finding in findings)


def _send_email(alerts: AlertSettings, database: str, findings: Sequence[Finding]) -> None:
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    subject = f"{settings.EMAIL_SUBJECT_PREFIX}{_sender(database)}: {findings[0].text}"[:LONGEST_SUBJECT] + more
    EmailMessage(
        subject=" ".join(subject.split()),
        body=f"{_lines(findings)}\n\nEach cause is told once an hour at most.\n",
        from_email=settings.SERVER_EMAIL,
        to=list(alerts.email),
    ).send()


class _NoRedirects(HTTPRedirectHandler):
    """Redirects are answers like any other that is not 200: an alert goes where the setting says and nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _send_to_webhook(alerts: AlertSettings, database: str, findings: Sequence[Finding]) -> None:
    told = [{"key": finding.key, "text": finding.text} for finding in findings]
    place = {"site": this_site()} | ({"database": database} if database else {})
    body = json.dumps({"text": f"{_sender(database)}:\n{_lines(findings)}", **place, "alerts": told})
    headers = {"Content-Type": "application/json", "User-Agent": "django_jobs"}
    assert alerts.webhook is not None
    request = Request(alerts.webhook, body.encode(), headers, method="POST")  # noqa: S310  the setting allows http and https
    with build_opener(_NoRedirects).open(request, timeout=ANSWER_SECONDS):
        pass  # an answer that is not 2xx is raised
