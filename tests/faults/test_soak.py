"""A soak: everything on, random faults of all kinds, for as long as is wanted; who survives them all must not grow.

`JOBS_SOAK_SECONDS` says how long (default 600; an hour is worth having), `JOBS_SOAK_RECORD` names a file to which the
samples go, one JSON object a line, for `python -m benchmarks.curves` to draw.
"""

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.test import override_settings

from django_jobs.handlers import registry
from django_jobs.library.scheduler import Scheduler
from django_jobs.lifecycle import active_limits
from django_jobs.models import Job
from tests.support.databases import VENDORS, create_database, default_database_at, migrate, new_url
from tests.support.effects import limited
from tests.support.hooks import hook
from tests.support.invariants import check_drained
from tests.support.processes import spawn_workers
from tests.support.servers import PRIVATE_SERVERS, PrivateServer
from tests.support.several import more_databases
from tests.support.waiting import wait_until

from .soak import (
    FAULTS,
    FAULTS_OF_SERVERS,
    SETTINGS,
    Ledger,
    Load,
    Refused,
    Sample,
    Scene,
    Storm,
    check_limits,
    record,
    sample,
)

pytestmark = pytest.mark.fault
SECONDS = float(os.environ.get("JOBS_SOAK_SECONDS", "600"))
RECORD = os.environ.get("JOBS_SOAK_RECORD", "")
ROUND_SECONDS = 0.8
SAMPLE_SECONDS = max(1.0, SECONDS / 600)
FAULT_SECONDS = (3.0, 8.0)
RETIRE_SECONDS = 5.0


@pytest.fixture(params=VENDORS)
def server(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[PrivateServer | None]:
    """Give a server of the test's own, migrated and `default`; None for an SQLite file."""
    with ExitStack() as stack:
        own = stack.enter_context(PRIVATE_SERVERS[request.param]()) if request.param in PRIVATE_SERVERS else None
        stack.enter_context(django_db_blocker.unblock())
        url = new_url(request.param, tmp_path, own.url if own else None)
        create_database(url)
        with default_database_at(url):
            migrate()
            yield own


@contextmanager
def _everything_on(tmp_path: Path) -> Iterator[tuple[dict[str, str], dict[str, Any], Any]]:
    """Declare limits and a schedule, open a second database and a receiver of alerts; give environment and settings."""
    limited.declare()
    limited.declare_rated()
    try:
        with more_databases({"tenant": new_url("sqlite", tmp_path, suffix="_tenant")}) as env, hook() as alerts:
            settings = {**SETTINGS, "ALERTS": {"webhook": alerts.url, "queue_wait": "10m"}}
            with override_settings(DJANGO_JOBS=settings):
                Scheduler().schedule_interval("every second", "effects.record", 1, {"kind": "tick"})
                yield {**env, "JOBS_TEST_LIMITS": "1", "JOBS_TEST_RATES": "1"}, settings, alerts
    finally:
        for name in (*limited.TYPES, limited.RATED):
            registry.forget(name)
        active_limits.forget_queues()


def _median(samples: list[Sample]) -> Sample:
    return Sample(*(round(statistics.median(values), 1) for values in zip(*map(astuple, samples), strict=True)))


def _open_jobs() -> int:
    return sum(Job.objects.using(alias).live().count() for alias in ("default", "tenant"))


def test_nothing_is_lost_and_nothing_grows_while_everything_is_on(server: PrivateServer | None, tmp_path: Path) -> None:
    samples: list[Sample] = []
    kinds = FAULTS + (FAULTS_OF_SERVERS if server else [])
    faults: Counter[str] = Counter()
    with _everything_on(tmp_path) as (env, settings, alerts), record(RECORD) as keep, ExitStack() as stack:
        home, tenant = Ledger("default"), Ledger("tenant")
        load = Load(home, tenant)
        survivor = stack.enter_context(
            spawn_workers("--threads", "4", "--queues", "default", settings=settings, env=env)
        )
        storm = Storm(env, settings)
        stack.callback(storm.close)
        scene = Scene(storm, survivor, server)
        survivor.wait_ready(timeout=120)
        began = now = time.monotonic()
        next_round = next_sample = next_retirement = began
        next_fault = began + FAULT_SECONDS[0]
        while (now := time.monotonic()) < began + SECONDS:
            if now >= next_fault:
                fault = random.choice(kinds)
                with suppress(ProcessLookupError, IndexError, *Refused):
                    fault(scene)
                    faults[fault.__name__] += 1
                connections["default"].close()
                next_fault = time.monotonic() + random.uniform(*FAULT_SECONDS)
            with suppress(*Refused):  # a server that comes up answers a little later
                if now >= next_round and Job.objects.live().count() < 1_000:
                    next_round = now + ROUND_SECONDS
                    load()
                if now >= next_sample:
                    next_sample = now + SAMPLE_SECONDS
                    samples.append(sample(survivor, now - began))
                    keep(samples[-1])
                    check_limits()
                if now >= next_retirement:
                    next_retirement = now + RETIRE_SECONDS
                    home.retire()
                    tenant.retire()
            assert survivor.is_running(), survivor.output()[-5000:]
            time.sleep(0.02)
        connections["default"].close()
        for timer in scene.late:
            timer.join()
        assert Scheduler().cancel("every second")
        load.ask_the_last()
        wait_until(lambda: _open_jobs() == 0, 300, "the end of all jobs")
        for workers in (storm.workers, survivor):
            assert workers.is_running(), "no fault ended a supervisor or the survivor"
            workers.terminate()
        for workers in (storm.workers, survivor):
            assert workers.wait(60) == 0
        home.retire()
        tenant.retire()
        output = survivor.output() + "".join(storm.outputs) + storm.workers.output()
        check_drained(home.acknowledged, output=output)
        missing = set(tenant.acknowledged) - {*Job.objects.using("tenant").values_list("pk", flat=True)}
        assert not missing
        told = Counter(alerts.keys)
        assert all(count <= 1 + SECONDS // 3600 for count in told.values()), told
        others = Job.objects.exclude(status__in=["completed", "cancelled"]).exclude(
            job_type__in=["effects.fail", "effects.kill_self"]
        )
        assert not others.exists(), [(job.pk, job.status, job.error) for job in others[:5]]
    quarter = len(samples) // 4
    before, after = _median(samples[quarter : 2 * quarter]), _median(samples[-quarter:])
    done = home.ended + len(home.acknowledged) + tenant.ended + len(tenant.acknowledged)
    print(f"\n{connection.vendor}: {done} jobs in {SECONDS:.0f} s, {sum(faults.values())} faults {dict(faults)},")
    print(f"  {len(alerts.keys)} alerts, {len(home.callbacks)} batches\n  {before}\n  {after}")
    assert after.megabytes <= before.megabytes * 1.1 + 2, (before, after)
    assert after.threads <= before.threads + 2, (before, after)
    assert after.descriptors <= before.descriptors + 4, (before, after)
    assert after.sessions <= before.sessions + 4, (before, after)
    assert after.processes <= before.processes + 10, (before, after)
