"""Alerts: what is told, to whom, once; and what cannot be sent breaks nothing and holds up no job."""

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.db.models import F
from django.test import override_settings

from django_jobs import submit
from django_jobs.alerts import send as sending
from django_jobs.alerts.find import Finding, find
from django_jobs.alerts.tell import tell, tell_test
from django_jobs.conf import AlertSettings, get_settings, parse
from django_jobs.db.connections import use_database
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.alerts import claim_alert, take_turn, told
from django_jobs.lifecycle.causes import note_cause
from django_jobs.lifecycle.farewell import say_farewell
from django_jobs.lifecycle.queues import pause
from django_jobs.models import Alert, DeadLetter, Ending, GoneProcess, Job, Schedule, WorkerProcess
from django_jobs.models.fields import DbNow
from django_jobs.scheduling.store import NO_LONGER_DECLARED
from django_jobs.worker import alerter
from django_jobs.worker.state import WorkerState
from tests.support.factories import DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.hooks import Hook, hook
from tests.support.in_process import running_process
from tests.support.processes import manage, spawn
from tests.support.several import known_as
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
BY_MAIL = AlertSettings(email=("ops@example.com",))
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _worker() -> None:
    """Let a worker be alive, and no schedule be there."""
    WorkerProcessFactory()
    Schedule.objects.all().delete()


@pytest.fixture
def receiver() -> Iterator[Hook]:
    with hook() as server:
        yield server


def at(server: Hook) -> AlertSettings:
    return AlertSettings(webhook=server.url)


def keys() -> set[str]:
    return {finding.key for finding in find(BY_MAIL)}


def make_older(**ages: float) -> None:
    """Set times of all alerts back by so many minutes."""
    Alert.objects.update(
        **{f"{name}_at": F(f"{name}_at") - timedelta(minutes=minutes) for name, minutes in ages.items()}
    )


# --- what is found


def test_dead_letters_are_told_of_by_cause_and_not_by_what_the_error_says() -> None:
    DeadLetterFactory.create_batch(2, fingerprint="f" * 32, error=f"ValueError: {SECRET}", job__job_type="shop.pay")
    DeadLetterFactory(fingerprint="", reason="bad result", error="the database refused", job__job_type="shop.sum")
    DeadLetterFactory(fingerprint="old", died_at=database_now() - timedelta(days=2))
    DeadLetterFactory(fingerprint="done", acknowledged_at=database_now())
    found = find(BY_MAIL)
    assert {finding.key for finding in found} == {f"cause:{'f' * 32}", "cause:bad result shop.sum"}
    texts = [finding.text for finding in found]
    assert "dead letters of job type shop.pay: 2 in the last day, ValueError (retries exhausted)" in texts
    assert not any(SECRET in text for text in texts)


def test_a_muted_cause_is_not_told() -> None:
    DeadLetterFactory(fingerprint="loud")
    DeadLetterFactory(fingerprint="silent")
    assert keys() == {"cause:loud", "cause:silent"}
    note_cause("silent", muted_until=database_now() + timedelta(hours=1))
    assert keys() == {"cause:loud"}


def test_a_queue_is_told_of_when_its_oldest_job_waits_too_long_unless_it_is_paused() -> None:
    for queue, minutes in (("late", 11), ("fast", 9), ("paused", 99)):
        JobFactory(queue=queue)
        Job.objects.filter(queue=queue).update(available_at=DbNow() - timedelta(minutes=minutes))
    pause("paused")
    (finding,) = find(BY_MAIL)
    assert (finding.key, finding.text) == ("queue:late", "queue late: a ready job has waited 11 minutes")
    assert find(AlertSettings(email=("a@b",), queue_wait=None)) == []


def test_that_no_worker_is_alive_is_told_once_a_restart_would_be_over() -> None:
    process = WorkerProcess.objects.get()
    assert keys() == set()
    WorkerProcess.objects.update(silent_threads=F("threads"))
    assert keys() == {"workers"}
    say_farewell(process.pk, Ending.LEFT)
    assert keys() == set(), "it left a moment ago"
    GoneProcess.objects.update(ended_at=DbNow() - timedelta(minutes=3))
    assert keys() == {"workers"}


