"""Queues spread over several servers: four PostgreSQL, each in a network of its own, and worker hosts that serve all of them.

Needs root, as `machines.py`. Each worker process serves every server (the setting DATABASES). `drain`: the same number of no-op
jobs on one server and on all; besides the rate, what part of a fair share the host had that got least, and when the first
server was empty ÷ when the last one was. `outage`: jobs that wait 10 ms on all servers, while one is killed and comes back after
some seconds: the rate of the others meanwhile ÷ before, the time from the server's return to its next job, and how many
jobs are not completed at the end. All share this machine's cores, so more servers cannot be faster here.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import network, private, stores, suite
from benchmarks.hosts import wait_until_registered, workers_on_hosts
from benchmarks.machines import by_host
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Commands

SERVERS = 4
HOSTS = 8
PORT = 5432
AWAY_SECONDS = 10.0
SETTLED_SECONDS = 4.0


def measure(peer: Peer, act: str, servers: int, hosts: int, jobs: int, limit: int) -> dict[str, Any]:
    """Return what `drain` or `outage` shows with so many of the servers."""
    here = network.current()
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(servers):
            server = private.Server(here.address_of(number), here.subnet, PORT, here.inside(number))
            stack.callback(server.close)
            server.start()
            started.append(server)
        places = [stores.Store("postgresql", server.url) for server in started]
        for place in places:
            stores.recreate(place)
        os.environ["BENCH_POSTGRESQL"] = places[0].url
        os.environ["BENCH_OTHER_SERVERS"] = ",".join(place.url for place in places[1:])
        peer.store = places[0]
        peer.prepare()
        return {"drain": _drain, "outage": _outage}[act](peer, started, hosts, jobs, limit)


def _drain(peer: Peer, started: list[private.Server], hosts: int, jobs: int, limit: int) -> dict[str, Any]:
    site = Site(peer, "tick", jobs)
    with site.workers(hosts) as running:
        began = time.monotonic()
        site.resume()
        empty: dict[str, float] = {}
        while len(empty) < len(site.aliases):
            if time.monotonic() - began > limit or running.all_ended():
                raise running.complaint(f"only {sorted(empty)} are empty")
            time.sleep(0.02)
            for alias in site.aliases:
                if alias not in empty and site.completed(alias) == site.each:
                    empty[alias] = time.monotonic() - began
    shares = site.shares()
    return {
        "jobs_per_second": jobs / max(empty.values()),
        "least_share": min(shares.values()) * hosts / sum(shares.values()) if len(shares) == hosts else 0.0,
        "first_of_last": min(empty.values()) / max(empty.values()),
    }


def _outage(peer: Peer, started: list[private.Server], hosts: int, jobs: int, limit: int) -> dict[str, Any]:
    site = Site(peer, "nap", jobs)
    others, victim = site.aliases[:-1], site.aliases[-1]

    def rate(seconds: float) -> float:
        before = sum(map(site.completed, others))
        time.sleep(seconds)
        return (sum(map(site.completed, others)) - before) / seconds

    with site.workers(hosts) as running:
        site.resume()
        time.sleep(SETTLED_SECONDS)
        calm = rate(SETTLED_SECONDS)
        had = site.completed(victim)
        started[-1].kill()
        pressed = rate(AWAY_SECONDS)
        started[-1].start()
        site.forget(victim)
        back = time.monotonic()
        while site.completed(victim) <= had:
            if time.monotonic() - back > limit or running.all_ended():
                raise running.complaint("no job of the server that came back was run")
            time.sleep(0.01)
        found = time.monotonic() - back
        while (left := sum(site.each - site.completed(alias) for alias in site.aliases)) and (
            time.monotonic() - back < limit
        ):
            time.sleep(0.2)
    return {"others_of_before": pressed / calm, "back_seconds": found, "jobs_per_second": calm, "not_completed": left}


class Site:
    """The databases of the servers, with `jobs` jobs spread over them that wait in a paused queue."""

    def __init__(self, peer: Peer, job: str, jobs: int) -> None:
        from django.conf import settings
        from django.core.management import call_command

        from django_jobs import NewJob, submit_many

        self.peer = peer
        self.aliases = list(settings.DATABASES)
        self.each = jobs // len(self.aliases)
        for alias in self.aliases:
            call_command("migrate", database=alias, verbosity=0)
            self._queue(alias, "pause")
            submit_many([NewJob(f"bench.{job}", {}) for _ in range(self.each)], using=alias)

    @contextlib.contextmanager
    def workers(self, hosts: int) -> Iterator[Commands]:
        """Run a worker process on each host, once all are there."""
        with workers_on_hosts(self.peer, hosts, hosts) as running:
            wait_until_registered(running, hosts, self.aliases)
            yield running

    def resume(self) -> None:
        for alias in self.aliases:
            self._queue(alias, "resume")

    def completed(self, alias: str) -> int:
        from django_jobs.models import Job

        return int(Job.objects.using(alias).filter(status="completed").count())

    def shares(self) -> dict[str, int]:
        """Return how many jobs each host completed on all servers."""
        found: dict[str, int] = {}
        for alias in self.aliases:
            for host, number in by_host(alias).items():
                found[host] = found.get(host, 0) + number
        return found

    def forget(self, alias: str) -> None:
        """Close the connection to a server that was killed."""
        from django.db import connections

        connections[alias].close()

    def _queue(self, alias: str, act: str) -> None:
        from django_jobs.db.connections import use_database
        from django_jobs.lifecycle import queues

        with use_database(alias):
            getattr(queues, act)("default")


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=60_000, waiting=20_000, limit=180)
    cases = [
        Case(
            "django_jobs",
            "postgresql",
            {"act": act, "servers": servers, "hosts": HOSTS, "jobs": jobs, "limit": options.limit},
        )
        for act, servers, jobs in (
            ("drain", 1, options.jobs),
            ("drain", SERVERS, options.jobs),
            ("outage", SERVERS, options.waiting),
        )
    ]
    with network.network(HOSTS):
        suite.run("servers", cases, options)


if __name__ == "__main__":
    main()
