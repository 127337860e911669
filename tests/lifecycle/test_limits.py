"""Concurrency limits by their moves: who gets a slot, who is held back, and who comes next when a slot is free."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import django_jobs
from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.dialects.words import Place, StepRow
from django_jobs.db.marks import ClaimMark
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, limits, slots, steps, turns
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.claim import ClaimedJob, claim, claim_job
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus, LimitSlot
from django_jobs.models import Limit as LimitRow
from django_jobs.numbers import rank_of
from django_jobs.worker.process import Process

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def process() -> str:
    leases.register("p", queues=[], threads=1)
    return "p"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Leave no handler and no number behind."""
    yield
    for handler in list(registry):
        if handler.job_type.startswith("limited."):
            registry.forget(handler.job_type)
    active_limits.forget_queues()


def limited(name: str = "limited.job", /, **limit: Any) -> str:
    """Declare a type with a limit."""

    @job(name, limit=Limit(**limit), base_delay=0)
    def handler(payload: dict[str, Any]) -> None: ...

    return name


def ids(jobs: list[ClaimedJob]) -> list[str]:
    return [one.id for one in jobs]


def slots_taken() -> list[str]:
    running = LimitSlot.objects.filter(waits=False, job__status="running")
    return sorted(running.values_list("scope", flat=True))


def done(*jobs: ClaimedJob) -> None:
    assert settle([Outcome.completed(one) for one in jobs], "p") == set()


def failed(one: ClaimedJob, status: JobStatus = JobStatus.SCHEDULED) -> Outcome:
    reason = DeadLetterReason.RETRIES_EXHAUSTED if status == JobStatus.DEAD else None
    return Outcome(one, status, AttemptOutcome.FAILED, reason=reason, error="as told", delay=60)


def test_beyond_five_hundred_at_once_a_settle_gives_the_slot_on_as_well() -> None:
    name = limited(concurrency=510)
    submit_many([NewJob(name) for _ in range(515)])
    running: list[ClaimedJob] = []
    while claimed := claim("default", 300, "p"):
        running += claimed
    assert len(running) == 510
    done(running[0])
    assert len(claim("default", 10, "p")) == 1


def test_no_more_run_than_the_limit_says_and_a_settle_gives_the_slot_to_the_first_that_waits() -> None:
    name = limited(concurrency=2)
    for number in range(5):
        submit(name, {}, job_id=f"j{number}", priority=9 if number == 4 else 5)
    first = claim("default", 10, "p")
    assert ids(first) == ["j4", "j0"]
    assert claim("default", 10, "p") == []
    assert sorted(Job.objects.held_back().values_list("pk", flat=True)) == ["j1", "j2", "j3"]
    done(first[0])
    assert ids(claim("default", 10, "p")) == ["j1"]
    assert Job.objects.get(pk="j2").held_back_by == "type:limited.job"
    assert Job.objects.get(pk="j2").status == "pending"
    assert Job.objects.get(pk="j2").worker_id is None


@pytest.mark.parametrize("options", [{}, {"fair_key": "a"}, {"fair_key": "b"}])
def test_one_that_was_let_in_keeps_nobody_waiting_who_comes_before_it(options: dict[str, Any]) -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="running", priority=5)
    (first,) = claim("default", 10, "p")
    submit(name, {}, job_id="let-in", priority=5, **options)
    assert claim("default", 10, "p") == []
    done(first)
    assert Job.objects.ready().get().pk == "let-in"
    key = "a" if options else None
    submit_many([NewJob(name, {}, job_id=f"urgent-{number}", priority=9, fair_key=key) for number in range(3)])
    for number in range(3):
        # Ready, and not only once a claim comes to the one that was let in: other jobs may keep the workers from that.
        assert f"urgent-{number}" in Job.objects.ready().values_list("pk", flat=True)
        (urgent,) = claim("default", 1, "p")
        assert urgent.id == f"urgent-{number}"
        done(urgent)
    assert ids(claim("default", 10, "p")) == ["let-in"]


