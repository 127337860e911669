"""What a process sees of its own rows: what nobody holds is handed back, what somebody may yet hold is not."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import pytest
from django.db import IntegrityError, OperationalError

from django_jobs import submit
from django_jobs.db.transactions import database_now
from django_jobs.handlers import registry
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.models import Attempt, Job
from django_jobs.models.worker_process import ProcessSnapshot
from django_jobs.worker import liveness, maintenance, state
from django_jobs.worker.buffer import JobBuffer, Slot
from django_jobs.worker.liveness import LivenessMonitor
from django_jobs.worker.maintenance import Maintenance
from django_jobs.worker.process import Process
from django_jobs.worker.state import WorkerState
from tests.support.factories import JobFactory, WorkerProcessFactory

pytestmark = pytest.mark.django_db(transaction=True)
HALF_A_LEASE = 30.0


class Own:
    """A process that looks at its rows, on a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(liveness, "time", clock)
        monkeypatch.setattr(state, "time", clock)
        self.state = WorkerState()
        self.held: dict[str, int] = {}
        self.monitor = LivenessMonitor(self.state, lambda: self.held, lambda requested: None)
        leases.register(self.state.id, queues=[], threads=1)

    def claim(self) -> ClaimedJob:
        """Claim a new job; whether the process gets to know of it is up to the test."""
        job = submit("catalogue.changes", {})
        (claimed,) = claim("default", 1, self.state.id)
        assert claimed.id == job.id
        return claimed

    def look(self, *, after: float = 0.0) -> str:
        """Look at its rows after some seconds; return the status of the only job then."""
        self.now += after
        self.monitor.look_at_own()
        return str(Job.objects.get().status)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Own:
    return Own(monkeypatch)


def test_a_claim_whose_reply_was_lost_is_handed_back_after_two_looks(own: Own) -> None:
    own.claim()
    assert own.look() == "running"
    assert own.look(after=HALF_A_LEASE - 1) == "running"
    assert own.look(after=1) == "pending"
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.worker_id) == ("released", own.state.id)
    assert attempt.error.startswith("the answer to the job's claim, or what came of its run, was lost")


def test_what_it_holds_stays(own: Own) -> None:
    job = own.claim()
    own.look()
    own.held = {job.id: job.fence}
    assert own.look(after=HALF_A_LEASE) == "running"
    own.held = {}
    assert own.look(after=HALF_A_LEASE) == "running", "the looks before do not count"


def test_a_claim_that_is_still_on_its_way_is_not_handed_back(own: Own) -> None:
    """A process that was stopped between the commit and the reply would run what has been handed back."""
    claimer = object()
    own.state.begin_claim(claimer)
    job = own.claim()
    own.look()
    assert own.look(after=HALF_A_LEASE) == "running"
    own.held = {job.id: job.fence}
    own.state.end_claim(claimer, found=True)
    assert own.look(after=HALF_A_LEASE) == "running"


def test_a_later_claim_does_not_hold_that_up(own: Own) -> None:
    own.claim()
    own.look()
    own.now += 1
    own.state.begin_claim(object())
    assert own.look(after=HALF_A_LEASE) == "pending"


def test_a_process_that_has_lost_its_lease_hands_nothing_back(own: Own) -> None:
    """It drops what it ran; handed back, that would start again without an attempt that says why."""
    own.claim()
    own.state.lose_lease()
    own.look()
    assert own.look(after=HALF_A_LEASE) == "running"


def test_a_watcher_that_stood_still_itself_declares_nobody_dead(own: Own) -> None:
    """It and the database may have been paused together, and the database's clock put forward: the others could not beat."""
    expired = [ProcessSnapshot("other", beat=7, is_expired=True)]

    def dead(*, after: float) -> list[ProcessSnapshot]:
        own.now += after
        return own.monitor.dead(expired)

    assert [dead(after=15), dead(after=15)] == [[], []]
    assert dead(after=HALF_A_LEASE) == [], "half a lease of its own standstill is no look"
    assert [dead(after=15), dead(after=15)] == [[], expired]


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process(threads=1)
    yield process
    process.stop(grace=0)


def test_a_job_that_is_handed_over_to_the_event_loop_is_held_at_every_moment(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases.register(process.id, queues=[], threads=1)
    job = submit("catalogue.changes", {})
    (claimed,) = claim("default", 1, process.id)
    buffer, slot = JobBuffer(), Slot(registry)
    buffer.join(slot)
    process._buffers.append(buffer)
    buffer.load([claimed], is_dry=True)
    assert buffer.next_run(slot) is not None
    there: dict[str, int] = {}

    def then_hand_over(read: Callable[[], dict[str, int]]) -> Callable[[], dict[str, int]]:
        def read_and_hand_over() -> dict[str, int]:
            found = dict(read())
            there[claimed.id] = claimed.fence
            buffer.hand_over(slot)
            return found

        return read_and_hand_over

    monkeypatch.setattr(process.coroutines, "held", then_hand_over(lambda: there))
    monkeypatch.setattr(buffer, "held", then_hand_over(buffer.held))
    assert process.held() == {job.id: claimed.fence}


# --- a chore that fails by itself is no outage


def test_a_request_that_comes_while_its_chore_runs_is_answered_by_the_next() -> None:
    process = Process(threads=1)
    chores = process.maintenance
    looks = []

    def look() -> None:
        looks.append(None)
        if len(looks) == 1:
            chores.look_at_requests()

    with mock.patch.object(LivenessMonitor, "look_at_own", side_effect=look):
        chores.look_at_requests()
        chores.step()
        chores.step()
    assert len(looks) == 2


STEP_SECONDS = 2.5  # of the maintenance, on the clock that the test moves


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [(IntegrityError("a row of the site is in the way"), False), (OperationalError("the server closed it"), True)],
    ids=["of its own", "outage"],
)
def test_a_chore_that_fails_at_each_call_switches_rescue_off_only_while_the_database_is_away(
    own: Own, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, is_outage: bool
) -> None:
    monkeypatch.setattr(maintenance, "time", SimpleNamespace(monotonic=lambda: own.now))
    tried: list[float] = []

    class Failing(Maintenance):
        def prune(self) -> float:
            tried.append(own.now)
            raise error

    ours = Failing(own.state, own.monitor)
    long_ago = database_now() - timedelta(hours=1)
    other = WorkerProcessFactory(heartbeat_at=long_ago, lease_expires_at=long_ago)
    job = JobFactory(status="running", worker_id=other.pk)
    with caplog.at_level("ERROR", "django_jobs"):
        for _ in range(40):
            own.now += STEP_SECONDS
            ours.step()
    assert tried[0] == 1000.0 + maintenance.PRUNE_SECONDS / 2, "before the other one has stood still for long enough"
    told = [record for record in caplog.messages if record.startswith("the chore prune of worker process ")]
    job.refresh_from_db()
    if is_outage:
        assert (job.status, job.worker_id, told) == ("running", other.pk, [])
        return
    assert job.status == "pending", "the other process was seen dead"
    assert Attempt.objects.get().outcome == "crashed"
    assert {after - before for before, after in pairwise(tried)} == {maintenance.FAILED_SECONDS}
    assert len(told) == len(tried)
    assert own.state.backoff.count == 0
