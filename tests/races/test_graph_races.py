"""Graphs under contention: no wake is lost, nothing starts early, no deadlock surfaces."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import pytest
from django.db.models import F

import django_jobs
from django_jobs import NewJob
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobDependency, JobStatus
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained, check_invariants
from tests.support.processes import spawn_workers
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def submit_races_settle(rounds: int) -> None:
    """Settle a dependency and submit its dependent at the same moment; the dependent must always become ready."""
    leases.register("p", queues=[], threads=2)
    ready = threading.Barrier(2, timeout=30)

    def settle_each() -> None:
        for number in range(rounds):
            ready.wait()
            if number % 50 == 0:
                leases.beat("p")
            (job,) = claim(f"q{number % 2}", 1, "p")
            ready.wait()
            assert settle([Outcome.completed(job)], "p") == set()

    def submit_each() -> None:
        for number in range(rounds):
            django_jobs.submit("effects.record", {}, job_id=f"d{number}", queue=f"q{number % 2}")
            ready.wait()
            ready.wait()
            django_jobs.submit("effects.record", {}, depends_on=[f"d{number}"], queue="dependents")

    run_in_threads([settle_each, submit_each], timeout=900)
    assert Job.objects.filter(queue="dependents", pending_dependencies=0, status="pending").count() == rounds
    assert not JobDependency.objects.exclude(state="satisfied").exists()


def test_a_wake_is_never_lost_to_a_submit_at_the_same_moment() -> None:
    submit_races_settle(60)


@pytest.mark.load
def test_a_wake_is_never_lost_in_five_thousand_rounds() -> None:
    submit_races_settle(5000)


def submit_races_a_worker(rounds: int) -> None:
    """Submit dependents while a worker process settles their dependency; the delay homes in on that very moment."""
    delay, waited, number = 0.01, 0, 0
    with spawn_workers("--threads", "2", settings={"POLL_INTERVAL": 0.01}) as workers:
        workers.wait_ready()
        # On a slow machine it takes more rounds until the delay is long enough: it doubles in seven of them.
        while number < rounds or (not 0 < waited < number and number < rounds + 100):
            django_jobs.submit("effects.record", {}, job_id=f"d{number}", priority=9)
            time.sleep(delay)  # the race's own rhythm
            dependent = django_jobs.submit("effects.record", {}, job_id=f"e{number}", depends_on=[f"d{number}"])
            waited += dependent.pending_dependencies
            delay = delay * 1.1 + 0.0001 if dependent.pending_dependencies else delay / 1.1
            number += 1
        wait_until(lambda: not Job.objects.live().exists(), timeout=300, what="all dependents to be woken")
    assert 0 < waited < number, "both came first now and then"
    order = dict(Effect.objects.values_list("job_id", "id"))
    assert len(order) == Effect.objects.count() == 2 * number
    assert all(order[f"d{place}"] < order[f"e{place}"] for place in range(number))
    check_edges()
    check_invariants()


@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_a_wake_is_never_lost_to_a_submit_beside_a_worker_process() -> None:
    submit_races_a_worker(40)


@pytest.mark.load
def test_a_wake_is_never_lost_in_five_thousand_rounds_beside_a_worker_process() -> None:
    submit_races_a_worker(5000)


def settle_shared(dependencies: int, dependents: int, threads: int) -> None:
    """Let threads settle, in random order, jobs that share dependents."""
    leases.register("p", queues=[], threads=threads)
    ids = [f"d{number}" for number in range(dependencies)]
    django_jobs.submit_many(
        [NewJob("effects.record", job_id=one) for one in ids]
        + [NewJob("effects.record", job_id=f"last{n}", depends_on=ids, queue="last") for n in range(dependents)]
    )
    claimed = []
    while batch := claim("default", 500, "p"):
        claimed += batch
    random.Random(7).shuffle(claimed)

    def settle_share(number: int) -> None:
        mine = claimed[number::threads]
        for start in range(0, len(mine), 5):
            done = [Outcome.completed(job) for job in mine[start : start + 5]]
            assert settle(done, "p") == set()

    run_in_threads([lambda number=number: settle_share(number) for number in range(threads)], timeout=600)
    assert Job.objects.filter(queue="last", pending_dependencies=0).count() == dependents
    check_edges()


def check_edges() -> None:
    assert not JobDependency.objects.filter(state="open").exists()
    assert not Job.objects.filter(pending_dependencies__gt=0).exists()


def test_threads_that_settle_shared_dependencies_do_not_deadlock() -> None:
    settle_shared(dependencies=80, dependents=10, threads=4)


@pytest.mark.load
def test_eight_threads_settle_two_thousand_dependencies_of_fifty_jobs() -> None:
    settle_shared(dependencies=2000, dependents=50, threads=8)


@pytest.mark.fault
def test_eight_processes_settle_dependencies_that_share_fifty_dependents() -> None:
    ids = [f"d{number}" for number in range(400)]
    django_jobs.submit_many(
        [NewJob("effects.record", job_id=one) for one in ids]
        + [NewJob("effects.record", job_id=f"last{n}", depends_on=ids) for n in range(50)]
    )
    with spawn_workers("--processes", "8", "--threads", "2", settings={"LEASE_SECONDS": 20}) as workers:
        wait_until(lambda: not Job.objects.live().exists(), timeout=240, what="the dependents")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(output=workers.output())
    assert "deadlock" not in workers.output().lower()
    assert Job.objects.filter(status="completed").count() == Effect.objects.count() == 450


def drain_graph(nodes: int, kills: int) -> None:
    """Drain a random graph of atomic jobs with four processes, some of them killed; each job once, in order."""
    source = random.Random(11)
    batch = []
    for number in range(nodes):
        parents = source.sample(range(number), min(number, source.choice((0, 1, 1, 2, 3)))) if number else []
        batch.append(
            NewJob("effects.record_atomic", job_id=f"n{number:05}", depends_on=[f"n{parent:05}" for parent in parents])
        )
    for start in range(0, nodes, 1000):
        django_jobs.submit_many(batch[start : start + 1000])
    settings = {"LEASE_SECONDS": 4}
    with spawn_workers("--processes", "4", "--threads", "2", settings=settings) as workers:
        workers.wait_ready(processes=4, timeout=60)
        for _ in range(kills):
            time.sleep(0.5)  # the storm's own rhythm, not a wait for anything
            children = [pid for pid in workers.pids() if pid != workers.pid]
            if children:
                kill(source.choice(children))
        wait_until(lambda: not Job.objects.live().exists(), timeout=600, what="the graph to drain")
        output = workers.output()
    order = dict(Effect.objects.values_list("job_id", "id"))
    assert len(order) == Effect.objects.count() == nodes, "each job's effect exactly once"
    early = [
        (job, parent)
        for job, parent in JobDependency.objects.values_list("job_id", "depends_on_id")
        if order[job] < order[parent]
    ]
    assert not early, early[:5]
    assert "deadlock" not in output.lower()
    check_invariants()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.mark.fault
def test_a_graph_of_ten_thousand_nodes_drains_in_order_under_a_kill_storm() -> None:
    drain_graph(10_000, kills=20)


@pytest.mark.slow
def test_a_random_graph_drains_in_order_over_four_processes() -> None:
    drain_graph(300, kills=2)


def tree() -> list[NewJob]:
    """A tree below one root: 200 jobs that depend on it, and 99 below each of those."""
    batch = [NewJob("effects.record", job_id="root")]
    for branch in range(200):
        batch.append(NewJob("effects.record", job_id=f"b{branch}", depends_on=["root"]))
        batch += [NewJob("effects.record", job_id=f"b{branch}.{leaf}", depends_on=[f"b{branch}"]) for leaf in range(99)]
    return batch


def chain() -> list[NewJob]:
    """A root and 20,000 jobs that depend each on the one before."""
    below = [NewJob("effects.record", job_id=f"c{link}", depends_on=[f"c{link - 1}"]) for link in range(1, 20_000)]
    return [NewJob("effects.record", job_id="root"), NewJob("effects.record", job_id="c0", depends_on=["root"]), *below]


@pytest.mark.load
@pytest.mark.parametrize("shape", [tree, chain])
def test_a_dead_root_fails_twenty_thousand_jobs_and_a_replay_brings_all_back(shape: Callable[[], list[NewJob]]) -> None:
    leases.register("p", queues=[], threads=1)
    batch = shape()
    for start in range(0, len(batch), 5000):
        django_jobs.submit_many(batch[start : start + 5000])
    (root,) = claim("default", 1, "p")
    started = time.monotonic()
    letter = DeadLetterReason.RETRIES_EXHAUSTED
    dead = Outcome(job=root, status=JobStatus.DEAD, attempt=AttemptOutcome.FAILED, reason=letter, error="no")
    settle([dead], "p")
    cascade_all()
    failed = time.monotonic()
    assert Job.objects.filter(status="failed").count() == 20_000
    Job.objects.get(pk="root").replay()
    print(f"failed in {failed - started:.1f} s, replayed in {time.monotonic() - failed:.1f} s")
    assert Job.objects.filter(status="pending").count() == 20_001
    assert Job.objects.exclude(pk="root").filter(pending_dependencies=1).count() == 20_000
    assert not Job.objects.filter(fence__lt=F("pending_dependencies")).exists()
