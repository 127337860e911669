"""The small words: names, ids, errors and signals; and that none of them needs the apps to be loaded."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.dispatch import Signal

from django_jobs import ids, names, signals
from django_jobs.exceptions import (
    Cancelled,
    CycleError,
    Fail,
    HandlerNotFound,
    InvalidJob,
    JobNotFound,
    JobsError,
    LeaseLost,
    Retry,
    Snooze,
    TimedOut,
)
from django_jobs.ids import new_id
from django_jobs.names import did_you_mean, id_problem, job_type_problem, queue_problem, unique_key_problem

WORDS = ("checks", "conf", "cron", "exceptions", "ids", "names", "payloads", "retry", "signals", "text", "values")


@pytest.mark.parametrize("word", WORDS)
def test_a_word_can_be_imported_before_django_is_set_up(word: str) -> None:
    code = f"import django_jobs.{word}, django.apps; assert not django.apps.apps.ready"
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- names


@pytest.mark.parametrize("name", ["a", "shop.jobs.settle_order", "email.welcome", "a:b/c-d", "m.<locals>.f", "x" * 200])
def test_a_sound_job_type_has_no_problem(name: str) -> None:
    assert job_type_problem(name) is None


@pytest.mark.parametrize("check", [job_type_problem, queue_problem, id_problem, unique_key_problem])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        (" a", "nor start or end with a blank"),
        ("a\n", "nor start or end with a blank"),
        ("x" * 201, "it has 201 characters; at most"),
        (None, "give a string, not NoneType"),
        (7, "give a string, not int"),
        (b"a", "give a string, not bytes"),
    ],
)
def test_no_name_is_empty_blank_long_or_no_string(check: Any, value: Any, said: str) -> None:
    assert said in check(value)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\x7fb", "a\ud800b", "a\u2028b"])
def test_no_name_has_characters_that_cannot_be_printed(value: str) -> None:
    for check in (job_type_problem, queue_problem, id_problem, unique_key_problem):
        assert "cannot be printed" in (check(value) or "")


def test_queues_and_job_types_are_plain_and_ids_are_free() -> None:
    assert queue_problem("a;drop") == "queue 'a;drop': use letters, digits and _ - . :"
    assert queue_problem("a/b") == "queue 'a/b': use letters, digits and _ - . :"
    assert queue_problem("größe") is not None
    assert job_type_problem("a b") == "job_type 'a b': use letters, digits and _ - . : /"
    assert id_problem("order 7 / größe 🎉") is None
    assert unique_key_problem("welcome:7; x") is None


def test_lengths_are_limited() -> None:
    assert queue_problem("x" * names.MAX_QUEUE) is None
    assert "at most 64" in (queue_problem("x" * 65) or "")
    assert "at most 64" in (id_problem("x" * 65) or "")
    assert "at most 200" in (unique_key_problem("x" * 201) or "")
    assert len(id_problem("x" * 10_000) or "") < 200


def test_the_nearest_known_word_is_suggested() -> None:
    assert did_you_mean("prioriy", ["priority", "queue"]) == " Did you mean 'priority'?"
    assert did_you_mean("zzz", ["priority", "queue"]) == ""
    assert did_you_mean(7, ["priority"]) == ""


# --- ids


def test_an_id_is_a_time_ordered_uuid() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    parsed = uuid.UUID(made)
    assert str(parsed) == made
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_of_four_threads_are_distinct_and_increase_in_each() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into.extend(new_id() for _ in range(50_000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for into in made for one in into}) == 200_000
    for into in made:
        assert into == sorted(into)


def test_ids_increase_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    now = time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: now - 3_600_000_000_000)
    later = [new_id() for _ in range(1000)]
    assert [first, *later] == sorted({first, *later})


def test_a_forked_child_makes_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns() + 5_000_000
    monkeypatch.setattr(ids.time, "time_ns", lambda: now)  # parent and child within one millisecond
    new_id()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "".join(new_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(reader, 100_000).decode()
    os.close(reader)
    os.close(writer)
    theirs = {text[at : at + 36] for at in range(0, len(text), 36)}
    assert len(theirs) == 100
    assert theirs.isdisjoint(new_id() for _ in range(100))


# --- errors


def test_errors_are_of_one_family_and_of_pythons_kinds() -> None:
    for error in (InvalidJob, CycleError, JobNotFound, HandlerNotFound, LeaseLost, TimedOut, Retry, Snooze, Fail):
        assert issubclass(error, JobsError)
    assert issubclass(InvalidJob, ValueError)
    assert issubclass(CycleError, InvalidJob)
    assert issubclass(JobNotFound, KeyError)
    assert issubclass(TimedOut, TimeoutError)


def test_errors_read_well() -> None:
    assert str(InvalidJob("one", "two")) == "one; two"
    assert InvalidJob("one", "two").problems == ("one", "two")
    assert str(JobNotFound("x")) == "there is no job 'x'"
    assert str(Fail("why")) == "why"
    assert str(Cancelled()) == "Cancelled"
    assert str(Retry(5, "busy")) == "busy"


@pytest.mark.parametrize(
    "error", [InvalidJob("a", "b"), JobNotFound("x"), Retry(5, "busy"), Snooze(2, "x"), Fail("why"), TimedOut("slow")]
)
def test_errors_travel_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_timeout_can_be_raised_in_a_thread_by_its_class() -> None:
    with pytest.raises(TimeoutError):
        raise TimedOut


# --- signals


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