def test_a_schedule_is_told_of_that_was_disabled_for_an_error() -> None:
    now = database_now()
    common = {"job_type": "effects.record", "kind": "cron", "cron": "0 3 * * *"}
    errors = {"well": "", "off": "", "gone": NO_LONGER_DECLARED, "bad": "no"}
    for name, error in errors.items():
        Schedule.objects.create(name=name, enabled=name == "well", last_error=error, **common)
    Schedule.objects.update(updated_at=now)
    (finding,) = find(BY_MAIL)
    assert (finding.key, finding.text, finding.since) == ("schedule:bad", "schedule bad was disabled", now)


# --- how often


def test_what_happens_while_it_is_told_is_told_an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    DeadLetterFactory(fingerprint="one")

    def send_slowly(*args: Any) -> Any:
        claimed_at = Alert.objects.get(key="cause:one").claimed_at
        wait_until(lambda: database_now() > claimed_at)
        again = DeadLetterFactory(fingerprint="one", died_at=database_now())
        wait_until(lambda: database_now() > again.died_at)
        return sending.send(*args)

    with monkeypatch.context() as patch:
        patch.setattr("django_jobs.alerts.tell.send", send_slowly)
        assert [finding.key for finding in tell(BY_MAIL).findings] == ["cause:one"]
    an_hour = timedelta(minutes=62)
    Alert.objects.update(told_at=F("told_at") - an_hour)
    DeadLetter.objects.update(died_at=F("died_at") - an_hour)
    assert [finding.key for finding in tell(BY_MAIL).findings] == ["cause:one"]
    Alert.objects.update(told_at=F("told_at") - an_hour)
    assert tell(BY_MAIL).findings == []


def test_what_goes_on_is_told_each_hour_and_what_happened_once() -> None:
    DeadLetterFactory(fingerprint="one")
    JobFactory(queue="late")
    Job.objects.filter(queue="late").update(available_at=DbNow() - timedelta(minutes=11))
    assert [finding.key for finding in tell(BY_MAIL).findings] == ["cause:one", "queue:late"]
    assert tell(BY_MAIL).findings == []
    make_older(told=59)
    assert tell(BY_MAIL).findings == []
    DeadLetter.objects.update(died_at=DbNow() - timedelta(minutes=62))
    make_older(told=2)
    assert [finding.key for finding in tell(BY_MAIL).findings] == ["queue:late"], "nobody has died of the cause since"
    DeadLetterFactory(fingerprint="one")
    assert [finding.key for finding in tell(BY_MAIL).findings] == ["cause:one"]


def test_eight_at_once_tell_once(receiver: Hook) -> None:
    for number in range(3):
        DeadLetterFactory(fingerprint=f"f{number}")
    run_in_threads(lambda: tell(at(receiver)), 8)
    assert sorted(receiver.keys) == ["cause:f0", "cause:f1", "cause:f2"]
    make_older(told=61)
    DeadLetter.objects.update(died_at=DbNow())
    run_in_threads(lambda: tell(at(receiver)), 8)
    assert sorted(receiver.keys) == sorted(2 * ["cause:f0", "cause:f1", "cause:f2"])


def test_what_was_told_is_on_record_where_the_database_takes_the_record_at_the_second_try() -> None:
    DeadLetterFactory(fingerprint="one")
    refused: list[str] = []

    def refuse_once(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and "COALESCE" in sql and not refused:
            refused.append(sql)
            raise OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse_once):
        assert [finding.key for finding in tell(BY_MAIL).findings] == ["cause:one"]
    assert len(refused) == 1
    alert = Alert.objects.get(key="cause:one")
    assert alert.told_at is not None
    assert alert.claimed_at is None


@pytest.mark.slow
def test_eight_claims_of_one_key_give_one_and_one_process_has_the_turn() -> None:
    for _ in range(5):
        assert sum(run_in_threads(lambda: claim_alert("queue:a", "text"), 8)) == 1
        assert sum(run_in_threads(lambda: take_turn(timedelta(seconds=30)), 8)) == 1
        Alert.objects.all().delete()


