"""What the tests in a real browser share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def browser(live_server: Any, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Browser]":
    """Give a headless Chromium, started after the database was made."""
    from tests.support.desk import chromium  # here, so that the other tests need no Playwright

    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with chromium() as started:
        yield started
