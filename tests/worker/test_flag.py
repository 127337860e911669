"""A flag that a signal's handler may set, whatever the thread that it interrupts is about to do."""

import subprocess
import sys
import threading
import time

from django_jobs.worker.flag import Flag

# Waits by the thousand, while another process sends signals; each handler sets the flag that is waited for.
INTERRUPTED = """
import os, random, signal, subprocess, sys, threading
from django_jobs.worker.flag import Flag

flags = [Flag()]
signal.signal(signal.SIGUSR1, lambda number, frame: flags[-1].set())
sender = subprocess.Popen([sys.executable, "-c", f'''
import os, random, signal, time
while os.getppid() == {os.getpid()}:
    time.sleep(random.random() * 0.0004)
    os.kill({os.getpid()}, signal.SIGUSR1)
'''])
seen = waits = 0
while seen < 300 or waits < 3000:
    waits += 1
    seen += flags[-1].wait(0.00005)
    flags[:] = [Flag()]
sender.kill()
"""


def test_it_is_set_in_the_middle_of_a_wait() -> None:
    """With an Event in its place the handler waited for the wait that it had interrupted, or broke."""
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=120)


def test_all_who_wait_are_told_and_who_comes_later_does_not_wait() -> None:
    flag, told = Flag(), list[bool]()
    threads = [threading.Thread(target=lambda: told.append(flag.wait(60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    flag.set()
    for thread in threads:
        thread.join(60)
    assert told == [True] * 3
    assert flag.is_set()
    began = time.monotonic()
    assert flag.wait(60)
    assert time.monotonic() - began < 30


def test_a_wait_that_is_over_says_that_it_was_not_set() -> None:
    assert not Flag().wait(0.01)
    assert not Flag().wait(-1)
