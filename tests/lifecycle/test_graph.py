"""Dependencies: nothing starts early, no wake is lost, a bad end fails what follows and a replay brings it back."""

import pytest
from django.db import OperationalError

import django_jobs
from django_jobs import NewJob
from django_jobs.exceptions import CycleError, InvalidJob, JobNotFound
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.cascade import cascade_all, continue_cascade
from django_jobs.lifecycle.claim import ClaimedJob, claim, claim_freed
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobDependency, JobStatus, WorkerProcess
from tests.support.processes import manage

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def process() -> None:
    leases.register("p", queues=[], threads=1)


def complete(*jobs: ClaimedJob) -> None:
    assert settle([Outcome.completed(job) for job in jobs], "p") == set()


def kill(job: ClaimedJob) -> None:
    letter = DeadLetterReason.RETRIES_EXHAUSTED
    settle([Outcome(job=job, status=JobStatus.DEAD, attempt=AttemptOutcome.FAILED, reason=letter, error="no")], "p")


def statuses(*ids: str) -> list[str]:
    found = dict(Job.objects.values_list("pk", "status"))
    return [found[one] for one in ids]


def chain(*names: str, **options: str) -> None:
    before: str | None = None
    batch = []
    for name in names:
        batch.append(NewJob("effects.record", job_id=name, depends_on=[before] if before else None, **options))
        before = name
    django_jobs.submit_many(batch)


def test_a_chain_runs_in_its_order() -> None:
    chain("c", "b", "a")
    order = []
    while claimed := claim("default", 10, "p"):
        order += [job.id for job in claimed]
        complete(*claimed)
    assert order == ["c", "b", "a"]


def hand_over(job: ClaimedJob, *, takes: bool = True) -> ClaimedJob | None:
    handover = Handover(lambda queue: takes)
    assert settle_unlocked([Outcome.completed(job)], "p", handover) == []
    return handover.jobs[0] if handover.jobs else None


def test_who_settles_a_link_of_a_chain_claims_the_next_one_with_it() -> None:
    chain("c", "b", "a")
    (job,) = claim("default", 1, "p")
    following = hand_over(job)
    assert following
    assert (following.id, following.fence, statuses("c", "b", "a")) == ("b", 1, ["completed", "running", "pending"])
    assert Job.objects.get(pk="b").worker_id == "p"
    assert hand_over(following, takes=False) is None
    assert statuses("b", "a") == ["completed", "pending"]
    assert [job.id for job in claim("default", 9, "p")] == ["a"]


def test_what_is_claimed_with_a_settle_is_the_first_job_of_the_queue() -> None:
    chain("b", "a")
    (job,) = claim("default", 1, "p")
    django_jobs.submit("effects.record", {}, job_id="urgent", priority=9)
    following = hand_over(job)
    assert following
    assert (following.id, statuses("a")) == ("urgent", ["pending"])


def test_nothing_is_claimed_with_a_settle_from_a_paused_queue_or_by_a_process_without_a_lease() -> None:
    chain("c", "b", "a")
    (job,) = claim("default", 1, "p")
    pause("default")
    assert hand_over(job) is None
    assert statuses("c", "b") == ["completed", "pending"]
    resume("default")
    (job,) = claim("default", 1, "p")
    WorkerProcess.objects.update(lease_expires_at=None)
    assert hand_over(job) is None
    assert statuses("b", "a") == ["completed", "pending"]


def test_a_settle_that_is_run_again_hands_over_what_its_last_try_has_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    chain("b", "a")
    (job,) = claim("default", 1, "p")
    tries: list[ClaimedJob | None] = []

    def deadlock_once(*args: str) -> ClaimedJob | None:
        tries.append(claim_freed(*args))
        if len(tries) == 1:
            raise OperationalError(1213, "deadlock")
        return tries[-1]

    monkeypatch.setattr("django_jobs.lifecycle.settle.claim_freed", deadlock_once)
    following = hand_over(job)
    assert following
    assert (following.id, following.fence, len(tries)) == ("a", 1, 2)
    assert statuses("b", "a") == ["completed", "running"]


def test_a_batch_that_completes_all_dependencies_wakes_their_job_once() -> None:
    django_jobs.submit_many(
        [NewJob("effects.record", job_id=f"d{n}") for n in range(60)]
        + [NewJob("effects.record", job_id="last", depends_on=[f"d{n}" for n in range(60)])]
    )
    assert Job.objects.get(pk="last").pending_dependencies == 60
    first = claim("default", 59, "p")
    complete(*first)
    assert Job.objects.get(pk="last").pending_dependencies == 1
    (rest,) = claim("default", 10, "p")
    complete(rest)
    assert [job.id for job in claim("default", 10, "p")] == ["last"]


