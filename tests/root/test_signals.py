"""Signals: a receiver that raises stops nobody, and nothing is sent without receivers."""

import logging
from typing import Any

import pytest
from django.dispatch import Signal

from django_jobs import signals


def test_a_receiver_that_raises_is_logged_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def broken(sender: type, **kwargs: Any) -> None:
        raise ValueError("broken receiver")

    def good(sender: type, job: Any, **kwargs: Any) -> None:
        seen.append((sender, job, kwargs["result"]))

    signals.job_completed.connect(broken)
    signals.job_completed.connect(good)
    try:
        with caplog.at_level(logging.ERROR):
            signals.send(signals.job_completed, sender=str, job="a job", result=7)
    finally:
        signals.job_completed.disconnect(broken)
        signals.job_completed.disconnect(good)
    assert seen == [(str, "a job", 7)]
    (record,) = caplog.records
    assert record.name == "django.dispatch"
    assert record.exc_info


def test_without_a_receiver_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sent")

    signal = Signal(use_caching=True)
    monkeypatch.setattr(signal, "send_robust", never)
    signals.send(signal, sender=str, job=1)