def test_each_value_of_the_key_has_slots_of_its_own() -> None:
    name = limited(concurrency=1, key="account")
    for number in range(6):
        submit(name, {"account": number % 2}, job_id=f"j{number}")
    submit(name, {"account": None}, job_id="z-free")
    first = claim("default", 10, "p")
    assert ids(first) == ["j0", "j1", "z-free"]
    assert [one.is_limited for one in first] == [True, True, True]
    assert slots_taken() == ["type:limited.job 0", "type:limited.job 1"]
    done(*first)
    assert ids(claim("default", 10, "p")) == ["j2", "j3"]


def test_a_limit_key_stands_in_for_the_value_of_the_key() -> None:
    name = limited(concurrency=1, key="account")
    submit(name, {"account": 7}, job_id="a")
    submit(name, {"account": 8}, job_id="b", limit_key="7")
    assert Job.objects.get(pk="b").limit_key == "7"
    assert ids(claim("default", 10, "p")) == ["a"]


def test_types_that_name_their_limit_alike_share_its_slots() -> None:
    one, two = limited("limited.one", concurrency=1, name="bank"), limited("limited.two", concurrency=1, name="bank")
    submit(one, {}, job_id="a")
    submit(two, {}, job_id="b")
    (first,) = claim("default", 10, "p")
    done(first)
    assert ids(claim("default", 10, "p")) == ["b"]


def test_a_queue_has_a_limit_of_its_own_and_both_hold(settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"default": {"limit": {"concurrency": 2}}}}
    name = limited(concurrency=1)
    other = limited("limited.other", concurrency=5)
    for number in range(3):
        submit(name, {}, job_id=f"a{number}")
    for number in range(3):
        submit(other, {}, job_id=f"b{number}")
    first = claim("default", 10, "p")
    assert ids(first) == ["a0", "b0"]
    assert {row.pk: row.held_back_by for row in Job.objects.held_back()} == {
        "a1": "type:limited.job",
        "a2": "type:limited.job",
        "b1": "queue:default",
        "b2": "queue:default",
    }
    done(first[0])
    second = claim("default", 10, "p")
    assert len(second) == 1, "one slot of the queue is free"
    done(*second, first[1])
    running = Job.objects.filter(status="running").count()
    assert running + len(claim("default", 10, "p")) == 2


def handed_over(*jobs: ClaimedJob, most: int = 9) -> list[ClaimedJob]:
    """Settle, and return what was claimed with it."""
    handover = Handover(lambda queue: True, most)
    assert settle_unlocked([Outcome.completed(one) for one in jobs], "p", handover) == []
    return handover.jobs


def test_who_settles_claims_those_that_were_held_back_with_it() -> None:
    name = limited(concurrency=2, key="account")
    submit_many([NewJob(name, {"account": number % 2}, job_id=f"j{number:02}") for number in range(12)])
    first = claim("default", 10, "p")
    second = handed_over(*first)
    assert ids(second) == ["j04", "j05", "j06", "j07"]
    assert [(one.fence, one.is_limited) for one in second] == [(1, True)] * 4
    assert slots_taken() == ["type:limited.job 0"] * 2 + ["type:limited.job 1"] * 2
    assert set(Job.objects.filter(pk__in=ids(second)).values_list("status", "worker_id")) == {("running", "p")}
    third = handed_over(*second, most=3)
    assert len(third) == 3
    assert sorted([*ids(third), *ids(claim("default", 10, "p"))]) == ["j08", "j09", "j10", "j11"], "one was let in"


def test_who_settles_in_hundreds_of_scopes_claims_who_is_next_in_each() -> None:
    name, keys = limited(concurrency=1, key="account"), 505
    submit_many([NewJob(name, {"account": number % keys}) for number in range(2 * keys)])
    first: list[ClaimedJob] = []
    while claimed := claim("default", keys - len(first), "p"):
        first += claimed
    assert len(first) == keys
    second = handed_over(*first, most=512)
    assert len(second) == keys
    assert sorted(slots_taken()) == sorted(f"type:limited.job {number}" for number in range(keys))


