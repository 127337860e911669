"""End-to-end tests: those of the browser run where there is one, and the summary says so where there is none."""

import os
import shutil

import pytest

BROWSERS = ("chromium", "google-chrome")


def has_browser() -> bool:
    """Whether a Chromium can be found."""
    return bool(os.environ.get("CHROMIUM")) or any(shutil.which(name) for name in BROWSERS)


# CI requires everything, so there the tests run and fail for want of a browser.
RUNS = has_browser() or os.environ.get("JOBS_TEST_REQUIRE") == "1"
collect_ignore = [] if RUNS else ["test_admin_browser.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say when the browser's tests were left out."""
    if not RUNS:
        terminalreporter.write_line("browser: not run (no Chromium on the PATH; set CHROMIUM or install one)")
