"""What is kept of a worker process that is no more: how it ended, what was taken back, for a week."""

from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone

import django_jobs
from django_jobs import NewJob
from django_jobs.conf import RELEASE_VARIABLES, this_release
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.farewell import forget_gone, note_lease_lost
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.release import release_process
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Attempt, DeadLetter, GoneProcess, WorkerProcess
from tests.support.factories import WorkerProcessFactory

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def without_release(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RELEASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    this_release.cache_clear()


def test_a_process_that_leaves_is_kept_as_one_that_left() -> None:
    leases.register("p", queues=["mail"], threads=3)
    leases.beat("p", leases.Vitals(jobs_done=7))
    assert leases.leave("p")
    row = GoneProcess.objects.get()
    assert (row.pk, row.ending, row.held, row.threads, row.queues, row.jobs_done) == ("p", "left", 0, 3, ["mail"], 7)
    assert not WorkerProcess.objects.exists()


def test_a_process_that_leaves_says_what_it_did_since_its_last_beat() -> None:
    leases.register("p", queues=[], threads=1)
    leases.beat("p", leases.Vitals(jobs_done=7))
    release_process("p", jobs_done=9)
    assert GoneProcess.objects.get().jobs_done == 9


def test_a_process_that_holds_a_job_does_not_go() -> None:
    leases.register("p", queues=[], threads=1)
    django_jobs.submit("effects.record")
    claim("default", 1, "p")
    assert not leases.leave("p")
    assert WorkerProcess.objects.exists()
    assert not GoneProcess.objects.exists()


@pytest.mark.parametrize(
    ("other", "is_reaped", "ending"),
    [
        ({"host": "web-1"}, False, "silent"),
        ({"host": "web-2"}, False, "host silent"),
        ({"host": "web-2"}, True, "killed"),
    ],
)
def test_a_rescued_process_is_kept_with_how_it_ended_and_how_many_jobs_it_held(
    other: dict[str, str], is_reaped: bool, ending: str
) -> None:
    leases.register("p", queues=[], threads=1)
    WorkerProcess.objects.update(host="web-1", release="2026.11.1")
    WorkerProcessFactory(**other)
    django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
    claim("default", 2, "p")
    with override_settings(DJANGO_JOBS={"RELEASE": "2026.11.2"}):
        assert rescue_process("p", None if is_reaped else 0) == 2
    row = GoneProcess.objects.get()
    assert (row.ending, row.held) == (ending, 2)
    assert set(Attempt.objects.values_list("release", flat=True)) == {"2026.11.1"}, "that of the code that ran"


def test_a_process_that_comes_back_too_late_corrects_what_is_told_of_it() -> None:
    WorkerProcessFactory(id="p", host="web-1")
    rescue_process("p", 0)
    leases.register("left", queues=[], threads=1)
    leases.leave("left")
    for process_id in ("p", "left"):
        note_lease_lost(process_id)
    assert dict(GoneProcess.objects.values_list("pk", "ending")) == {"p": "lease lost", "left": "left"}


def test_what_is_told_of_a_process_is_forgotten_after_a_week() -> None:
    for process_id, days in (("old", 8), ("new", 6)):
        leases.register(process_id, queues=[], threads=1)
        leases.leave(process_id)
        GoneProcess.objects.filter(pk=process_id).update(ended_at=timezone.now() - timedelta(days=days))
    prune()
    assert [row.pk for row in GoneProcess.objects.all()] == ["new"]
    assert forget_gone() == 0


@pytest.mark.parametrize(
    ("given", "variables", "release"),
    [
        ("2026.11.3", {"GIT_COMMIT": "x"}, "2026.11.3"),
        (lambda: "made", {}, "made"),
        (None, {"GIT_COMMIT": "abc", "RELEASE": "7"}, "7"),
        (None, {"HEROKU_SLUG_COMMIT": "c0ffee" * 20}, ("c0ffee" * 20)[:64]),
        (None, {}, ""),
        ("", {"RELEASE": "7"}, ""),
    ],
)
def test_a_release_is_what_the_site_says_else_what_a_deploy_has_set(
    given: object, variables: dict[str, str], release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with override_settings(DJANGO_JOBS={"RELEASE": given}):
        assert this_release() == release
        leases.register("p", queues=[], threads=1)
        django_jobs.submit("effects.record")
        (job,) = claim("default", 1, "p")
        settle([Outcome.by_hand(job, "dead")], "p")  # type: ignore[arg-type]
        told = {WorkerProcess.objects.get().release, Attempt.objects.get().release, DeadLetter.objects.get().release}
    assert told == {release}
    this_release.cache_clear()