def test_who_settles_overtakes_nobody(settings: Any) -> None:
    name, other = limited(concurrency=1), limited("limited.other", concurrency=9)
    for number in range(3):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 1, "p")
    assert claim("default", 9, "p") == []
    submit(other, {}, job_id="urgent", priority=9)
    assert handed_over(first) == []
    assert ids(claim("default", 9, "p")) == ["urgent", "j1"]
    submit(other, {}, job_id="later")
    assert ids(handed_over(ClaimedJob.of(Job.objects.get(pk="j1")))) == ["j2"], "what comes after it does not matter"


@pytest.mark.parametrize("why", ["it is paused", "a rate decides", "two limits hold", "it ages"])
def test_who_settles_leaves_to_a_claim_what_is_not_that_simple(why: str, settings: Any) -> None:
    of_queue = {"it ages": {"ageing": "10m"}, "two limits hold": {"limit": {"concurrency": 5}}}.get(why, {})
    settings.DJANGO_JOBS = {"QUEUES": {"default": of_queue}}
    name = limited(concurrency=1, rate="100/s" if why == "a rate decides" else None)
    for number in range(3):
        submit(name, {}, job_id=f"j{number}")
    ageing = 600.0 if why == "it ages" else None
    (first,) = claim("default", 1, "p", ageing=ageing)
    assert claim("default", 9, "p", ageing=ageing) == []
    if why == "it is paused":
        pause("default")
    assert handed_over(first) == []
    if why == "it is paused":
        resume("default")
    assert ids(claim("default", 9, "p", ageing=ageing)) == ["j1"], "it was let in"


def test_whatever_ends_a_run_gives_its_slot_on() -> None:
    name = limited(concurrency=1)
    for number in range(7):
        submit(name, {}, job_id=f"j{number}")

    def next_one() -> ClaimedJob:
        (only,) = claim("default", 10, "p")
        return only

    settle([failed(next_one())], "p")
    settle([failed(dead := next_one(), JobStatus.DEAD)], "p")
    settle([Outcome.snoozed(next_one(), 60, "later")], "p")
    released = next_one()
    assert release([released]) == 1
    assert next_one().id == released.id, "it comes first again"
    cancel([released.id])
    settle([Outcome.cancelled(released._replace(fence=released.fence + 2), "asked")], "p")
    assert rescue_process("p") == 0
    leases.register("p", queues=[], threads=1)
    crashed = next_one()
    assert rescue_process("p") == 1
    leases.register("p", queues=[], threads=1)
    assert next_one().id == "j5"
    assert replay([dead.id]).done == [dead.id]
    assert claim("default", 10, "p") == []
    assert crashed.id == "j4"


def test_a_cancelled_job_that_nobody_has_claimed_does_not_keep_those_of_its_submit() -> None:
    name = limited(concurrency=1)
    submit_many([NewJob(name, job_id=one) for one in ("a", "b")])  # `b` is held back from the start
    cancel(["a"])
    assert ids(claim("default", 5, "p")) == ["b"]


def test_a_limit_makes_a_cancel_ask_a_few_questions_more_and_not_some_for_each_job() -> None:
    def questions() -> int:
        jobs = submit_many([NewJob("catalogue.report", {"scan_id": number}) for number in range(50)])
        with CaptureQueriesContext(connection) as asked:
            assert len(cancel([one.pk for one in jobs]).done) == 50
        return len(asked)

    without_limit = questions()
    limited(concurrency=1)  # of another type
    assert questions() <= without_limit + 5


def test_a_cancelled_job_that_was_let_in_gives_its_turn_on() -> None:
    name = limited(concurrency=1)
    for number in range(3):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 10, "p")
    done(first)
    cancel(["j1"])
    assert ids(claim("default", 10, "p")) == ["j2"]


