"""Tell: find what is to be told, claim it, send it, and record that."""

from __future__ import annotations

from dataclasses import dataclass, field

from django_jobs.conf import AlertSettings
from django_jobs.lifecycle.alerts import claim_alert, forget_told, told

from .find import Finding, find
from .send import send

TEST = Finding(key="test", text="this is a test alert: alerts of the job queue arrive here")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a look has told, and what went wrong by each way that it was sent, empty where nothing did."""

    findings: list[Finding] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def arrived(self) -> bool:
        """Whether it was sent by one way at least."""
        return not all(self.problems.values())


def tell(alerts: AlertSettings) -> Told:
    """Tell what nobody has told within the hour. What could not be sent at all is tried again after a minute."""
    claimed = [finding for finding in find(alerts) if claim_alert(finding.key, finding.text, finding.since)]
    if not claimed:
        forget_told()
        return Told()
    result = Told(findings=claimed, problems=send(alerts, claimed))
    if result.arrived:
        told([finding.key for finding in claimed])
    return result


def tell_test(alerts: AlertSettings) -> Told:
    """Send a test alert, as often as it is asked for."""
    return Told(findings=[TEST], problems=send(alerts, [TEST]))
