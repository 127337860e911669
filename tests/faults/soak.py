"""What a soak is made of: its load with everything on, its faults, its ledger of what was acknowledged, and its samples."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import IO, Any

from django.db import DatabaseError, InterfaceError, connection, connections, transaction

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Batch, DeadLetter, Job, WorkerProcess
from tests.support.effects import limited
from tests.support.effects.models import Effect
from tests.support.effects.workflows import ATOMIC
from tests.support.outages import end_connections, frozen, read_only
from tests.support.proc import children, usage
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PrivateServer

Refused = (DatabaseError, InterfaceError)
DAY = 86_400
SETTINGS = {
    "LEASE_SECONDS": 15,
    "BASE_DELAY": 0.05,
    "MAX_DELAY": 0.2,
    "MAX_RETRIES": 50,  # a handler's own statement fails with its session
    "DATABASES": ["default", "tenant"],
    "LOG_LEVEL": "INFO",
    "RETENTION": dict.fromkeys(("completed", "cancelled", "failed", "dead", "events"), 30 / DAY),
}
ONCE = "effects.record_atomic"


@dataclass
class Ledger:
    """What was submitted to one database and is not yet known to have ended, and what came of the rest."""

    alias: str
    acknowledged: set[str] = field(default_factory=set)
    attempted: set[str] = field(default_factory=set)
    callbacks: dict[str, set[str]] = field(default_factory=dict)
    may_not_run: set[str] = field(default_factory=set)  # cancelled, or dead by a session that ended before its effect
    ended: int = 0

    def submit(self, jobs: list[NewJob]) -> bool:
        """Submit these jobs, whose ids are given, and note them; return False when the server refused or may have."""
        ids = {str(job.options["job_id"]) for job in jobs}
        self.attempted |= ids
        try:
            django_jobs.submit_many(jobs, using=self.alias)
        except Refused:
            connections[self.alias].close()
            return False
        self.acknowledged |= ids
        return True

    def retire(self) -> None:
        """Check what was pruned since, and delete the effects of it: all that is gone has run, and atomic ones once."""
        there = set(Job.objects.using(self.alias).values_list("pk", flat=True))
        effects: dict[str, Counter[str]] = {}
        for job_id, kind in Effect.objects.using(self.alias).values_list("job_id", "kind"):
            effects.setdefault(job_id, Counter())[kind] += 1
        gone = (self.acknowledged | effects.keys()) - there
        # A row that committed after the first look, or ended and was pruned between the two, is not judged yet.
        gone -= set(Job.objects.using(self.alias).filter(pk__in=gone).values_list("pk", flat=True))
        for job_id in gone:
            kinds = effects.get(job_id, Counter())
            if job_id in self.acknowledged:
                assert kinds or job_id in self.may_not_run, f"{job_id} was acknowledged, is gone and never ran"
            if "atomic" in job_id and job_id in self.acknowledged:
                assert kinds["start"] == 1, f"{job_id}: {kinds}"
            if "workflow" in job_id and job_id in self.acknowledged:
                assert [kinds[kind] for kind in ATOMIC] == [1, 1], f"{job_id}: {kinds}"
            for kind in kinds:
                if kind in self.callbacks:
                    self.callbacks[kind].add(job_id)
                    assert len(self.callbacks[kind]) == 1, f"{kind} was called back by {self.callbacks[kind]}"
        for start in range(0, len(gone), 500):
            Effect.objects.using(self.alias).filter(job_id__in=sorted(gone)[start : start + 500]).delete()
        self.ended += len(gone & self.acknowledged)
        self.acknowledged -= gone
        self.attempted -= gone
        self.may_not_run -= gone


class Load:
    """Submits about twenty jobs at each call, of every kind there is, and does what operators do."""

    def __init__(self, home: Ledger, tenant: Ledger) -> None:
        self.home, self.tenant = home, tenant
        self.round = 0
        self._asked: list[str] = []  # workflows that wait for their event

    def __call__(self) -> None:
        self.round += 1
        n = self.round
        self.home.submit(self._plain(n))
        self.tenant.submit([NewJob("effects.record_here", job_id=f"tenant-{n}-{i}") for i in range(2)])
        for every, move in ((5, self._batch), (3, self._workflow), (4, self._cancel), (15, self._close)):
            if n % every == 0:
                with suppress(*Refused):
                    move(n)
        connection.close_if_unusable_or_obsolete()

    def _plain(self, n: int) -> list[NewJob]:
        key = {"key": n % 4, "seconds": 0.05}
        jobs = [
            NewJob("effects.record", job_id=f"{n}-plain"),
            NewJob(ONCE, {"seconds": 0.005}, job_id=f"{n}-atomic"),
            NewJob("effects.record_async", job_id=f"{n}-async"),
            NewJob("effects.flaky", {"failures": 1}, job_id=f"{n}-flaky"),
            NewJob("effects.sleep", {"seconds": 0.05}, job_id=f"{n}-dependent", depends_on=[f"{n}-plain"]),
            NewJob("effects.log", {"lines": 5}, job_id=f"{n}-log"),
            NewJob("effects.record", job_id=f"{n}-unique", unique_key=f"soak-{n}"),
            NewJob(limited.RATED, {"seconds": 0}, job_id=f"{n}-rated"),
            *(NewJob("effects.record_bulk", job_id=f"{n}-bulk-{i}") for i in range(3)),
            *(NewJob(limited.TYPES[(n + i) % 3], key, job_id=f"{n}-limited-{i}") for i in range(2)),
        ]
        if n % 5 == 0:
            self.home.may_not_run.add(f"{n}-fail")
            jobs.append(NewJob("effects.fail", {"message": f"cause {n % 3}"}, job_id=f"{n}-fail", max_retries=0))
        if n % 10 == 0:
            jobs.append(NewJob("effects.log_isolated", {"ends": "well"}, job_id=f"{n}-isolated"))
        if n % 60 == 0:
            jobs.append(NewJob("effects.kill_self", job_id=f"{n}-kill", queue="deadly"))
        return jobs

    def _batch(self, n: int) -> None:
        kind, ids = f"callback {n}", [f"{n}-member-{i}" for i in range(3)]
        self.home.attempted |= {*ids}
        with django_jobs.batch(f"batch {n}", on_finish=NewJob("effects.record", {"kind": kind})) as batch:
            batch.submit_many([NewJob("effects.record", job_id=job_id) for job_id in ids])
        self.home.acknowledged |= {*ids}
        self.home.callbacks[kind] = set()

    def _workflow(self, n: int) -> None:
        for job_id in self._asked:
            django_jobs.emit("workflows.go", key=job_id, payload={"for": job_id})
        self._asked = []
        job_id = f"{n}-workflow"
        if self.home.submit([NewJob("workflows.storm", {"sleep": 0.2, "rows": 5}, job_id=job_id)]):
            self._asked = [job_id]

    def _cancel(self, n: int) -> None:
        job_id = f"{n}-cancelled"
        self.home.may_not_run.add(job_id)
        if self.home.submit([NewJob("effects.record", job_id=job_id, delay=timedelta(hours=1))]):
            Job.objects.get(pk=job_id).cancel()

    def _close(self, n: int) -> None:
        """Acknowledge what died; open a tenth of it again."""
        for letter in DeadLetter.objects.open().select_related("job")[:50]:
            if letter.job.job_type == "effects.fail" and random.random() < 0.1:
                letter.replay()
            else:
                letter.acknowledge(note="soak")

    def ask_the_last(self) -> None:
        """Send the events that are still owed; what stays scheduled for an hour is cancelled."""
        for job in Job.objects.live().filter(job_type="workflows.storm"):
            django_jobs.emit("workflows.go", key=job.pk, payload={"for": job.pk})
        Job.objects.live().filter(pk__endswith="-cancelled").cancel()


def check_limits() -> None:
    """Look at one moment whether more jobs of a key run than its limit lets run."""
    running: Counter[tuple[str, int]] = Counter()
    rows = Job.objects.filter(status="running", job_type__in=limited.TYPES).values_list("job_type", "payload")
    for job_type, payload in rows:
        running[job_type, payload["key"]] += 1
    too_many = {key: count for key, count in running.items() if count > int(key[0].rpartition("_")[2])}
    assert not too_many, too_many


# --- faults


class Storm:
    """The workers that are killed, and started again when all of them are."""

    def __init__(self, env: dict[str, str], settings: dict[str, Any]) -> None:
        self._env, self._settings = env, settings
        self._stack = ExitStack()
        self.outputs: list[str] = []
        self.start()

    def start(self) -> None:
        """Start a supervisor with two processes."""
        workers = spawn_workers("--processes", "2", "--threads", "2", settings=self._settings, env=self._env)
        self.workers: Workers = self._stack.enter_context(workers)

    def start_anew(self) -> None:
        """SIGKILL the supervisor and its children at once, and start others."""
        self.workers.kill()
        self.outputs.append(self.workers.output())
        self._stack.close()
        self._stack = ExitStack()
        self.start()

    def close(self) -> None:
        """Kill what is left."""
        self._stack.close()


@dataclass
class Scene:
    """What the faults befall; `server` is None on SQLite."""

    storm: Storm
    survivor: Workers
    server: PrivateServer | None
    late: list[threading.Timer] = field(default_factory=list)

    def any_child(self) -> int:
        """Return one of the storm's processes; IndexError when there is none just now."""
        return random.choice(children(self.storm.workers.pid))