@pytest.mark.parametrize("killed", ["before", "after"])
@pytest.mark.slow
def test_a_process_that_is_killed_before_it_sends_has_told_nothing_and_another_one_does(
    killed: str, receiver: Hook
) -> None:
    """Killed between the sending and the record of it, it is told twice: rather that than never."""
    DeadLetterFactory(fingerprint="one")
    at_once = "os.kill(os.getpid(), signal.SIGKILL)"
    patch = f"t.send = lambda *a: {at_once}" if killed == "before" else f"t.told = lambda *a: {at_once}"
    program = f"import os, signal; from django_jobs.alerts import tell as t; {patch}; t.tell(get_settings().ALERTS)"
    ended = manage(
        "shell",
        "-c",
        f"from django_jobs.conf import get_settings\n{program}",
        settings={"ALERTS": {"webhook": receiver.url}},
    )
    assert ended.returncode == -signal.SIGKILL
    sent = ["cause:one"] if killed == "after" else []
    assert receiver.keys == sent
    assert tell(at(receiver)).findings == [], "the claim holds for a minute"
    make_older(claimed=2)
    run_in_threads(lambda: tell(at(receiver)), 8)
    assert receiver.keys == [*sent, "cause:one"]


@pytest.mark.slow
def test_eight_processes_tell_once(receiver: Hook) -> None:
    """Real processes with their own loops, which look for the first time as they start."""
    DeadLetterFactory(fingerprint="one")
    with ExitStack() as stack:
        settings = {"ALERTS": {"webhook": receiver.url}}
        running = [stack.enter_context(spawn("jobs", "alerts", settings=settings)) for _ in range(8)]
        assert [one.wait(300) for one in running] == [0] * 8
    assert receiver.keys == ["cause:one"]


# Looks all the time, where a worker process does each 30 seconds; no claim lapses, however slow the machine is.
RESTLESS = """
import time
from datetime import timedelta
from django_jobs.alerts.tell import tell
from django_jobs.conf import get_settings
from django_jobs.lifecycle import alerts
alerts.CLAIM = timedelta(hours=1)
deadline = time.monotonic() + 900
while time.monotonic() < deadline:
    tell(get_settings().ALERTS)
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_eight_processes_that_are_killed_one_after_another_tell_each_cause_once(receiver: Hook) -> None:
    """One that died between its sending and the record of it has told nothing for all that others know."""
    causes = [f"f{number}" for number in range(24)]
    with ExitStack() as stack:
        settings = {"ALERTS": {"webhook": receiver.url}}
        running = [stack.enter_context(spawn("shell", "-c", RESTLESS, settings=settings)) for _ in range(8)]
        DeadLetterFactory(fingerprint="first")
        assert receiver.arrived.wait(300)
        for number, cause in enumerate(causes):
            before = len(receiver.got)
            DeadLetterFactory(fingerprint=cause)
            if number % 3 == 2:
                if len(running) > 1:  # while somebody tells
                    wait_until(lambda before=before: len(receiver.got) > before, 300)
                running.pop(0).signal(signal.SIGKILL)
        assert not running
    recorded = {*Alert.objects.filter(told_at__isnull=False).values_list("key", flat=True)}
    assert recorded, "some were told before the last process was killed"
    make_older(claimed=62)
    run_in_threads(lambda: tell(at(receiver)), 8)
    told_of = Counter(receiver.keys)
    assert {*told_of} == {f"cause:{cause}" for cause in ["first", *causes]}
    assert {key: told_of[key] for key in recorded} == dict.fromkeys(recorded, 1)
    assert max(told_of.values()) <= 2


# --- what cannot be sent


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_webhook_that_refuses_is_logged_and_tried_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    DeadLetterFactory(fingerprint="one")
    with hook(status) as server:
        result = tell(at(server))
        assert not result.arrived
        assert server.keys == ["cause:one"], "no redirect is followed"
        make_older(claimed=2)
        server.status = 204
        assert tell(at(server)).arrived
        assert tell(at(server)).findings == []
    assert any(f"HTTP Error {status}" in record.getMessage() for record in caplog.records)


def test_nobody_at_the_address_and_a_broken_mail_backend_break_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    DeadLetterFactory(fingerprint="one")
    with hook() as server:
        closed = server.url
    both = AlertSettings(email=("ops@example.com",), webhook=closed)
    assert set(tell(both).problems) == {"email", "webhook"}
    assert len(mail.outbox) == 1
    assert tell(both).findings == [], "the mail has arrived: it was told"
    DeadLetterFactory(fingerprint="two")
    monkeypatch.setattr(mail.EmailMessage, "send", lambda self: 1 / 0)
    assert not tell(both).arrived
    assert sum(record.levelno == logging.ERROR for record in caplog.records) >= 3


@pytest.mark.slow
def test_a_webhook_that_hangs_is_given_up_and_holds_up_neither_the_mail_nor_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time that is given counts here from when the mail is out and the webhook has been asked."""
    monkeypatch.setattr(sending, "ANSWER_SECONDS", 600.0)
    monkeypatch.setattr(sending, "SEND_SECONDS", 1.0)
    with hook(hangs=True) as server:

        def monotonic() -> float:
            wait_until(lambda: all(one.name != "alerts email" for one in threading.enumerate()), 60, "the mail")
            assert server.arrived.wait(60)
            return time.monotonic()

        monkeypatch.setattr(sending, "time", SimpleNamespace(monotonic=monotonic))
        both = AlertSettings(email=("ops@example.com",), webhook=server.url)
        first = tell_test(both)
        assert (first.problems["email"], len(mail.outbox)) == ("", 1)
        assert first.problems["webhook"].startswith("not sent within")
        assert tell_test(both).problems["webhook"] == "an earlier one is still being sent"
        assert len(server.got) == 1
        monkeypatch.setattr(sending, "SEND_SECONDS", 600.0)
        server.let_go.set()
        wait_until(lambda: not any(one.is_alive() for one in sending.Channel.hanging), 60)
        assert tell_test(both).problems["webhook"] == ""