def test_a_job_that_gets_a_dependency_waits_for_no_slot() -> None:
    name = limited(concurrency=1)
    for number in range(3):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 10, "p")
    submit("catalogue.report", {"scan_id": 1}, job_id="other", queue="elsewhere")
    Job.objects.get(pk="j1").add_dependency("other")
    done(first)
    (next_one,) = claim("default", 10, "p")
    assert next_one.id == "j2"
    done(*claim("elsewhere", 1, "p"))
    done(next_one)
    assert ids(claim("default", 10, "p")) == ["j1"]


def test_a_job_that_moves_to_another_queue_asks_there_and_leaves_its_turn() -> None:
    name = limited(concurrency=1)
    for number in range(4):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 10, "p")
    change(["j1"], queue="other")
    done(first)
    change(["j2"], queue="other")
    assert ids(claim("default", 10, "p")) == ["j3"]
    assert claim("other", 10, "p") == []
    assert {row.queue for row in Job.objects.held_back()} == {"other"}


def test_a_job_that_comes_to_a_queue_is_counted_as_those_that_were_submitted_there(settings: Any) -> None:
    total, keyed = {"limit": {"concurrency": 1}}, {"limit": {"concurrency": 1, "key": "scan_id"}}
    settings.DJANGO_JOBS = {"QUEUES": {"total": total, "keyed": keyed}}
    for number in range(2):
        for queue in ("free", "keyed", "total"):
            submit("catalogue.report", {"scan_id": 7}, job_id=f"{queue}{number}", queue=queue)
    change(["free0", "keyed0"], queue="total")
    assert ids(claim("total", 10, "p")) == ["free0"]
    assert claim("total", 10, "p") == [], "in a queue of one at once, whatever key they had"
    change(["free1", "total1"], queue="keyed")
    assert dict(Job.objects.filter(queue="keyed").values_list("pk", "queue_limit_key")) == dict.fromkeys(
        ["free1", "keyed1", "total1"], "7"
    )
    assert ids(claim("keyed", 10, "p")) == ["free1"]
    assert claim("keyed", 10, "p") == []
    change(["keyed1"], queue="free")
    assert Job.objects.get(pk="keyed1").queue_limit_key is None
    assert ids(claim("free", 10, "p")) == ["keyed1"]


def test_a_job_without_the_key_of_a_queue_cannot_come_there(settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"keyed": {"limit": {"concurrency": 1, "key": "account"}}}}
    job("limited.any")(lambda payload: None)
    submit("limited.any", {"account": "a"}, job_id="a")
    submit("limited.any", {}, job_id="b")
    submit("limited.any", {"account": None}, job_id="c")
    submit("limited.any", {}, job_id="d")
    Job.objects.filter(pk="d").update(payload="written by hand")
    moved = change(["a", "b", "c", "d", "e"], queue="keyed", priority=9)
    assert sorted(moved.done) == ["a", "c"]
    assert str(moved.left["b"]) == (
        "job 'b' cannot come to the queue 'keyed': limit: the payload has no key 'account', by which jobs are counted."
        " Give null for a job that is not limited."
    )
    assert "job 'd' cannot come to the queue 'keyed'" in str(moved.left["d"])
    assert [*Job.objects.order_by("pk").values_list("pk", "queue", "queue_limit_key", "rank")] == [
        ("a", "keyed", "a", rank_of(9)),
        ("b", "default", None, rank_of(5)),
        ("c", "keyed", None, rank_of(9)),
        ("d", "default", None, rank_of(5)),
    ]


def test_a_job_that_stays_in_its_queue_keeps_its_key(settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"keyed": {"limit": {"concurrency": 1, "key": "scan_id"}}}}
    submit("catalogue.report", {"scan_id": 1}, job_id="a", queue="keyed")
    Job.objects.update(payload={"scan_id": 2})
    change(["a"], queue="keyed")
    assert Job.objects.get(pk="a").queue_limit_key == "1", "it is asked once, when the job comes to the queue"


