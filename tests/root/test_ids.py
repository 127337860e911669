"""Ids of jobs: time-ordered and distinct, over threads, forks and a clock that goes back."""

import os
import threading
import time
import uuid

import pytest

from django_jobs import ids
from django_jobs.ids import new_id


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