@pytest.mark.slow
def test_a_webhook_that_hangs_delays_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is submitted while the alert hangs, and completes while it still does."""
    for name in ("ANSWER_SECONDS", "SEND_SECONDS"):
        monkeypatch.setattr(sending, name, 600.0)
    with hook(hangs=True) as server, override_settings(DJANGO_JOBS={"ALERTS": {"webhook": server.url}}):
        DeadLetterFactory(fingerprint="one")
        with running_process() as process:
            assert server.arrived.wait(60), "the process tells by itself"
            assert submit("effects.record").wait(60).status == "completed"
            assert process.alerter.is_alive()
            assert not server.let_go.is_set()
            server.let_go.set()
            wait_until(lambda: Alert.objects.filter(told_at__isnull=False).exists(), 60)
            process.alerter.stop()
            process.alerter.join(60)


@pytest.mark.slow
def test_without_the_setting_no_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerter, "tell", lambda alerts: pytest.fail("it looked"))
    with running_process() as process:
        assert submit("effects.record").wait(60).status == "completed"
        assert process.alerter.ident is None
    assert not Alert.objects.exists()


def test_one_of_many_processes_looks_in_so_much_time() -> None:
    looks = []
    with override_settings(DJANGO_JOBS={"ALERTS": {"email": ["a@b"]}}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(alerter, "tell", looks.append)
        loops = [alerter.Alerter(WorkerState()) for _ in range(8)]
        run_in_threads([loop.step for loop in loops])
        assert len(looks) == 1
        make_older(claimed=1)
        run_in_threads([loop.step for loop in loops])
        assert len(looks) == 2


# --- what arrives


def test_a_mail_has_a_subject_of_one_line_and_all_that_is_told() -> None:
    findings = [Finding(key="queue:a", text="queue a waits\nand a header: x"), Finding(key="b", text="b " * 200)]
    assert sending.send(BY_MAIL, findings) == {"email": ""}
    (message,) = mail.outbox
    assert message.to == ["ops@example.com"]
    assert message.subject.startswith("[Django] tests jobs: queue a waits and a header: x")
    assert message.subject.endswith("(and 1 more)")
    assert "b b b" in message.body


def test_a_webhook_gets_text_for_chats_and_keys_for_programs(receiver: Hook) -> None:
    DeadLetterFactory(fingerprint="one")
    tell(at(receiver))
    (body,) = receiver.got
    assert body["text"].startswith(f"{body['site']} jobs:\ndead letters of job type ")
    assert [alert["key"] for alert in body["alerts"]] == ["cause:one"]


def test_where_several_databases_hold_jobs_an_alert_names_its_own(receiver: Hook) -> None:
    both = AlertSettings(email=("ops@example.com",), webhook=receiver.url)
    several = override_settings(DJANGO_JOBS={"DATABASES": ["default", "tenant"]})
    with known_as("tenant", "sqlite:///:memory:"), several, use_database("tenant"):
        sending.send(both, [Finding(key="workers", text="no worker process is alive")])
    assert mail.outbox[0].subject == "[Django] tests jobs on tenant: no worker process is alive"
    assert receiver.got[0]["database"] == "tenant"
    assert receiver.got[0]["text"] == "tests jobs on tenant:\nno worker process is alive"


# --- the command and the setting


def test_the_command_tells_and_tests(receiver: Hook, capsys: pytest.CaptureFixture[str]) -> None:
    DeadLetterFactory(fingerprint="one")
    with override_settings(DJANGO_JOBS={"ALERTS": {"webhook": receiver.url}}):
        call_command("jobs", "alerts")
        assert "1 alert\n" in capsys.readouterr().out
        call_command("jobs", "alerts", "--json")
        assert capsys.readouterr().out == '{"alerts": [], "sent": {}}\n'
        for _ in range(2):
            call_command("jobs", "alerts", "--test")
    assert receiver.keys == ["cause:one", "test", "test"]
    receiver.status = 500
    with (
        override_settings(DJANGO_JOBS={"ALERTS": {"webhook": receiver.url}}),
        pytest.raises(CommandError, match="not sent by webhook: HTTPError"),
    ):
        call_command("jobs", "alerts", "--test")
    with pytest.raises(CommandError, match="nobody is to be told"):
        call_command("jobs", "alerts")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "names nobody to tell"),
        ({"queue_wait": "10m"}, "names nobody to tell"),
        ({"email": "ops@example.com"}, "a list"),
        ({"email": ["ops"]}, "e-mail addresses"),
        ({"webhook": "file:///etc/passwd"}, "https://"),
        ({"webhook": "ftp://a/b"}, "https://"),
        ({"webhook": "https://"}, "https://"),
        ({"webhook": "http://a/ b"}, "https://"),
        ({"webhook": "https://ops:hunter2@hooks.example.com/x"}, "without a user"),
        ({"webhook": "https://hooks.example.com/é"}, "in ASCII"),
        ({"webhook": 7}, "https://"),
        ({"email": ["a@b"], "queue_wait": "soon"}, "such as"),
        ({"email": ["a@b"], "queue_wait": 0}, "such as"),
        ({"emial": ["a@b"]}, "unknown key"),
        ("ops@example.com", "must be a dict"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_it_must_be(value: Any, words: str) -> None:
    _, problems = parse({"ALERTS": value})
    assert [problem for problem in problems if words in problem.message], problems


def test_times_have_units_and_a_default() -> None:
    for given, seconds in (("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), (30, 30)):
        assert (
            AlertSettings(email=("a@b",), queue_wait=seconds)
            == parse({"ALERTS": {"email": ["a@b"], "queue_wait": given}})[0].ALERTS
        )
    with override_settings(DJANGO_JOBS={"ALERTS": {"webhook": "https://hooks.example/T0/secret"}}):
        assert AlertSettings(webhook="https://hooks.example/T0/secret", queue_wait=600) == get_settings().ALERTS
    assert get_settings().ALERTS is None


def test_old_rows_are_forgotten() -> None:
    assert claim_alert("queue:a", "text")
    told(["queue:a"])
    make_older(told=31 * 24 * 60)
    tell(BY_MAIL)
    assert not Alert.objects.exists()