def test_slots_are_given_to_whichever_queue_asks_and_none_is_reserved_in_a_paused_one() -> None:
    from django_jobs.lifecycle.queues import pause, resume

    name = limited(concurrency=1)
    submit(name, {}, job_id="first", queue="a")
    (first,) = claim("a", 1, "p")
    for queue in ("a", "b", "c"):
        submit(name, {}, job_id=f"in-{queue}", queue=queue)
        assert claim(queue, 1, "p") == []
    pause("a")
    done(first)
    assert claim("a", 1, "p") == []
    (second,) = claim("c", 1, "p")
    assert claim("b", 1, "p") == []
    resume("a")
    done(second)
    assert ids(claim("b", 1, "p")) == ["in-b"]


def test_a_particular_job_is_claimed_only_when_a_slot_is_free() -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="a")
    submit(name, {}, job_id="b")
    first = claim_job("b", "p")
    with pytest.raises(InvalidJob, match=r"held back by the limit 'type:limited.job'"):
        claim_job("a", "p")
    done(first)
    assert claim_job("a", "p").is_limited
    assert slots_taken() == ["type:limited.job"]


def test_of_a_batch_only_those_are_ready_that_may_run() -> None:
    name = limited(concurrency=2, key="account")
    new = [
        NewJob(name, {"account": number % 2}, job_id=f"j{number}", priority=9 if number == 9 else 5)
        for number in range(10)
    ]
    held = {one.pk: one.pending_limits for one in submit_many(new)}
    assert {pk for pk, is_held in held.items() if not is_held} == {"j0", "j1", "j2", "j9"}
    assert held == dict(Job.objects.values_list("pk", "pending_limits"))
    order = []
    while taken := claim("default", 10, "p"):
        order += ids(taken)
        done(*taken)
    assert order == ["j9", "j0", "j1", "j2", "j3", "j4", "j5", "j6", "j7", "j8"]


def test_jobs_that_are_held_back_do_not_hide_others() -> None:
    name = limited(concurrency=1)
    for number in range(150):
        submit(name, {}, job_id=f"j{number:03}")
    submit("catalogue.report", {"scan_id": 1}, job_id="other")
    assert ids(claim("default", 1, "p")) == ["j000"]
    assert ids(claim("default", 1, "p")) == ["other"]
    assert Job.objects.held_back().count() == 149


def test_an_operator_raises_and_lowers_a_limit_until_it_is_reset() -> None:
    name = limited(concurrency=1)
    for number in range(6):
        submit(name, {}, job_id=f"j{number}")
    first = claim("default", 10, "p")
    limits.set_limit("type:limited.job", concurrency=3)
    first += claim("default", 10, "p")
    assert ids(first) == ["j0", "j1", "j2"]
    limits.set_limit("type:limited.job", concurrency=2)
    done(first[0])
    assert claim("default", 10, "p") == [], "two still run"
    limits.reset_limit("type:limited.job")
    done(first[1])
    assert claim("default", 10, "p") == []
    limits.set_limit("type:limited.job", concurrency=None)
    assert ids(claim("default", 10, "p")) == ["j3", "j4", "j5"]
    with pytest.raises(InvalidJob, match=r"there is no limit 'type:limited.jbo'. Did you mean 'type:limited.job'"):
        limits.set_limit("type:limited.jbo", concurrency=1)


@pytest.mark.parametrize("key", [None, "account"])
def test_what_was_claimed_while_a_limit_was_lifted_counts_when_it_holds_again(key: str | None) -> None:
    name = limited(concurrency=2, key=key)
    for number in range(6):
        submit(name, {"account": 1}, job_id=f"j{number}")
    limits.set_limit("type:limited.job", concurrency=None)
    first = claim("default", 3, "p")
    assert (len(first), slots_taken()) == (3, [])
    limits.reset_limit("type:limited.job")
    assert slots_taken() == ["type:limited.job 1" if key else "type:limited.job"] * 3
    assert claim("default", 10, "p") == []
    done(first[0])
    assert claim("default", 10, "p") == []
    done(first[1])
    assert ids(claim("default", 10, "p")) == ["j3"]


