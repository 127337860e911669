"""A pytest plugin: `pytest_plugins = ["django_jobs.testing.plugin"]` in the root conftest.py gives the fixture `jobs`."""

from __future__ import annotations

from types import ModuleType

import pytest

import django_jobs.testing


@pytest.fixture
def jobs(db: None) -> ModuleType:
    """Give `django_jobs.testing`, with the database: `jobs.run_due()`, `jobs.assert_submitted("email.welcome")`."""
    return django_jobs.testing