def test_a_dependency_that_completed_before_holds_nobody_back() -> None:
    django_jobs.submit("effects.record", {}, job_id="a")
    complete(*claim("default", 1, "p"))
    job = django_jobs.submit("effects.record", {}, depends_on=["a"])
    assert (job.status, job.pending_dependencies) == ("pending", 0)


def test_a_dead_dependency_fails_all_that_follow_and_a_replay_brings_them_back() -> None:
    chain("a", "b", "c", "d")
    kill(*claim("default", 1, "p"))
    cascade_all()
    assert statuses("a", "b", "c", "d") == ["dead", "failed", "failed", "failed"]
    assert "a" in (Job.objects.get(pk="b").error or "")
    assert not JobDependency.objects.filter(state="open").exists()

    Job.objects.get(pk="a").replay()
    assert statuses("a", "b", "c", "d") == ["pending"] * 4
    order = []
    while claimed := claim("default", 10, "p"):
        order += [job.id for job in claimed]
        complete(*claimed)
    assert order == ["a", "b", "c", "d"]


def test_a_replay_can_leave_the_dependents_failed() -> None:
    chain("a", "b")
    kill(*claim("default", 1, "p"))
    Job.objects.get(pk="a").replay(dependents=False)
    assert statuses("a", "b") == ["pending", "failed"]
    django_jobs.submit("effects.record", {}, job_id="other", priority=9)
    kill(*claim("default", 1, "p"))
    Job.objects.get(pk="other").replay()
    assert statuses("a", "b") == ["pending", "failed"], "a later replay of another job does not revive them"


def test_a_job_that_runs_anyway_starts_after_a_dead_dependency() -> None:
    chain("a", "b", on_dependency_failure="run")
    kill(*claim("default", 1, "p"))
    assert [job.id for job in claim("default", 5, "p")] == ["b"]


def test_a_job_submitted_after_its_dependency_died_fails_at_once_or_runs() -> None:
    django_jobs.submit("effects.record", {}, job_id="a")
    kill(*claim("default", 1, "p"))
    assert django_jobs.submit("effects.record", {}, depends_on=["a"]).status == "failed"
    run = django_jobs.submit("effects.record", {}, depends_on=["a"], on_dependency_failure="run")
    assert (run.status, run.pending_dependencies) == ("pending", 0)


def test_a_cancelled_dependency_fails_its_dependents() -> None:
    chain("a", "b", "c")
    Job.objects.get(pk="a").cancel()
    assert statuses("a", "b", "c") == ["cancelled", "failed", "failed"]


@pytest.mark.slow
def test_a_dead_root_fails_and_revives_thousands_in_steps() -> None:
    leaves = [NewJob("effects.record", job_id=f"leaf{n}", depends_on=["root"]) for n in range(1200)]
    django_jobs.submit_many([NewJob("effects.record", job_id="root"), *leaves])
    kill(*claim("default", 1, "p"))
    assert Job.objects.filter(status="failed").count() == 500, "the settle itself treats one step"
    assert cascade_all() == 700
    assert Job.objects.filter(status="failed").count() == 1200
    Job.objects.get(pk="root").replay()
    assert Job.objects.filter(status="pending", pending_dependencies=1).count() == 1200


def test_one_step_goes_through_all_layers_and_a_replay_frees_only_what_nothing_else_holds() -> None:
    """Below the root a chain; at its end one job that another dead job holds as well, and one that runs anyway."""
    chain("root", *(f"c{link}" for link in range(30)))
    django_jobs.submit("effects.record", {}, job_id="other")
    django_jobs.submit_many(
        [
            NewJob("effects.record", job_id="both", depends_on=["c29", "other"]),
            NewJob("effects.record", job_id="behind", depends_on=["both"]),
            NewJob("effects.record", job_id="anyway", depends_on=["c29"], on_dependency_failure="run"),
        ]
    )
    for job in claim("default", 2, "p"):
        kill(job)
    assert continue_cascade() > 29
    assert continue_cascade() == 0
    assert statuses("c0", "c29", "both", "behind", "anyway") == ["failed"] * 4 + ["pending"]
    assert Job.objects.get(pk="c29").error == "dependency c28 (effects.record) ended failed"
    assert [job.id for job in claim("default", 5, "p")] == ["anyway"]

    Job.objects.get(pk="root").replay()
    assert statuses("c0", "c29", "both", "behind") == ["pending", "pending", "failed", "failed"]
    Job.objects.get(pk="other").replay()
    assert statuses("both", "behind") == ["pending", "pending"]
    pending = dict(Job.objects.values_list("pk", "pending_dependencies"))
    assert (pending["both"], pending["behind"], pending["c0"], pending["root"]) == (2, 1, 1, 0)


