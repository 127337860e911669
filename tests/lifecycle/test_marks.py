"""Claims and promotions begin at a mark beside an old snapshot, and miss nothing for longer than a second."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from django_jobs import submit
from django_jobs.db import marks as rule
from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.postgresql import PostgreSQL
from django_jobs.db.dialects.words import ClaimLook, PromotionLook, Snapshot
from django_jobs.db.marks import Marks
from django_jobs.db.notify import old_in_process
from django_jobs.db.unfinished import Unfinished
from django_jobs.due import look_ahead, queues_with_work
from django_jobs.handlers import Registry, make_handler
from django_jobs.ids import new_id
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.settle import settle
from django_jobs.models import DeadLetterReason, Job, JobStatus, WorkerProcess
from django_jobs.models.attempt import AttemptOutcome
from django_jobs.numbers import rank_of
from django_jobs.worker import poller
from django_jobs.worker.poller import Pollers, QueueSelector
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.snapshots import old_snapshot, uncommitted
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql")]
DEAD = 150
BATCH = 25
FEW = 60  # entries that a claim from the mark may read in vain: some of its own last moment


class Clock:
    """Stands in for `time` in the rule: a twentieth of a second passes with each look at it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.05
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rule, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "NEGLIGIBLE", 40)
    monkeypatch.setattr(rule, "NEGLIGIBLE_PER_JOB", 1)
    vacuum()  # of what earlier tests left dead
    for name in "pqr":
        leases.register(name, queues=[], threads=1)
    # Once for all examples of a test, and nobody beats.
    WorkerProcess.objects.update(lease_expires_at=timezone.now() + timedelta(days=1))


@pytest.fixture
def nobody_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the transactions that go on elsewhere on the server: at the end of one a mark goes back, or there is a look."""
    look = PostgreSQL.claim_from

    def without(self: PostgreSQL, *arguments: Any) -> ClaimLook:
        found = look(self, *arguments)
        return found._replace(snapshot=found.snapshot._replace(running=frozenset()))

    monkeypatch.setattr(PostgreSQL, "claim_from", without)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep what each counted claim and promotion found."""
    seen: list[Any] = []
    for name in ("claim_from", "promote_from"):
        monkeypatch.setattr(PostgreSQL, name, _kept(getattr(PostgreSQL, name), seen))
    return seen


def _kept(method: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def call(self: PostgreSQL, *arguments: Any) -> Any:
        seen.append(method(self, *arguments))
        return seen[-1]

    return call


def vacuum() -> None:
    with connection.cursor() as cursor:
        cursor.execute("VACUUM django_jobs_job")


def pending(number: int, **columns: Any) -> None:
    """Insert jobs that differ in their ids alone; a factory for each would take most of the test's time."""
    job = JobFactory.build(**columns)
    values = {field.attname: getattr(job, field.attname) for field in Job._meta.concrete_fields if field.name != "id"}
    Job.objects.bulk_create([Job(id=new_id(), **values) for _ in range(number)])


def work_off(marks: Marks | None, process_id: str = "p", queue: str = "default") -> list[str]:
    """Claim and complete until a claim finds less than it asked for; return the ids in their order."""
    done: list[str] = []
    while True:
        jobs = claim(queue, BATCH, process_id, marks)
        settle([Outcome.completed(job) for job in jobs], process_id)
        done += [job.id for job in jobs]
        if len(jobs) < BATCH:
            return done


def behind(marks: Marks, **columns: Any) -> None:
    """Leave so many dead entries that claims begin at the mark."""

    def leave_dead() -> bool:
        pending(DEAD, **columns)
        work_off(marks)
        return marks.of("default").pace.is_behind

    leave_dead()
    wait_until(leave_dead, 60, "claims to begin at the mark")


def old(seconds: float) -> dict[str, Any]:
    """Return the columns of a job that became ready so long ago."""
    return {"available_at": timezone.now() - timedelta(seconds=seconds)}


# What it is for.


@pytest.mark.slow
def test_claims_pass_over_the_pages_that_wait_for_a_vacuum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "COUNT_SECONDS", 0.0)
    monkeypatch.setattr(rule, "NEGLIGIBLE_PER_JOB", 0)
    marks = Marks()
    work_off(marks)
    assert not marks.of("default").pace.is_behind

    pending(3_000)  # some thirty pages: nothing keeps the entries, but the pages stay
    work_off(marks)
    wait_until(lambda: claim("default", 1, "p", marks) or marks.of("default").pace.is_behind, 30, "a mark")

    pending(1)
    assert len(work_off(marks)) == 1
    monkeypatch.setattr(rule, "LONGEST_SECONDS", 0.0)
    monkeypatch.setattr(rule, "SHARE", 0)

    def is_clean() -> bool:
        vacuum()
        work_off(marks)
        return not marks.of("default").pace.is_behind

    wait_until(is_clean, 30, "claims to look from the beginning again")


