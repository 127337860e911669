"""The limit of a JobQueue: it holds in the database of that object, and a child without the object can be told of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_jobs import Limit
from django_jobs.db.connections import use_database
from django_jobs.lifecycle import active_limits
from django_jobs.lifecycle.active_limits import declared_limits, limit_of_queue_object
from django_jobs.limit import queue_owner
from django_jobs.queue import JobQueue
from tests.support.databases import Database, new_url
from tests.support.several import more_databases


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    active_limits.forget_queues()


@pytest.fixture
def django_db_setup(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[None]:
    """Give a second database, migrated, before Django looks which ones the test may use."""
    url = new_url(database.vendor, tmp_path, suffix="_tenant")
    with django_db_blocker.unblock(), more_databases({"tenant": url}):
        yield


@pytest.mark.django_db(transaction=True, databases=["default", "tenant"])
@pytest.mark.slow
def test_two_objects_of_one_name_have_their_own_limits_in_their_databases(settings: Any) -> None:
    of_settings = {"QUEUES": {"mail": {"limit": {"concurrency": 9}}, "other": {"limit": {"concurrency": 8}}}}
    settings.DJANGO_JOBS = {"DATABASES": ["default", "tenant"], **of_settings}

    def numbers() -> list[dict[str, int | None]]:
        found = []
        for alias in ("default", "tenant"):
            with use_database(alias):
                active = active_limits.active_limits().queues
                assert active["mail"].concurrency == declared_limits()["queue:mail"].concurrency
                found.append({name: limit.concurrency for name, limit in active.items()})
        return found

    assert numbers() == [{"mail": 9, "other": 8}] * 2
    JobQueue("mail", using="tenant", limit=Limit(concurrency=5))
    assert numbers() == [{"mail": 9, "other": 8}, {"mail": 5, "other": 8}]
    JobQueue("mail", using="default", limit=Limit(concurrency=1))
    assert numbers() == [{"mail": 1, "other": 8}, {"mail": 5, "other": 8}]
    JobQueue("other", limit=Limit(concurrency=2))
    assert numbers() == [{"mail": 1, "other": 2}, {"mail": 5, "other": 8}]
    with use_database("tenant"):
        assert limit_of_queue_object("mail") == Limit(concurrency=5)
        assert limit_of_queue_object("other") is None


@pytest.mark.parametrize("name", [None, "x"])
@pytest.mark.parametrize("key", [None, "a", lambda payload: payload["a"]], ids=["no key", "key", "function"])
@pytest.mark.parametrize("numbers", [{"concurrency": 3, "rate": "2/h"}, {"concurrency": 3}, {"rate": "2/h"}], ids=str)
def test_what_is_told_of_a_limit_makes_one_that_counts_alike(numbers: Any, key: Any, name: str | None) -> None:
    limit = Limit(**numbers, key=key, name=name)
    other = Limit(**json.loads(json.dumps(limit.told)))

    def how_it_counts(one: Limit) -> tuple[object, ...]:
        return one.full_name(queue_owner("mail")), one.key is not None, one.concurrency, one.parsed_rate

    assert how_it_counts(other) == how_it_counts(limit)
    assert callable(key) or other == limit