def kill_a_child(scene: Scene) -> None:
    os.kill(scene.any_child(), signal.SIGKILL)


def kill_all(scene: Scene) -> None:
    scene.storm.start_anew()


def _stop_for(scene: Scene, seconds: float) -> None:
    pid = scene.any_child()
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    scene.late.append(threading.Timer(seconds, go_on))
    scene.late[-1].start()


def stop_a_child_for_a_moment(scene: Scene) -> None:
    _stop_for(scene, 0.5)


def stop_a_child_past_its_lease(scene: Scene) -> None:
    _stop_for(scene, 1.5 * float(SETTINGS["LEASE_SECONDS"]))  # type: ignore[arg-type]


def kill_a_subprocess_of_the_survivor(scene: Scene) -> None:
    os.kill(random.choice(children(scene.survivor.pid)), signal.SIGKILL)


def lock_some_rows(scene: Scene) -> None:
    """Hold the locks of ten jobs for a second; on SQLite the only lock there is."""
    with transaction.atomic():
        if connection.vendor == "sqlite":
            Effect.objects.filter(pk=-1).delete()
        else:
            list(Job.objects.order_by("-pk").select_for_update()[:10])
        time.sleep(1)


def end_every_session(scene: Scene) -> None:
    end_connections()


def restart_the_server(scene: Scene) -> None:
    assert scene.server
    connections["default"].close()
    scene.server.restart()