@pytest.mark.slow
def test_a_claim_beside_an_old_snapshot_reads_little_that_is_dead(clock: Clock, looks: list[ClaimLook]) -> None:
    marks = Marks()
    with old_snapshot():
        behind(marks)

        def reads_little() -> bool:
            clock.now -= 10  # no time for a look from the beginning
            pending(1)
            work_off(marks)
            return looks[-1].read_in_vain < 10

        wait_until(reads_little, 60, "the moment to pass that is read again")
        clock.now += 1000
        work_off(marks)
        assert looks[-1].read_in_vain >= 2 * DEAD, "a look from the beginning reads all"


def test_without_an_old_snapshot_each_claim_looks_from_the_beginning(
    looks: list[ClaimLook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "LONG_SECONDS", 60.0)  # a look that takes long is followed by no second one at once

    def three_rounds() -> bool:
        vacuum()
        marks = Marks()
        for _ in range(3):
            pending(DEAD)
            work_off(marks)
            if marks.of("default").pace.is_behind:
                return False
            late = JobFactory(**old(3600))
            assert [job.id for job in claim("default", 1, "p", marks)] == [late.pk]
        return True

    wait_until(three_rounds, 60, "rounds beside no snapshot of the server's own, as an analyze has one")


def test_once_the_snapshot_is_gone_claims_look_from_the_beginning_again(clock: Clock) -> None:
    marks = Marks()
    with old_snapshot():
        behind(marks)

    def look() -> bool:
        pending(1)  # the server finds out what may go when transactions have come and gone
        clock.now += 1
        while work_off(marks):
            pass
        return not marks.of("default").pace.is_behind

    wait_until(look, 60, "the server to end the session, and two looks")


def test_looks_from_the_beginning_take_a_twentieth_of_the_time_or_are_a_second_apart(clock: Clock) -> None:
    pace = rule.Pace()
    for seconds, rest in ((0.001, 0.02), (0.01, 0.2), (0.5, 0.85)):
        pace.judge(10_000, 1, seconds)
        pace.judge(10_000, 1, seconds)
        assert pace.seconds_left == pytest.approx(rest - 0.05 if rest > 0.05 else 0.0)


def test_where_old_jobs_are_told_of_looks_from_the_beginning_are_no_closer_until_one_is(clock: Clock) -> None:
    pace = rule.Pace()
    pace.is_told = True
    for seconds in (0.001, 0.01):
        pace.judge(10_000, 1, seconds)
        pace.judge(10_000, 1, seconds)
        assert pace.seconds_left == pytest.approx(0.85 - 0.05)
    pace.expect_old()
    assert pace.seconds_left < 0.2


def test_where_old_jobs_are_told_of_long_looks_from_the_beginning_take_a_twentieth_of_the_time(clock: Clock) -> None:
    pace = rule.Pace()
    pace.is_told = True
    pace.judge(10_000, 1, 0.5)
    assert pace.is_behind, "a second look, which would take as long, does not follow at once"
    assert pace.seconds_left == pytest.approx(10 - 0.05)
    pace.judge(10_000, 1, 5)
    assert pace.seconds_left == pytest.approx(60 - 0.05)
    pace.expect_old()
    assert pace.seconds_left <= 0.85
    pace.tell(is_told=False)
    pace.judge(10_000, 1, 5)
    assert pace.seconds_left <= 0.85
    pace.tell(is_told=True)
    pace.judge(10_000, 1, 5)
    assert pace.seconds_left > 50
    pace.tell(is_told=False)
    assert pace.seconds_left <= 0.85, "something may have been told in vain"


# What may not be missed.


def released(marks: Marks) -> str:
    (job,) = claim("default", 1, "q")
    pending(DEAD)
    work_off(marks)
    release([job])
    return job.id


def retried_late(marks: Marks) -> str:
    return _promoted_when_due_for(timedelta(minutes=5), marks)


def _promoted_when_due_for(since: timedelta, marks: Marks) -> str:
    pending(DEAD)
    work_off(marks)
    job = JobFactory(status="scheduled", scheduled_at=timezone.now() - since)
    assert promote() == ["default"]
    return str(job.pk)


def woken(marks: Marks) -> str:
    first = submit("effects.record", {}, queue="other")
    last = submit("effects.record", {}, depends_on=[first])
    pending(DEAD)
    work_off(marks)
    work_off(None, "q", "other")
    return last.id


def replayed(marks: Marks) -> str:
    (job,) = claim("default", 1, "q")
    settle([_dead(job)], "q")
    pending(DEAD)
    work_off(marks)
    replay([job.id]).raise_if_left()
    return job.id


def imported(marks: Marks) -> str:
    return str(JobFactory(**old(86_400)).pk)


def of_a_rank_that_is_new(marks: Marks) -> str:
    return str(JobFactory(priority=9, **old(3600)).pk)


def _dead(job: ClaimedJob) -> Outcome:
    return Outcome(job, JobStatus.DEAD, AttemptOutcome.FAILED, reason=DeadLetterReason.RETRIES_EXHAUSTED, error="no")


@pytest.mark.parametrize("way", [released, retried_late, woken, replayed, imported, of_a_rank_that_is_new])
def test_what_becomes_ready_below_the_mark_is_found_within_a_second(way: Callable[[Marks], str], clock: Clock) -> None:
    """By a process that claims all the time, by the clock of the rule."""
    marks = Marks()
    with old_snapshot():
        behind(marks)
        JobFactory()
        wanted = way(marks)
        began = clock.now
        found: list[str] = []
        while wanted not in found:
            found += work_off(marks)
            assert clock.now - began < 1.2  # a second, and the looks at the clock of the last claim
            assert marks.of("default").pace.is_behind


def test_a_late_commit_below_the_mark_is_found_within_a_second(clock: Clock) -> None:
    marks = Marks()
    late = JobFactory.build(id="late")
    with old_snapshot():
        with uncommitted(late):
            behind(marks)
        began = clock.now
        while late.pk not in work_off(marks):
            assert clock.now - began < 1.2


# Where those who make old jobs ready say so, looks from the beginning are rare.


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Marks]:
    monkeypatch.setattr(rule, "SHARE", 1_000_000)
    marks = Marks()
    marks.is_told = True
    stop = old_in_process(marks.expect_old)
    yield marks
    stop()