def test_what_another_process_claims_by_old_numbers_is_counted_by_the_maintenance() -> None:
    name = limited(concurrency=1)
    for number in range(3):
        submit(name, {}, job_id=f"j{number}")
    limits.set_limit("type:limited.job", concurrency=None)
    LimitRow.objects.update(set_at=None)  # by another process, of which this one hears later
    assert ids(claim("default", 2, "p")) == ["j0", "j1"]
    Process(threads=1).maintenance.look_at_limits()
    assert slots_taken() == ["type:limited.job"] * 2
    assert claim("default", 10, "p") == []


def test_a_count_of_what_runs_counts_each_job_where_it_belongs() -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="a", limit_key="7")
    submit(name, {}, job_id="b")
    submit("catalogue.report", {"scan_id": 1}, job_id="c")
    (first,) = claim("default", 1, "p")
    limits.write_declared()
    assert (first.id, slots_taken()) == ("a", ["type:limited.job 7"])
    assert sorted(ids(claim("default", 10, "p"))) == ["b", "c"], "the one with a key of its own is not in the total"
    limits.write_declared()
    assert sorted(slots_taken()) == ["type:limited.job", "type:limited.job 7"]


def test_a_sweep_lets_in_whom_a_deleted_row_or_a_removed_limit_has_left_behind() -> None:
    name = limited(concurrency=1)
    for number in range(4):
        submit(name, {}, job_id=f"j{number}")
    claim("default", 10, "p")
    Job.objects.get(pk="j0").delete()
    slots.sweep()
    assert ids(claim("default", 10, "p")) == ["j1"]
    registry.forget(name)
    job(name)(lambda payload: None)
    slots.sweep()
    assert ids(claim("default", 10, "p")) == ["j2", "j3"]


def two_that_ran_before_their_limit(number: int, *, concurrency: int) -> list[ClaimedJob]:
    """Submit so many jobs, claim two without a limit, and declare one; return the two."""
    name = "limited.job"
    job(name)(lambda payload: None)
    for place in range(number):
        submit(name, {}, job_id=f"j{place}")
    running = claim("default", 2, "p")
    assert ids(running) == ["j0", "j1"]
    registry.forget(name)
    limited(concurrency=concurrency)
    return running


def test_jobs_that_ran_when_a_limit_was_declared_count() -> None:
    first = two_that_ran_before_their_limit(3, concurrency=2)
    limits.write_declared()
    assert claim("default", 10, "p") == []
    done(*first)
    slots.sweep()
    assert ids(claim("default", 10, "p")) == ["j2"]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_slots_that_a_process_without_the_limit_has_left_behind_keep_nobody_from_being_next(concurrency: int) -> None:
    old = two_that_ran_before_their_limit(7, concurrency=concurrency)
    limits.write_declared()
    done(*old)  # claimed without the limit: their slots are not given on
    assert LimitSlot.objects.filter(waits=False, job__status="completed").count() == 2
    running = claim("default", 10, "p")
    assert ids(running) == ["j2", "j3"][:concurrency]
    for number in range(2 + concurrency, 7):
        done(running.pop(0))
        running += (following := claim("default", 10, "p"))
        assert ids(following) == [f"j{number}"], "at once, without a sweep"
    done(*running)
    assert claim("default", 10, "p") == []


def test_a_new_process_counts_before_its_first_claim_what_others_run_without_the_limit() -> None:
    two_that_ran_before_their_limit(3, concurrency=2)
    new = Process(threads=1)
    new.register()
    assert slots_taken() == ["type:limited.job"] * 2
    assert claim("default", 10, new.id) == []
    assert [*Job.objects.held_back().values_list("pk", flat=True)] == ["j2"]


