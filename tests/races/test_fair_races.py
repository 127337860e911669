"""Turns under claims at the same moment on real connections: exactly one job a key in each round, and none twice."""

from collections import Counter
from collections.abc import Iterator

import pytest

from django_jobs import NewJob, job, submit_many
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import claim
from django_jobs.models import Job
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "fair.raced"
PROCESSES = [f"p{number}" for number in range(4)]
KEYS = "abcde"


@pytest.fixture(autouse=True)
def keyed() -> Iterator[None]:
    job(NAME, fair_key="tenant")(lambda payload: None)
    for name in PROCESSES:
        leases.register(name, queues=[], threads=1)
    yield
    registry.forget(NAME)


def test_claims_of_many_processes_share_the_rounds_of_one_queue() -> None:
    submit_many([NewJob(NAME, {"tenant": key}) for key in KEYS for _ in range(20)])

    def claimed(process_id: str) -> list[str]:
        return [one.id for _ in range(5) for one in claim("default", 3, process_id)]

    taken = [job_id for some in run_in_threads([lambda n=n: claimed(n) for n in PROCESSES]) for job_id in some]
    assert len({*taken}) == len(taken)
    by_key = Counter(Job.objects.filter(status="running").values_list("fair_key", flat=True))
    assert by_key == dict.fromkeys(KEYS, len(PROCESSES) * 5 * 3 // len(KEYS))


def test_claims_of_many_processes_leave_no_job_of_any_key() -> None:
    submit_many(
        [
            NewJob(NAME, {"tenant": key})
            for key, number in zip(KEYS, (60, 1, 7, 2, 30), strict=True)
            for _ in range(number)
        ]
    )

    def drained(process_id: str) -> list[str]:
        found = []
        while jobs := claim("default", 7, process_id):
            found += [one.id for one in jobs]
        return found

    taken = [job_id for some in run_in_threads([lambda n=n: drained(n) for n in PROCESSES]) for job_id in some]
    assert len(taken) == 100
    assert len({*taken}) == 100
    assert not Job.objects.ready().exists()
