"""The verb alerts: tell operators what is wrong, for a cron line, which can tell that no worker is alive."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from django_jobs.alerts.tell import tell, tell_test
from django_jobs.conf import NAME, get_settings

from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add(
        "alerts", alerts, "send the alerts that are due, each once an hour at most; exit code 1 when one cannot be sent",
        "alerts", "alerts --test",
    )  # fmt: skip
    parser.add_argument("--test", action="store_true", help="only: send a test alert to all whom the setting names")


def alerts(options: dict[str, Any], out: Output) -> None:
    """Look once, and tell."""
    chosen = get_settings().ALERTS
    if chosen is None:
        raise CommandError(f"nobody is to be told: set {NAME}['ALERTS'], such as {{'email': ['ops@example.com']}}")
    result = tell_test(chosen) if options["test"] else tell(chosen)
    if out.as_json:
        told = [{"key": finding.key, "text": finding.text} for finding in result.findings]
        out.json({"alerts": told, "sent": {way: not problem for way, problem in result.problems.items()}})
    else:
        for finding in result.findings:
            out.line(finding.text)
        out.line(f"{len(result.findings)} alert{'s' * (len(result.findings) != 1)}")
    if any(result.problems.values()):
        raise CommandError("\n".join(f"not sent by {way}: {why}" for way, why in result.problems.items() if why))
