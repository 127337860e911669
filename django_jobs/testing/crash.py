"""Let the process of a workflow die, in a test, right after a step was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from django_jobs.worker.steps import Steps


class ProcessDied(BaseException):
    """Ends a run as a SIGKILL would, as far as that can be done without one: `finally` blocks do run."""


@contextmanager
def crash_after(name: str) -> Iterator[None]:
    """Let a run that records this step in the block end right behind the record, as if its process had been killed.

    It counts as a crash of the job, which is due again at once: the next `run_due` goes on behind the record. Fails when no run
    came there.

    Args:
        name: of the step, sleep, event or loop; of the second use of a name it is `name#2`.
    """
    recorded, crashed = Steps.recorded, []

    def die(steps: Steps, step: str) -> None:
        recorded(steps, step)
        if step == name:
            crashed.append(step)
            raise ProcessDied(f"the process died after step {name!r}, as the test wanted")

    with mock.patch.object(Steps, "recorded", die):
        yield
    if not crashed:
        raise AssertionError(f"no step {name!r} was recorded in the block")