@pytest.fixture
def nothing_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no claim begin two seconds ago, so that only a mark that goes back finds what commits late."""
    look = PostgreSQL.claim_from

    def without(self: PostgreSQL, *arguments: Any) -> ClaimLook:
        found = look(self, *arguments)
        return found._replace(recent=found.moment)

    monkeypatch.setattr(PostgreSQL, "claim_from", without)


def changed(marks: Marks) -> str:
    job = JobFactory(priority=2, queue="other", **old(3600))
    change([job.pk], priority=6, queue="default").raise_if_left()
    return str(job.pk)


def crashed(marks: Marks) -> str:
    (job,) = claim("default", 1, "q")
    pending(DEAD)
    work_off(marks)
    settle([Outcome.released(job, "its process died")], "q")
    return job.id


def promoted(marks: Marks) -> str:
    return _promoted_when_due_for(timedelta(seconds=1), marks)


@pytest.mark.usefixtures("nothing_is_recent")
@pytest.mark.parametrize("way", [released, changed, crashed, woken, replayed])
def test_moves_that_make_an_old_job_ready_say_so(way: Callable[[Marks], str], told: Marks, clock: Clock) -> None:
    _is_found_within_a_second(way, told, clock)


def test_a_promotion_that_is_not_late_is_found_though_it_says_nothing(told: Marks, clock: Clock) -> None:
    _is_found_within_a_second(promoted, told, clock)


def _is_found_within_a_second(way: Callable[[Marks], str], told: Marks, clock: Clock) -> None:
    with old_snapshot():
        behind(told)
        JobFactory()
        wanted = way(told)
        began = clock.now
        found: list[str] = []
        while wanted not in found:
            found += work_off(told)
            assert clock.now - began < 1.2
            assert told.of("default").pace.is_behind


@pytest.mark.usefixtures("nobody_else_writes")
def test_of_a_job_that_appears_in_no_way_of_ours_nobody_tells(told: Marks, clock: Clock) -> None:
    with old_snapshot():
        behind(told)
        late = imported(told)
        clock.now += 2
        assert late not in work_off(told)
        clock.now += 60
        assert late in [*work_off(told), *work_off(told)]


def test_what_a_limit_may_have_let_in_is_looked_for_each_second(told: Marks, clock: Clock) -> None:
    mark = told.of("default")
    with old_snapshot():
        behind(told)
        late = imported(told)
        began = clock.now
        found: list[str] = []
        while late not in found:
            found += [row[0] for row in mark.claim(dialect(), "default", BATCH, "p", is_limited=True)]
            assert clock.now - began < 1.2


@pytest.mark.usefixtures("nothing_is_recent")
@pytest.mark.slow
def test_a_late_commit_brings_the_mark_back_to_where_its_transaction_began(
    told: Marks, clock: Clock, looks: list[ClaimLook]
) -> None:
    with old_snapshot():
        behind(told)
        pending(3 * DEAD)
        work_off(told)
        told.of("default").claim(dialect(), "default", 1, "p")
        late = JobFactory.build(id="late")  # after the last look, as a submit's row
        with uncommitted(late):
            begun = timezone.now()
            wait_until(lambda: not work_off(told) and timezone.now() - begun > timedelta(seconds=0.5), 60, "a while")
        assert late.pk not in work_off(told), "the look that learns of it began too late"
        assert told.seconds_owed(None) == 0.0, "so that it is followed by another"
        clock.now -= 10  # no time for a look from the beginning
        assert late.pk in work_off(told)
        assert looks[-1].read_in_vain < 3 * DEAD, "not from the beginning"


def test_a_commit_of_a_transaction_that_began_before_the_first_look_is_found_from_the_beginning(
    told: Marks, clock: Clock
) -> None:
    late = JobFactory.build(id="late", **old(3600))
    with old_snapshot():
        with uncommitted(late):
            behind(told)
        began = clock.now
        while late.pk not in work_off(told):
            assert clock.now - began < 1.2


def test_which_transactions_have_ended() -> None:
    unfinished = Unfinished()
    assert unfinished.note(Snapshot(frozenset({7}), "10:00")) == []
    assert unfinished.note(Snapshot(frozenset({7, 8}), "10:01")) == []
    assert set(unfinished.note(Snapshot(frozenset({9}), "10:02"))) == {None, "10:00"}
    assert unfinished.note(Snapshot(frozenset(), "10:03")) == ["10:01"]
    assert unfinished.note(Snapshot(frozenset(), "10:04")) == []


def test_a_promotion_that_comes_late_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    JobFactory(status="scheduled", queue="late", scheduled_at=timezone.now() - timedelta(minutes=1))
    stop = old_in_process(heard.append)
    with running_process() as process:
        wait_until(lambda: not Job.objects.filter(status="scheduled").exists(), 60, "the promotion")
        wait_until(lambda: heard == ["late"], 60, "the word of it")
        stop()
        assert not process.state.is_stopping


@pytest.mark.slow
def test_a_process_hears_of_old_jobs_from_others() -> None:
    with running_process() as process:
        marks = process.state.pollers.marks
        assert not marks.is_told, "until notifications are seen to arrive"
        wait_until(lambda: marks.is_told, 60, "notifications")
        pace = marks.of("default").pace
        pace.rest_after(100)
        assert pace.seconds_left > 30
        with connection.cursor() as cursor:
            cursor.execute("NOTIFY django_jobs_old, 'default'")
        wait_until(lambda: pace.seconds_left < 1, 60, "the notification")


@pytest.mark.usefixtures("nobody_else_writes")
def test_a_higher_priority_comes_first_though_it_lies_below_the_mark(clock: Clock) -> None:
    marks = Marks()
    with old_snapshot():
        behind(marks, priority=5)
        behind(marks, priority=7)
        pending(3, priority=5)
        for priority in (6, 7, 9):  # between two marks, at one, and before the first
            job = JobFactory(priority=priority)
            clock.now -= 10  # no time for a look from the beginning
            assert [one.id for one in claim("default", 1, "p", marks)] == [job.pk]


@pytest.mark.usefixtures("nobody_else_writes")
def test_a_process_passes_over_what_others_have_claimed(clock: Clock, looks: list[ClaimLook]) -> None:
    marks, other = Marks(), Marks()
    with old_snapshot():
        behind(marks, **old(1))  # older than the last moment, which a claim from the mark reads again
        pending(3 * DEAD, **old(1))
        work_off(other, "q")
        assert claim("default", BATCH, "p", marks) == []
        assert looks[-1].read_in_vain >= 3 * DEAD
        assert claim("default", BATCH, "p", marks) == []
        assert looks[-1].read_in_vain < FEW


@pytest.mark.usefixtures("nobody_else_writes")
@pytest.mark.parametrize("rank", [rank_of(8), rank_of(2), 7])  # 7: no priority's, as `django.tasks` may choose
def test_a_process_passes_over_what_others_have_claimed_in_ranks_where_it_has_claimed_nothing(
    clock: Clock, looks: list[ClaimLook], rank: int
) -> None:
    marks, other = Marks(), Marks()
    with old_snapshot():
        behind(marks, **old(1))
        pending(3 * DEAD, rank=rank, **old(1))
        work_off(other, "q")
        assert claim("default", BATCH, "p", marks) == []
        assert looks[-1].read_in_vain >= 3 * DEAD, "the first claim reads them"
        claim("default", BATCH, "p", marks)  # may learn that more ranks are in use
        clock.now -= 10  # no time for a look from the beginning
        assert claim("default", BATCH, "p", marks) == []
        assert looks[-1].read_in_vain < FEW


@pytest.mark.usefixtures("nobody_else_writes")
def test_what_lies_at_the_mark_does_not_wait_for_a_look(clock: Clock) -> None:
    marks = Marks()
    with old_snapshot():
        behind(marks)
        job, late = JobFactory(), JobFactory(**old(3600))
        clock.now += 1
        assert [one.id for one in claim("default", 1, "p", marks)] == [job.pk]
        JobFactory()
        assert [one.id for one in claim("default", 1, "p", marks)] == [late.pk], "the look is put off once"


@pytest.mark.usefixtures("nobody_else_writes")
def test_what_a_short_claim_may_have_missed_is_owed_a_look(clock: Clock) -> None:
    marks = Marks()
    with old_snapshot():
        assert marks.seconds_owed(None) is None
        behind(marks)
        clock.now += 1
        claim("default", 1, "p", marks)
        assert marks.seconds_owed(None) is None, "the look has just been"
        claim("default", 1, "p", marks)
        assert 0 < (marks.seconds_owed(None) or 0) < 0.85
        assert marks.seconds_owed(["other"]) is None
        assert marks.seconds_owed(["default"]) is not None


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.integers(1, 40), st.sampled_from([1, 5, 9])),
            st.tuples(st.just("submit late"), st.integers(1, 5), st.sampled_from([1, 5, 9])),
            st.tuples(st.sampled_from(["claim", "hold"]), st.integers(1, 60), st.sampled_from(["p", "q"])),
            st.tuples(st.just("release"), st.just(0), st.just("")),
            st.tuples(st.just("pass"), st.integers(1, 9), st.just("")),
        ),
        max_size=12,
    )
)
@pytest.mark.slow
def test_whatever_comes_is_claimed_once_a_second_has_passed(clock: Clock, moves: list[tuple[str, int, Any]]) -> None:
    Job.objects.all().delete()
    marks = {"p": Marks(), "q": Marks()}
    held: list[ClaimedJob] = []
    with old_snapshot():
        behind(marks["p"])
        for move, number, how in moves:
            if move == "submit":
                pending(number, priority=how)
            elif move == "submit late":
                pending(number, priority=how, **old(10 * number))
            elif move == "release":
                release(held)
                held.clear()
            elif move == "pass":
                clock.now += number / 10
            else:
                jobs = claim("default", number, how, marks[how])
                assert jobs == sorted(jobs, key=lambda job: (job.rank, job.available_at, job.id))
                if move == "hold":
                    held += jobs
                else:
                    assert not settle([Outcome.completed(job) for job in jobs], how)
        clock.now += 1
        while work_off(marks["p"]):
            clock.now += 1  # the look may have found as much as was asked for before it came to what lies below a mark
        assert not Job.objects.ready().exists()


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.slow
def test_no_job_waits_a_second_while_several_processes_claim_and_others_commit_late(
    monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    marks = {name: Marks() for name in "pqr"}
    if is_told:
        monkeypatch.setattr(rule, "SHARE", 1_000_000_000)  # no looks from the beginning
        for each in marks.values():
            each.is_told = True
    producers = ((0.002, 5), (0.03, 7), (0.5, 5), (0.8, 1), (2.8, 6))  # the last one later than what is recent
    ended: list[bool] = []
    committed: dict[str, float] = {}
    claimed: dict[str, float] = {}

    rounds: list[float] = []

    def work(name: str) -> None:
        before = time.monotonic()
        while len(ended) < len(producers) or Job.objects.ready().exists():
            jobs = claim("default", 5, name, marks[name])
            now = time.monotonic()
            for job in jobs:
                assert job.id not in claimed
                claimed[job.id] = now
            settle([Outcome.completed(job) for job in jobs], name)
            rounds.append(time.monotonic() - before)
            before += rounds[-1]

    def produce(lateness: float, priority: int) -> None:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            job = JobFactory.build(id=new_id(), priority=priority)
            with transaction.atomic():
                job.save(force_insert=True)
                time.sleep(lateness)
            committed[job.pk] = time.monotonic()
        ended.append(True)

    with old_snapshot():
        behind(marks["p"])
        work_off(None)
        run_in_threads(
            [
                *(partial(work, name) for name in marks),
                *(partial(produce, *one) for one in producers),
            ]
        )
    assert committed.keys() <= claimed.keys()
    waits = sorted(claimed[job_id] - committed[job_id] for job_id in committed)
    assert waits[-1] < 1 + 2 * max(rounds), waits[-5:]  # a second, and what the machine takes for a claim


# What else walks the indexes.


def test_a_queue_that_is_behind_is_left_out_of_the_search_for_work() -> None:
    for queue in ("a", "default", "m", "z"):
        pending(2, queue=queue)
    assert sorted(queues_with_work()) == ["a", "default", "m", "z"]
    assert queues_with_work(["default", "m"]) == ["a", "z"]
    assert sorted(queues_with_work(["b", "y"])) == ["a", "default", "m", "z"]
    assert queues_with_work(["a", "default", "m", "z"]) == []


def test_a_search_among_named_queues_reads_only_these() -> None:
    for queue in ("a", "default", "m"):
        pending(2, queue=queue)
    JobFactory(queue="keyed", fair_key="k")
    assert sorted(queues_with_work([], ["a", "m", "none", "keyed"])) == ["a", "keyed", "m"]
    assert queues_with_work(["a"], ["a", "m"]) == ["m"]
    assert queues_with_work(["a"], ["a"]) == []


def test_a_slow_search_is_followed_by_a_claim_from_each_queue_that_may_be_dead_all_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = Registry()
    for queue in ("busy", "idle"):
        handlers.register(make_handler(lambda payload: None, f"test.{queue}", {"queue": queue}))
    pending(1, queue="busy")
    monkeypatch.setattr(poller, "SLOW_SEARCH_SECONDS", 60.0)
    selector = QueueSelector(None, handlers, Pollers())
    assert [selector.next_queue(), selector.queue_after("busy")] == ["busy", None]
    monkeypatch.setattr(poller, "SLOW_SEARCH_SECONDS", -1.0)
    selector = QueueSelector(None, handlers, Pollers())
    assert {selector.next_queue() for _ in range(3)} == {"busy", "default", "idle"}
    selector = QueueSelector(["idle", "other"], handlers, Pollers())
    assert {selector.next_queue() for _ in range(2)} == {"idle", "other"}


@pytest.mark.slow
def test_a_promotion_beside_an_old_snapshot_reads_little_that_is_dead(clock: Clock, looks: list[PromotionLook]) -> None:
    marks = Marks()
    with old_snapshot():
        for _ in range(3):
            pending(DEAD, status="scheduled", scheduled_at=timezone.now())
            while promote(100, marks):
                pass
        assert marks.promotion.pace.is_behind

        def reads_little() -> bool:
            clock.now -= 10
            JobFactory(status="scheduled", scheduled_at=timezone.now())
            assert (look_ahead("p", marks.promotion.start).due or 0) < 0
            assert len(promote(100, marks)) == 1
            return looks[-1].read_in_vain < 10

        wait_until(reads_little, 60, "the moment to pass that is read again")
        JobFactory(status="scheduled", scheduled_at=timezone.now() - timedelta(hours=1))
        assert look_ahead("p", marks.promotion.start).due is None
        assert promote(100, marks) == []
        clock.now += 1000
        assert marks.promotion.start is None
        assert len(promote(100, marks)) == 1
        assert looks[-1].read_in_vain >= 2 * DEAD, "a look from the beginning reads all"


@pytest.mark.slow
def test_a_scheduled_job_that_is_committed_late_is_promoted_though_looks_from_the_beginning_are_rare(
    told: Marks, clock: Clock
) -> None:
    mark = told.promotion
    with old_snapshot():
        for _ in range(3):
            pending(DEAD, status="scheduled", scheduled_at=timezone.now())
            while promote(100, told):
                pass
        assert mark.pace.is_behind
        assert mark.pace.seconds_left > 30
        promote(100, told)
        late = JobFactory.build(id="late", status="scheduled", scheduled_at=timezone.now())
        with uncommitted(late):
            begun = timezone.now()
            wait_until(lambda: not promote(1, told) and timezone.now() - begun > timedelta(seconds=0.5), 60, "a while")
        assert not mark.owes_look
        clock.now += 1
        assert mark.owes_look, "which does not depend on what is known to be due"
        assert promote(1, told) == []
        assert (look_ahead("p", mark.start).due or 0) < 0
        assert promote(1, told) == ["default"]
        told.expect_old("default")
        assert mark.pace.seconds_left <= 0.85
