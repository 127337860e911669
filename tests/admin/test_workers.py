"""Worker processes in the admin: the living, how well they are and what they run, and those that are gone."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.db.transactions import database_now
from django_jobs.models import DeadLetter, GoneProcess, WorkerProcess
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.in_process import running_process
from tests.support.staff import browse, operator, staff
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db

ROOT = "/admin/django_jobs/"
WORKERS = f"{ROOT}workerprocess/"
GONE = f"{ROOT}goneprocess/"


def gone(pk: str = "web-1:7:a", **more: Any) -> GoneProcess:
    now = database_now()
    values = {"host": "web-1", "pid": 7, "started_at": now - timedelta(hours=1), "heartbeat_at": now, "ended_at": now}
    return GoneProcess.objects.create(id=pk, **{**values, "ending": "killed", "held": 2, **more})


def test_silence_is_shown_before_the_lease_ends() -> None:
    now = database_now()
    later = now + timedelta(hours=1)
    WorkerProcessFactory(id="w-1", heartbeat_at=later)  # it does not fall silent, however slow the machine is
    WorkerProcessFactory(id="w-2", heartbeat_at=now - timedelta(days=2, minutes=10), lease_expires_at=later)
    text = operator().get(WORKERS).text
    assert re.search(r"silent for 2 d\b(?! \d)", text)
    assert text.count("jobs-alive") == 1


def test_a_processs_page_shows_its_threads_what_each_runs_and_how_well_it_is() -> None:
    process = WorkerProcessFactory(
        id="web-1:7:a", threads=4, release="2026.11.3", jobs_done=1234, jobs_per_second=2.5, memory_mb=321
    )
    running = JobFactory(status="running", worker_id=process.pk, started_at=database_now() - timedelta(minutes=2))
    failed = AttemptFactory(worker_id=process.pk, error="KeyError: 'zip'")
    AttemptFactory(worker_id="another")
    answer = operator().get(f"{WORKERS}{quote(process.pk)}/change/")
    assert answer.context["words"] == "running 1, threads 4"
    assert [running.pk in one["job"] for one in answer.context["running"]] == [True]
    assert answer.context["running"][0]["since"].startswith("2 min")
    assert [one["attempt"].pk for one in answer.context["attempts"]] == [failed.pk]
    for part in ("2026.11.3", "1234", "2.5", "321 MB", "KeyError", "Ask to stop…"):
        assert part in answer.text
    assert "Ask to stop…" not in browse(staff()).get(f"{WORKERS}{quote(process.pk)}/change/").text


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_a_processs_page_counts_its_connections_as_the_server_does() -> None:
    with running_process() as process:
        url = f"{WORKERS}{quote(process.id)}/change/"
        client = operator()

        def connections() -> int:
            return int(dict(client.get(url).context["facts"]).get("Connections", "0"))

        wait_until(lambda: connections() >= 2, 60, "the lease's connection, and one to claim over")
        assert connections() <= 8
    WorkerProcessFactory(id="of no session")
    assert "Connections" not in dict(client.get(f"{WORKERS}{quote('of no session')}/change/").context["facts"])


def test_a_gone_process_stays_with_what_it_held_and_how_it_ended() -> None:
    row = gone(release="2026.11.2", jobs_done=40)
    job = JobFactory(status="dead")
    AttemptFactory(job=job, worker_id=row.pk, outcome="crashed", started_at=row.started_at, ended_at=row.ended_at)
    client = operator()
    text = client.get(GONE).text
    for part in ("killed", "2 jobs were taken back", "40 jobs done", "2026.11.2"):
        assert part in text
    page = client.get(f"{GONE}{quote(row.pk)}/change/")
    assert [one["attempt"].outcome for one in page.context["attempts"]] == ["crashed"]
    assert page.context["attempts"][0]["took"] == "1 h"
    assert f"{ROOT}job/{job.pk}/change/" in page.text
    job_page = client.get(f"{ROOT}job/{job.pk}/change/").text
    assert f"{WORKERS}{quote(row.pk)}/change/" in job_page, "an attempt leads to its worker"
    answer = client.get(f"{WORKERS}{quote(row.pk)}/change/", follow=True)
    assert answer.redirect_chain[0][0] == f"{GONE}{quote(row.pk)}/change/", "a link that is older than its end"
    assert [one.pk for one in client.get(GONE, {"q": "web-1"}).context["cl"].result_list] == [row.pk]
    assert client.get(GONE, {"q": "web-2"}).context["cl"].result_count == 0


def test_who_may_not_view_worker_processes_sees_none_that_are_gone() -> None:
    row = gone()
    user = staff()
    user.user_permissions.set(user.user_permissions.exclude(codename="view_workerprocess"))
    client = browse(user)
    for url in (GONE, f"{GONE}{quote(row.pk)}/change/"):
        assert client.get(url).status_code == 403


def test_a_cause_says_in_which_release_it_was_first_seen_and_charts_mark_deploys() -> None:
    now = database_now()
    for release, minutes in (("2026.11.3", 50), ("2026.11.4", 10)):
        letter = DeadLetterFactory(fingerprint="f1", died_at=now - timedelta(minutes=minutes))
        DeadLetter.objects.filter(pk=letter.pk).update(release=release)
    gone("a", release="2026.11.2", started_at=now - timedelta(days=2))
    gone("b", release="2026.11.3", started_at=now - timedelta(hours=2))
    WorkerProcessFactory(release="2026.11.3", started_at=now - timedelta(hours=1))
    WorkerProcessFactory(release="2026.11.4", started_at=now - timedelta(minutes=20))
    client = operator()
    causes = client.get(f"{ROOT}deadletter/causes/")
    assert causes.context["causes"][0].release == "2026.11.3"
    assert "in release" in causes.text
    hour, day = client.get(f"{ROOT}overview/").text.split('<figure class="jobs-figure">')[1:]
    assert ("Release 2026.11.4" in hour, "Release 2026.11.3" in hour) == (True, False)
    assert ("Release 2026.11.4" in day, "Release 2026.11.3" in day, "Release 2026.11.2" in day) == (True, True, False)


def test_the_pages_of_processes_take_a_few_queries_however_many_attempts_there_are() -> None:
    process, row = WorkerProcessFactory(id="w-1"), gone()
    client = operator()
    counts: list[int] = []
    for _ in range(2):
        for pk in (process.pk, row.pk):
            AttemptFactory.create_batch(20, worker_id=pk)
        JobFactory.create_batch(20, status="running", worker_id=process.pk)
        for url in (WORKERS, GONE, f"{WORKERS}w-1/change/", f"{GONE}{quote(row.pk)}/change/"):
            with CaptureQueriesContext(connection) as queries:
                assert client.get(url).status_code == 200
            counts.append(len(queries))
    assert counts[:4] == counts[4:]
    assert max(counts) <= 12
    assert WorkerProcess.objects.count() == 1