def test_rows_of_limits_follow_the_code(settings: Any) -> None:
    limited(concurrency=1, key="account")
    settings.DJANGO_JOBS = {"QUEUES": {"mail": {"limit": {"concurrency": 4}}}}
    limits.write_declared()
    assert [*LimitRow.objects.values_list("name", "key", "concurrency")] == [
        ("queue:mail", "", 4),
        ("type:limited.job", "account", 1),
    ]
    limits.set_limit("queue:mail", concurrency=9)
    settings.DJANGO_JOBS = {}
    limited(concurrency=2, key="account")
    registry.forget("limited.job")
    limited(concurrency=2, key="account")
    limits.write_declared()
    assert LimitRow.objects.get(pk="type:limited.job").concurrency == 2
    row = LimitRow.objects.get(pk="queue:mail")
    assert (row.declared, row.concurrency_now) == (False, 9), "what an operator said is kept for when it comes back"


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "limit: the payload has no key 'account'"),
        ({"account": 1.5}, "limit: account is 1.5: give a string or an integer"),
        ({"account": True}, "limit: account is True"),
        ({"account": ""}, "must not be empty"),
        ({"account": "x" * 201}, "at most 200"),
    ],
)
def test_a_payload_without_a_fit_key_is_refused(payload: dict[str, Any], problem: str) -> None:
    name = limited(concurrency=1, key="account")
    with pytest.raises(InvalidJob, match=problem):
        submit(name, payload)
    with pytest.raises(InvalidJob, match=f"item 1: {problem}" if problem.startswith("limit") else "item 1"):
        submit_many([NewJob(name, {"account": 1}), NewJob(name, payload)])
    assert not Job.objects.exists()


def test_a_key_function_is_asked_once_and_its_failure_refuses_the_submit() -> None:
    asked = []

    def account(payload: dict[str, Any]) -> object:
        asked.append(payload)
        return payload["user"]["account"]

    name = limited(concurrency=1, key=account)
    submit(name, {"user": {"account": 3}}, job_id="a")
    assert (len(asked), Job.objects.get(pk="a").limit_key) == (1, "3")
    with pytest.raises(InvalidJob, match=r"account\(\) failed: KeyError"):
        submit(name, {})


def test_a_limit_key_needs_a_limit() -> None:
    with pytest.raises(InvalidJob, match=r"it needs a limit on the type 'catalogue.report'"):
        submit("catalogue.report", {"scan_id": 1}, limit_key="7")


def test_a_batch_that_is_cancelled_holds_no_slot_and_one_that_is_replayed_asks_anew() -> None:
    name = limited(concurrency=1)
    with django_jobs.batch() as batch:
        batch.submit_many([NewJob(name, {}, job_id=f"m{number}") for number in range(3)])
    submit(name, {}, job_id="z")
    (first,) = claim("default", 10, "p")
    assert first.id == "m0"
    assert claim("default", 10, "p") == []
    assert batch.cancel() == 3
    assert slots_taken() == ["type:limited.job"], "it runs until its handler has ended"
    settle([Outcome.cancelled(first, "asked")], "p")
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    assert not LimitSlot.objects.filter(job__status="cancelled").exists()
    (last,) = claim("default", 10, "p")
    assert last.id == "z"
    assert batch.replay() == 3
    assert claim("default", 10, "p") == []
    done(last)
    assert ids(claim("default", 10, "p")) == ["m0"]


def test_a_job_that_waits_for_an_event_holds_no_slot_and_asks_for_one_when_it_is_woken() -> None:
    name = limited(concurrency=1)
    for number in range(2):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 10, "p")
    step = steps.record(first.id, first.fence, StepRow(1, "go", "event", has_ended=False, event_name="go"))
    assert step is not None
    assert claim("default", 10, "p") == []
    settle([Outcome.waiting(first, 60, (step,), "waits")], "p")
    (second,) = claim("default", 10, "p")
    assert second.id == "j1"
    django_jobs.emit("go")
    assert Job.objects.get(pk="j0").status == "pending"
    assert claim("default", 10, "p") == []
    assert Job.objects.get(pk="j0").held_back_by == "type:limited.job"
    done(second)
    assert ids(claim("default", 10, "p")) == ["j0"]


