"""Tables of guards: what takes one out, the check that fails without it, and the databases where that is so."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

SERVERS = ("postgresql", "mariadb")
EVERYWHERE = (*SERVERS, "sqlite")


def each_guard(rows: Iterable[tuple[Callable[..., Any], Callable[[], None], tuple[str, ...]]]) -> Iterator[Any]:
    """Yield the parameters (taken_out, check) of a test for each row."""
    for taken_out, check, vendors in rows:
        marks = [pytest.mark.databases(*vendors)]
        yield pytest.param(taken_out, check, marks=marks, id=f"{taken_out.__name__}-{check.__name__}")
