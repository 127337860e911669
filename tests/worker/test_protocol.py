"""The line between a parent and its child: whole messages, however they arrive, and its end."""

import socket
import subprocess
import sys

import pytest

from django_jobs.worker.child.group import ProcessGroup
from django_jobs.worker.child.protocol import Line


@pytest.fixture
def ends() -> tuple[Line, socket.socket]:
    ours, theirs = socket.socketpair()
    return Line(ours), theirs


def test_messages_are_whole_however_they_arrive(ends: tuple[Line, socket.socket]) -> None:
    line, other = ends
    assert line.receive(0.0) == []
    other.sendall(b"hello host:1:ab\nali")
    assert line.receive(5) == [("hello", "host:1:ab")]
    other.sendall("ve \nanswer sätze mit wörtern\n".encode())
    assert line.receive(5) == [("alive", ""), ("answer", "sätze mit wörtern")]
    assert not line.has_ended
    line.close()
    other.close()


def test_both_ends_notice_that_the_other_process_is_gone(ends: tuple[Line, socket.socket]) -> None:
    line, other = ends
    assert line.send("run", "{}")
    assert other.recv(100) == b"run {}\n"
    other.close()
    assert line.receive(5) == []
    assert line.has_ended
    assert not line.send("run", "{}")
    line.close()


@pytest.mark.parametrize(("grace", "code"), [(0.0, -9), (10.0, 3)])
def test_a_group_gets_term_and_time_only_with_a_grace(grace: float, code: int) -> None:
    polite = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print(1, flush=True); time.sleep(60)"
    group = ProcessGroup([sys.executable, "-c", f"import signal, sys, time; {polite}"], stdout=subprocess.PIPE)
    assert group.popen.stdout is not None
    with group.popen.stdout:
        assert group.popen.stdout.readline() == b"1\n"
        group.end(grace)
    assert group.popen.returncode == code
    group.end(grace)  # again, when it is gone