def kill_the_server(scene: Scene) -> None:
    assert scene.server
    connections["default"].close()
    scene.server.kill()
    time.sleep(1)
    scene.server.start()


def silence_the_server(scene: Scene) -> None:
    assert scene.server
    with frozen(scene.server):
        time.sleep(2)


def refuse_writes(scene: Scene) -> None:
    with read_only():
        time.sleep(2)


Fault = Callable[[Scene], None]
FAULTS: list[Fault] = [
    kill_a_child, kill_a_child, kill_a_child, kill_all, stop_a_child_for_a_moment, stop_a_child_past_its_lease,
    kill_a_subprocess_of_the_survivor, lock_some_rows,
]  # fmt: skip
FAULTS_OF_SERVERS: list[Fault] = [
    end_every_session, end_every_session, restart_the_server, kill_the_server, silence_the_server, refuse_writes,
]  # fmt: skip


# --- samples


@dataclass(frozen=True)
class Sample:
    """What the survivor and the database held at one moment; bytes of all our tables and of their indexes."""

    seconds: float
    megabytes: float
    threads: int
    descriptors: int
    sessions: int
    rows: int
    live: int
    processes: int
    table_mb: float
    index_mb: float


def sample(survivor: Workers, seconds: float) -> Sample:
    """Take a sample; a database error when the server is away."""
    held = usage(survivor.pid)
    tables, indexes = _sizes()
    return Sample(
        seconds=round(seconds, 1),
        megabytes=round(held.megabytes, 1),
        threads=held.threads,
        descriptors=held.descriptors,
        sessions=_sessions(),
        rows=Job.objects.count() + Batch.objects.count(),
        live=Job.objects.live().count(),
        processes=WorkerProcess.objects.count(),
        table_mb=round(tables / 2**20, 2),
        index_mb=round(indexes / 2**20, 2),
    )


def _one(statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchone())


def _sessions() -> int:
    if connection.vendor == "sqlite":
        return 0
    statement = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
    }[connection.vendor]
    return int(_one(statement)[0])


def _sizes() -> tuple[float, float]:
    if connection.vendor == "sqlite":
        return float(_one("PRAGMA page_count")[0]) * float(_one("PRAGMA page_size")[0]), 0.0
    statement = {
        "postgresql": "SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class"
        " WHERE relkind = 'r' AND relname LIKE 'django_jobs%%'",
        # The files of the tables, in which their indexes are.
        "mysql": "SELECT sum(file_size), 0 FROM information_schema.innodb_sys_tablespaces"
        " WHERE name LIKE concat(DATABASE(), '/django_jobs%%')",
    }[connection.vendor]
    tables, indexes = _one(statement)
    return float(tables), float(indexes)


@contextmanager
def record(path: str) -> Iterator[Callable[[Sample], None]]:
    """Give a function that keeps a sample, as a line of JSON in `path` if that is not empty."""
    with ExitStack() as stack:
        file: IO[str] | None = stack.enter_context(open(path, "w", encoding="utf-8")) if path else None

        def write(one: Sample) -> None:
            if file:
                file.write(json.dumps(asdict(one)) + "\n")
                file.flush()

        yield write
