"""Several databases in one worker: one server away, kills; nothing is lost, and nobody waits for another's server."""

import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from django.db import connections
from django.test import override_settings

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Job, WorkerProcess
from tests.support.databases import new_url
from tests.support.effects.models import Effect
from tests.support.proc import children
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PrivateServer
from tests.support.several import known_as, more_databases
from tests.support.waiting import wait_until

pytestmark = pytest.mark.fault
SETTINGS = {"DATABASES": ["default", "tenant"], "LEASE_SECONDS": 40}
AWAY_SECONDS = 20


@contextmanager
def _both(tmp_path: Path) -> Iterator[dict[str, str]]:
    url = new_url("sqlite", tmp_path, suffix="_tenant")
    with more_databases({"tenant": url}) as environment, override_settings(DJANGO_JOBS=SETTINGS):
        yield environment


def _are_all_completed(alias: str) -> bool:
    return not Job.objects.using(alias).exclude(status="completed").exists()


def _delays(seconds: float, aliases: Sequence[str] = ("tenant",)) -> list[float]:
    """Submit a job to the databases that are there, in turns; return how long each took to be completed."""
    delays, end = [], time.monotonic() + seconds
    for alias in itertools.cycle(aliases):
        if time.monotonic() > end:
            break
        job = django_jobs.submit("effects.record_here", using=alias)
        started = time.monotonic()
        done = Job.objects.using(alias).filter(pk=job.pk, status="completed")
        wait_until(done.exists, 60)
        delays.append(time.monotonic() - started)
        time.sleep(0.05)
    return delays


def _freeze(server: PrivateServer) -> Callable[[], None]:
    """Stop all processes of a server, so that it is silent; return what lets them go on."""
    assert server.pid is not None
    pids = [server.pid, *children(server.pid)]
    _signal_all(pids, signal.SIGSTOP)
    return lambda: _signal_all(pids, signal.SIGCONT)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it was about to end
            os.kill(pid, number)


def _kill(server: PrivateServer) -> Callable[[], None]:
    server.kill()
    return server.start


@pytest.mark.parametrize("take_away", [_kill, _freeze], ids=["killed", "silent"])
def test_one_server_away_holds_nobody_up_and_loses_nothing(
    private_server: PrivateServer, tmp_path: Path, take_away: Callable[[PrivateServer], Callable[[], None]]
) -> None:
    with _both(tmp_path) as environment:
        kinds = ["effects.record_here", "effects.record"]
        with spawn_workers("--threads", "4", settings=SETTINGS, env=environment) as workers:
            wait_until(lambda: WorkerProcess.objects.using("tenant").registered().exists(), 60, workers.output())
            submitted = django_jobs.submit_many([NewJob(kinds[number % 2]) for number in range(3000)], using="default")
            wait_until(lambda: Job.objects.using("default").filter(status="completed").count() > 100, 60)
            connections["default"].close()
            back = take_away(private_server)
            delays = _delays(AWAY_SECONDS)
            back()
            wait_until(lambda: _are_all_completed("default"), 60, workers.output())
            output = workers.output()
        assert max(delays) < 2, f"{sorted(delays)[-5:]} of {len(delays)}\n{output}"
        assert output.count("the database 'default' cannot be used") <= 2, output
        atomic = [job.pk for job in submitted if job.job_type == "effects.record_here"]
        effects = list(Effect.objects.using("default").filter(job_id__in=atomic).values_list("job_id", flat=True))
        assert sorted(effects) == sorted(atomic), "each effect once"


@contextmanager
def _kills(workers: Workers) -> Iterator[None]:
    """Kill a child of the supervisor every few seconds."""
    chance, is_over = random.Random(7), threading.Event()

    def kill() -> None:
        while not is_over.wait(chance.uniform(1.5, 3)):
            pids = [pid for pid in workers.pids() if pid != workers.pid]
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()


def test_kills_lose_nothing_in_either_database(private_server: PrivateServer, tmp_path: Path) -> None:
    settings = {**SETTINGS, "LEASE_SECONDS": 2}
    with _both(tmp_path) as environment, override_settings(DJANGO_JOBS=settings):
        for alias in ("default", "tenant"):
            django_jobs.submit_many([NewJob("effects.record_here") for _ in range(1500)], using=alias)
        with spawn_workers("--processes", "2", "--threads", "3", settings=settings, env=environment) as workers:
            with _kills(workers):
                time.sleep(15)
                for alias in ("default", "tenant"):
                    django_jobs.submit_many([NewJob("effects.record_here") for _ in range(500)], using=alias)
                time.sleep(5)
            for alias in ("default", "tenant"):
                wait_until(lambda alias=alias: _are_all_completed(alias), 90, f"{alias}: {workers.output()[-3000:]}")
        for alias in ("default", "tenant"):
            done = sorted(Job.objects.using(alias).values_list("id", flat=True))
            assert sorted(Effect.objects.using(alias).values_list("job_id", flat=True)) == done, "each effect once"


def test_twenty_databases_outlive_a_server_that_is_away_and_kills(
    private_server: PrivateServer, tmp_path: Path
) -> None:
    urls = {f"t{number}": f"sqlite:///{tmp_path}/t{number}.sqlite3" for number in range(19)}
    aliases = ["default", *urls]
    settings = {"DATABASES": aliases, "LEASE_SECONDS": 10}
    with ExitStack() as stack:
        stack.enter_context(more_databases({"empty": new_url("sqlite", tmp_path, suffix="_empty")}))
        connections["empty"].close()  # what it wrote goes into the file
        for alias, url in urls.items():
            shutil.copy(connections["empty"].settings_dict["NAME"], tmp_path / f"{alias}.sqlite3")
            stack.enter_context(known_as(alias, url))
        stack.enter_context(override_settings(DJANGO_JOBS=settings))
        workers = stack.enter_context(
            spawn_workers(
                "--processes", "2", "--threads", "4", settings=settings, env={"MORE_DATABASES": json.dumps(urls)}
            )
        )
        wait_until(lambda: WorkerProcess.objects.using("t18").registered().exists(), 60, workers.output())
        _submit_to(list(urls), 100)
        for alias in urls:  # a job that is timed below waits for none of these
            wait_until(lambda alias=alias: _are_all_completed(alias), 120, f"{alias}: {workers.output()[-3000:]}")
        _submit_to(["default"], 300)
        wait_until(lambda: Job.objects.using("default").filter(status="completed").exists(), 60)
        connections["default"].close()
        private_server.kill()
        delays = sorted(_delays(AWAY_SECONDS, list(urls)))
        private_server.start()
        print(
            f"\n{len(delays)} jobs beside a server that is away: median {delays[len(delays) // 2]:.3f} s, {delays[-3:]}"
        )
        assert delays[-1] < 2, f"{delays[-5:]} of {len(delays)}\n{workers.output()}"
        with _kills(workers):
            _submit_to(aliases, 50)
            time.sleep(15)
        for alias in aliases:
            wait_until(lambda alias=alias: _are_all_completed(alias), 120, f"{alias}: {workers.output()[-3000:]}")
            done = sorted(Job.objects.using(alias).values_list("id", flat=True))
            assert len(done) >= 150, "nothing is lost"
            assert sorted(Effect.objects.using(alias).values_list("job_id", flat=True)) == done, "each effect once"


def _submit_to(aliases: Sequence[str], number: int) -> None:
    for alias in aliases:
        django_jobs.submit_many([NewJob("effects.record_here") for _ in range(number)], using=alias)