def test_an_event_that_comes_before_the_end_of_the_run_lets_the_job_ask_anew() -> None:
    name = limited(concurrency=1)
    for number in range(2):
        submit(name, {}, job_id=f"j{number}")
    (first,) = claim("default", 10, "p")
    step = steps.record(first.id, first.fence, StepRow(1, "go", "event", has_ended=False, event_name="go"))
    assert step is not None
    assert claim("default", 10, "p") == []
    django_jobs.emit("go")
    settle([Outcome.waiting(first, 60, (step,), "waits")], "p")
    assert Job.objects.get(pk="j0").status == "pending"
    assert ids(claim("default", 10, "p")) == ["j1"], "the woken one is due after it"
    assert Job.objects.get(pk="j0").held_back_by == "type:limited.job"


def test_a_callback_that_its_limit_would_refuse_is_refused_with_the_batch() -> None:
    name = limited(concurrency=1, key="account")
    with (
        pytest.raises(InvalidJob, match="on_finish: limit: the payload has no key 'account'"),
        django_jobs.batch(on_finish=NewJob(name, {})),
    ):
        pass
    with django_jobs.batch(on_finish=NewJob(name, {"account": 7})):
        pass
    assert Job.objects.get(job_type=name).limit_key == "7"


def test_a_job_of_many_that_fails_at_once_by_its_dependency_is_not_held_back() -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="bad")
    cancel(["bad"])
    submit_many([NewJob(name, {}, job_id=f"j{number}", depends_on=["bad"]) for number in range(3)])
    assert set(Job.objects.filter(pk__startswith="j").values_list("status", "pending_limits")) == {("failed", 0)}
    assert not LimitSlot.objects.exists()


def test_a_claim_that_puts_jobs_back_begins_before_them_the_next_time() -> None:
    mark = ClaimMark()
    mark._places = {-5: Place(-5, "2026-02-01", "b"), 0: Place(0, "2026-03-01", "")}
    mark.step_back([(-5, "2026-01-01", "a"), (-5, "2026-01-02", "c"), (3, "2026-01-01", "d")])
    assert mark._places == {-5: Place(-5, "2026-01-01", "a"), 0: Place(0, "2026-03-01", "")}


def test_the_first_claim_of_a_queue_where_no_limit_was_expected_takes_what_may_run() -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="running")
    assert ids(claim("default", 1, "p")) == ["running"]
    submit(name, {}, job_id="held", queue="elsewhere", priority=9)
    submit("catalogue.report", {"scan_id": 1}, job_id="free", queue="elsewhere")
    assert ids(claim("elsewhere", 1, "p")) == ["free"]
    assert Job.objects.get(pk="held").pending_limits == 1


def test_a_claim_takes_the_job_with_a_fair_key_that_it_has_let_in() -> None:
    name = limited(concurrency=1)
    submit(name, {}, job_id="running")
    claim("default", 1, "p")
    submit(name, {}, job_id="keyed", fair_key="a", priority=9)
    assert claim("default", 1, "p") == []
    Job.objects.get(pk="running").delete()  # and nobody has looked since
    submit(name, {}, job_id="plain")
    turns.forget_queues()  # so that the claim itself looks for keys, before there is one
    assert ids(claim("default", 10, "p")) == ["keyed"]


def test_of_a_batch_with_fair_keys_those_are_ready_whose_turn_comes_first() -> None:
    name = limited(concurrency=3)
    keys = [None, None, "b", "a", "a", "b", None]
    new = [NewJob(name, {}, job_id=f"j{number}", fair_key=key) for number, key in enumerate(keys)]
    held = {one.pk for one in submit_many(new) if one.pending_limits}
    assert held == {"j1", "j4", "j5", "j6"}, "one of each key, and one of those without"
    order = []
    while taken := claim("default", 1, "p"):
        order += ids(taken)
        done(*taken)
    assert order[:3] == ["j3", "j2", "j0"]
    assert ({*order[3:6]}, order[6:]) == ({"j1", "j4", "j5"}, ["j6"])
