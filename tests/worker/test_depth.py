"""How deep a settle is: every frame is a wrapper that a reader must pass, and time for each job."""

import sys
from types import FrameType
from typing import Any

import pytest
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from django_jobs.worker.thread import Worker

from .conftest import Bench


@pytest.mark.databases("sqlite")
@pytest.mark.django_db(transaction=True)
def test_a_settle_is_at_most_nine_frames_deep(bench: Bench) -> None:
    """Counted are all Python frames from the worker thread's `run` to Django's `CursorWrapper.execute`, both included."""
    stacks: list[list[str]] = []

    def watch(execute: Any, sql: str, *rest: Any) -> Any:
        if "'completed'" in sql and sql.lstrip().startswith("UPDATE") and (stack := _frames()):
            stacks.append(stack)
        return execute(sql, *rest)

    def add_watch(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(watch)

    connection_created.connect(add_watch)
    try:
        bench.handle("t.ok", lambda payload: None)
        assert set(bench.run(*(bench.submit("t.ok") for _ in range(5)))) == {"completed"}
    finally:
        connection_created.disconnect(add_watch)
    assert stacks
    deepest = max(stacks, key=len)
    assert len(deepest) <= 9, " > ".join(deepest)


def _frames() -> list[str]:
    """Return the functions from one end to the other, the outermost first; none in another thread, as the watchdog is."""
    frame: FrameType | None = sys._getframe()
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    if Worker.run.__code__ not in codes:
        return []
    inside = codes[codes.index(CursorWrapper.execute.__code__) : codes.index(Worker.run.__code__) + 1]
    return [code.co_name for code in reversed(inside)]
