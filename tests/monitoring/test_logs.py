"""What our own log says of failures."""

import pytest

import django_jobs
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_crash_is_no_retry(caplog: pytest.LogCaptureFixture) -> None:
    leases.register("p", queues=[], threads=1)
    for job_id in ("a", "b"):
        django_jobs.submit("effects.record", job_id=job_id)
    crashed, failed = claim("default", 2, "p")
    options = registry.job_options(registry.get("effects.record"), "default")
    settle([Outcome.crashed(crashed, "killed", options), Outcome.failed(failed, ValueError("no"), options)], "p")
    told = sorted(record.getMessage() for record in caplog.records)
    assert told[0].startswith("job a (effects.record) crashed and starts again at ")
    assert told[0].endswith(": killed")
    assert told[1].endswith("(retry 1 of 3): ValueError: no")