def test_a_dependency_can_be_added_to_a_waiting_job_but_never_a_circle() -> None:
    chain("a", "b", "c")
    late = django_jobs.submit("effects.record", {}, job_id="late")
    late.add_dependency("c")
    assert late.pending_dependencies == 1
    with pytest.raises(CycleError, match="a → late → c → b → a"):
        Job.objects.get(pk="a").add_dependency("late")
    with pytest.raises(CycleError):
        late.add_dependency(late)
    with pytest.raises(InvalidJob, match="already"):
        late.add_dependency("c")
    claim("default", 1, "p")
    with pytest.raises(InvalidJob, match="running"):
        Job.objects.get(pk="a").add_dependency(django_jobs.submit("effects.record", {}))


def test_a_dependency_can_be_added_only_to_a_job_that_exists_and_of_one_that_does() -> None:
    job = django_jobs.submit("effects.record", {}, job_id="a")
    for nothing in ("b", "", None, 5):
        with pytest.raises(InvalidJob, match="depends_on"):
            job.add_dependency(nothing)  # type: ignore[arg-type]
    django_jobs.submit("effects.record", {}, job_id="b")
    Job.objects.filter(pk="a").delete()
    with pytest.raises(JobNotFound):
        job.add_dependency("b")


def test_a_batch_names_the_item_whose_dependency_does_not_exist() -> None:
    batch = [NewJob("effects.record"), NewJob("effects.record", depends_on=["gone"])]
    with pytest.raises(InvalidJob, match="item 1: depends_on: there is no job 'gone'"):
        django_jobs.submit_many(batch)
    assert not Job.objects.exists()


def test_the_holder_of_a_unique_key_stands_in_for_an_item_that_others_depend_on() -> None:
    held = django_jobs.submit("effects.record", {}, unique_key="k")
    new = [
        NewJob("effects.record", job_id="again", unique_key="k"),
        NewJob("effects.record", job_id="b", depends_on=["again", held.id]),
        NewJob("effects.record", job_id="c", unique_key="new"),
        NewJob("effects.record", job_id="d", unique_key="new", depends_on=["b"]),
        NewJob("effects.record", job_id="e", depends_on=["d"]),
    ]
    jobs = django_jobs.submit_many(new)
    assert [job.id for job in jobs] == [held.id, "b", "c", "c", "e"]
    assert [job.depends_on for job in jobs] == [[], [held.id], [], [], ["c"]]
    assert [Job.objects.get(pk=job.id).depends_on for job in jobs] == [job.depends_on for job in jobs]
    assert Job.objects.count() == 4
    with pytest.raises(CycleError, match="f → f"):
        django_jobs.submit_many(
            [
                NewJob("effects.record", job_id="f", unique_key="l", depends_on=["g"]),
                NewJob("effects.record", job_id="g", unique_key="l"),
            ]
        )


@pytest.mark.slow
def test_a_worker_fails_all_that_follow_before_it_is_drained() -> None:
    root = NewJob("effects.fail", job_id="a", max_retries=0)
    wide = [NewJob("effects.record", job_id=f"w{number}", depends_on=["a"]) for number in range(600)]
    deep = [
        NewJob("effects.record", job_id=one, depends_on=[before]) for before, one in zip("abcd", "bcde", strict=True)
    ]
    django_jobs.submit_many([root, *wide, *deep])
    done = manage("runworkers", "--drain")
    assert done.returncode == 0, done.stderr
    assert Job.objects.counts_by_status()["failed"] == 604


def test_a_scheduled_dependent_waits_for_both_its_time_and_its_dependency() -> None:
    django_jobs.submit("effects.record", {}, job_id="a")
    late = django_jobs.submit("effects.record", {}, depends_on=["a"], delay=60)
    complete(*claim("default", 1, "p"))
    late.refresh_from_db()
    assert (late.status, late.pending_dependencies) == ("scheduled", 0)
    assert claim("default", 1, "p") == []
