"""Several databases in each face: command line, probes, metrics, library, tasks, testing kit, admin."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.admin.utils import quote
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import Client, override_settings

import django_jobs
from django_jobs import testing
from django_jobs.admin import operations
from django_jobs.backends import task
from django_jobs.compat import task_backends
from django_jobs.db.connections import use_database
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.operations import move_operations
from django_jobs.lifecycle.replay import replay_dead_letters
from django_jobs.metrics import expose
from django_jobs.models import Cause, DeadLetter, Job, Operation, Schedule
from django_jobs.monitoring import health, metrics
from django_jobs.queue import JobQueue, JobQueueManager, Scheduler
from django_jobs.scheduling import spec
from django_jobs.scheduling.store import sync_after_migrate
from django_jobs.testing.factory import worker_process
from django_jobs.worker.local_process import stop_local_process
from tests.support.databases import Database, new_url
from tests.support.several import more_databases
from tests.support.staff import operator

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "tenant"]),
    pytest.mark.databases("sqlite"),
]
TYPE = "effects.record"
TASKS = {
    "default": {"BACKEND": "django_jobs.backends.JobsBackend", "QUEUES": []},
    "tenant": {"BACKEND": "django_jobs.backends.JobsBackend", "QUEUES": [], "OPTIONS": {"using": "tenant"}},
}


@pytest.fixture
def django_db_setup(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[None]:
    """Give a second database, migrated, before Django looks which ones the test may use."""
    with django_db_blocker.unblock(), more_databases({"tenant": new_url("sqlite", tmp_path, suffix="_tenant")}):
        yield


@pytest.fixture(autouse=True)
def both() -> Iterator[None]:
    """Name both in DATABASES."""
    with override_settings(DJANGO_JOBS={"DATABASES": ["default", "tenant"]}):
        yield


def jobs(*args: str) -> str:
    """Run a verb and return what it printed."""
    out = StringIO()
    call_command("jobs", *args, stdout=out, stderr=StringIO())
    return out.getvalue()


def lines(*args: str) -> list[dict[str, Any]]:
    """Run a verb with --json and return what it printed."""
    return [json.loads(line) for line in jobs(*args, "--json").splitlines()]


# --- the command line


@pytest.mark.slow
def test_reading_verbs_cover_all_databases_or_the_named_one() -> None:
    here, there = django_jobs.submit(TYPE), django_jobs.submit(TYPE, using="tenant")
    assert {(line["id"], line["database"]) for line in lines("list")} == {(here.pk, "default"), (there.pk, "tenant")}
    assert [line["id"] for line in lines("list", "--database", "tenant")] == [there.pk]
    text = jobs("list")
    assert text.index("database default:") < text.index(here.pk) < text.index("database tenant:") < text.index(there.pk)
    assert [(line["pending"], line["database"]) for line in lines("stats")] == [(1, "default"), (1, "tenant")]


def test_verbs_with_an_id_look_in_all_and_ask_when_two_have_it() -> None:
    here, there = django_jobs.submit(TYPE), django_jobs.submit(TYPE, using="tenant")
    assert there.pk in jobs("show", there.pk)
    told = lines("cancel", here.pk, there.pk)
    assert {(line["id"], line["state"]) for line in told} == {(here.pk, "cancelled"), (there.pk, "cancelled")}
    with pytest.raises(CommandError, match="nowhere"):
        jobs("show", "nowhere")
    for alias in ("default", "tenant"):
        django_jobs.submit(TYPE, job_id="twice", using=alias)
    with pytest.raises(CommandError, match="'twice' is in several databases; give --database") as refused:
        jobs("cancel", "twice")
    assert refused.value.returncode == 2
    assert "cancelled" in jobs("cancel", "twice", "--database", "tenant")
    assert Job.objects.using("default").get(pk="twice").status == "pending"


def test_a_submit_of_the_command_line_goes_where_one_of_the_code_goes() -> None:
    jobs("enqueue", TYPE)
    jobs("enqueue", TYPE, "--database", "tenant")
    assert [Job.objects.using(alias).count() for alias in ("default", "tenant")] == [1, 1]


def test_an_export_of_one_database_is_read_by_another(tmp_path: Path) -> None:
    job = django_jobs.submit(TYPE)
    jobs("export", str(tmp_path / "jobs"))
    jobs("import", str(tmp_path / "jobs"), "--database", "tenant")
    assert Job.objects.using("tenant").get().pk == job.pk
    assert "tenant" not in (tmp_path / "jobs").read_text()


# --- probes and metrics


def test_health_covers_all_and_says_which() -> None:
    report = health.health()
    assert report.problems == [f"database {alias!r}: no worker process is alive" for alias in ("default", "tenant")]
    assert report.stats["workers"] == 0
    assert set(report.stats["databases"]) == {"default", "tenant"}
    with pytest.raises(CommandError, match="no worker process is alive") as refused:
        jobs("health", "--database", "tenant")
    assert "default" not in str(refused.value)
    with a_worker_in("tenant"):
        assert health.live().healthy, "the worker is alive, whatever another database has to say"


@contextmanager
def a_worker_in(alias: str) -> Iterator[None]:
    """Give a worker process in one database, and choose none."""
    with use_database(alias), worker_process(), use_database(None):
        yield


@pytest.mark.slow
def test_metrics_are_labelled_and_one_database_away_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    django_jobs.submit(TYPE, using="tenant")
    text = expose().decode()
    assert 'django_jobs_ready_jobs{database="tenant",queue="default"} 1.0' in text
    assert 'django_jobs_workers_alive{database="default"} 0.0' in text
    assert text.count("# TYPE django_jobs_workers_alive gauge") == 1
    connections["tenant"].close()
    monkeypatch.setitem(connections["tenant"].settings_dict, "NAME", "/nowhere/at/all")
    text = expose().decode()
    assert 'django_jobs_database_up{database="tenant"} 0.0' in text
    assert 'django_jobs_workers_alive{database="default"} 0.0' in text


def test_the_events_of_a_process_are_labelled() -> None:
    metrics.EVENTS.clear()
    metrics.enable()
    try:
        for alias in ("default", "tenant", "tenant"):
            django_jobs.submit(TYPE, using=alias)
        text = expose().decode()
    finally:
        metrics.disable()
        metrics.EVENTS.clear()
    assert 'django_jobs_events_total{database="default",event="submitted",queue="default"} 1.0' in text
    assert 'django_jobs_events_total{database="tenant",event="submitted",queue="default"} 2.0' in text


# --- the library


def test_a_queue_and_a_manager_are_of_one_database() -> None:
    queue = JobQueue("mail", using="tenant")
    queue.register_handler("mail.send", lambda payload: "sent")
    job_id = queue.enqueue("mail.send", {})
    assert queue.process_next() == job_id
    assert (queue.get_job(job_id).result, JobQueue("mail").size) == ("sent", 0)
    stop_local_process()
    manager = JobQueueManager({"queues": {"mail": {}}, "using": "tenant"})
    manager.register_handler("mail.send", lambda payload: "again", queue="mail")
    with manager:
        manager.start_workers()
        other = manager.submit("mail.send", {})
        assert manager.queue("mail").wait_for_completion(other, timeout=60)
    assert Job.objects.using("tenant").get(pk=other).result == "again"
    assert manager.get_stats()["total_completed"] == 2
    stop_local_process()
    with pytest.raises(InvalidJob, match="give an alias that holds jobs"):
        JobQueue("mail", using="elsewhere")


def test_schedules_are_of_one_database(monkeypatch: pytest.MonkeyPatch) -> None:
    Scheduler(using="tenant").schedule_interval("made", TYPE, timedelta(hours=1))
    assert list(Schedule.objects.using("tenant").values_list("name", flat=True)) == ["made"]
    monkeypatch.setattr(spec, "_declared", {})
    monkeypatch.setattr(spec, "_declared_for", {})
    django_jobs.schedule("usual", TYPE, every=60)
    django_jobs.schedule("theirs", TYPE, every=60, using="tenant")
    for alias in ("default", "tenant"):
        sync_after_migrate(alias)
    assert set(Schedule.objects.using("default").values_list("name", flat=True)) == {"usual"}
    assert set(Schedule.objects.using("tenant").values_list("name", flat=True)) == {"made", "theirs"}
    with pytest.raises(InvalidJob, match="holds jobs"):
        django_jobs.schedule("wrong", TYPE, every=60, using="elsewhere")


# --- tasks


@task
def add(one: int, other: int) -> int:
    """Add."""
    return one + other


def test_a_backend_has_a_database() -> None:
    with override_settings(TASKS=TASKS):
        result = add.using(backend="tenant").enqueue(1, 2)
        assert Job.objects.using("tenant").get().pk == result.id
        assert not Job.objects.using("default").exists()
        testing.run_due()
        found = task_backends["tenant"].get_result(result.id)
        assert (found.return_value, found.job.status) == (3, "completed")
        assert task_backends["default"].get_result(result.id).id == result.id, "that one looks in all of them"
        assert [message.id for message in task_backends["tenant"].check()] == []
    wrong = {**TASKS, "tenant": {**TASKS["tenant"], "OPTIONS": {"using": "elsewhere"}}}
    with override_settings(TASKS=wrong):
        assert [message.id for message in task_backends["tenant"].check()] == ["django_jobs.tasks.E005"]


# --- the testing kit


@pytest.mark.slow
def test_the_testing_kit_covers_all_or_the_named_one() -> None:
    here, there = django_jobs.submit(TYPE), django_jobs.submit(TYPE, using="tenant", delay=60)
    assert testing.assert_submitted(TYPE, using="tenant").pk == there.pk
    testing.assert_submitted(TYPE, count=2)
    assert testing.drain(using="tenant") == []
    testing.advance_time(timedelta(minutes=2))
    assert [job.pk for job in testing.drain()] == [here.pk, there.pk]
    with pytest.raises(AssertionError, match="1 submitted"):
        testing.refute_submitted(TYPE, using="tenant")
    assert testing.make_job(TYPE, status="dead", using="tenant")._state.db == "tenant"


@pytest.mark.django_db(databases=["default"])
@pytest.mark.slow
def test_the_testing_kit_leaves_alone_what_the_test_may_not_use() -> None:
    job = django_jobs.submit(TYPE)
    assert [one.pk for one in testing.drain()] == [job.pk]
    testing.advance_time(timedelta(minutes=2))
    testing.assert_submitted(TYPE, count=1)


# --- the admin


@pytest.mark.slow
def test_the_admin_shows_the_chosen_database_and_keeps_the_choice() -> None:
    here, there = django_jobs.submit(TYPE), django_jobs.submit(TYPE, using="tenant")
    client = operator()
    address = "/admin/django_jobs/job/"
    page = client.get(address).content.decode()
    assert here.pk in page
    assert there.pk not in page
    for asked in ("?database=tenant", "", "?database=elsewhere"):
        page = client.get(address + asked).content.decode()
        assert there.pk in page, asked
        assert here.pk not in page
        assert '<a href="?database=tenant" aria-current="page">' in page
    assert there.pk in client.get(f"{address}{there.pk}/change/").content.decode()
    client.get("/admin/django_jobs/job/?database=default")
    assert there.pk not in client.get(address).content.decode()


def test_a_visitor_who_chooses_is_given_no_session(client: Client) -> None:
    answer = client.get("/admin/django_jobs/job/?database=tenant")
    assert answer.status_code == 302
    assert "database%3Dtenant" in answer["Location"], "the choice holds after the login"
    assert not answer.cookies


def test_the_overview_counts_each_database() -> None:
    django_jobs.submit(TYPE, using="tenant")
    testing.make_job(TYPE, status="dead")
    page = operator().get("/admin/django_jobs/overview/").content.decode()
    row = page[page.index('<a href="?database=tenant"><bdi>tenant</bdi></a></th>') :][:400]
    assert '<td class="jobs-number">1</td><td class="jobs-number">0</td>' in row


def confirmed(action: str, key: object, **more: str) -> dict[str, Any]:
    """Return the form of an act on one row that was confirmed."""
    return {"action": action, "index": "0", "_selected_action": [key], "confirmed": "1", **more}


@pytest.mark.slow
def test_a_form_acts_on_the_database_of_its_page_whatever_was_chosen_since() -> None:
    dead = testing.make_job(TYPE, status="dead", using="tenant")
    client = operator()
    address = "/admin/django_jobs/deadletter/"
    page = client.get(f"{address}?database=tenant").content.decode()
    assert '<input type="hidden" name="django_jobs_database" value="tenant">' in page
    client.get(f"{address}?database=default")
    pk = DeadLetter.objects.using("tenant").get().pk
    client.post(address, confirmed("replay_selected", pk, django_jobs_database="tenant"))
    dead.refresh_from_db()
    assert dead.status == "pending"


@pytest.mark.parametrize("of", ["jobs", "dead letters"])
@pytest.mark.slow
def test_an_operation_is_begun_and_carried_out_in_the_database_of_its_page_alone(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.setattr(operations, "CHUNK", 1)
    for alias in ("default", "tenant"):
        for _ in range(3):
            testing.make_job(TYPE, status="dead" if of == "dead letters" else "pending", using=alias)
    path, action = ("job", "discard_selected") if of == "jobs" else ("deadletter", "replay_selected")
    client = operator()
    client.get(f"/admin/django_jobs/{path}/?database=default")
    before = rows_in("default")
    form = {"action": action, "index": "0", "select_across": "1", "confirmed": "1", "django_jobs_database": "tenant"}
    answer = client.post(f"/admin/django_jobs/{path}/", form, follow=True)
    assert not Operation.objects.using("default").exists()
    begun = Operation.objects.using("tenant").get()
    assert (begun.total, begun.created_by_id) == (3, None), "its users are in the other database"
    assert answer.redirect_chain == [(f"/admin/django_jobs/operation/{begun.pk}/change/?database=tenant", 302)]
    assert answer.status_code == 200, "the page of the operation follows"
    for alias in ("default", "tenant"):
        with use_database(alias):
            while move_operations() is not None:
                pass
    assert rows_in("default") == before
    begun.refresh_from_db()
    assert (begun.state, begun.done, begun.skipped) == ("finished", 3, 0)
    left = Job.objects.using("tenant").values_list("status", flat=True)
    assert [*left] == ([] if of == "jobs" else ["pending"] * 3)


def rows_in(alias: str) -> list[Any]:
    """Return the rows of a database that an operation could touch."""
    tables = (Job.objects, DeadLetter.objects, Operation.objects)
    return [list(table.using(alias).order_by("pk").values()) for table in tables]


def test_a_cause_of_another_database_than_the_users_is_noted_again_and_again() -> None:
    for _ in range(2):
        testing.make_job(TYPE, status="dead", using="tenant")
    fingerprint = DeadLetter.objects.using("tenant").values_list("fingerprint", flat=True).first() or ""
    client = operator()
    address = f"/admin/django_jobs/deadletter/causes/{quote(fingerprint)}/note/"
    for note in ("the bank was closed", "it is open again"):
        answer = client.post(address, {"note": note, "django_jobs_database": "tenant"})
        assert answer.status_code == 302
        kept = Cause.objects.using("tenant").get()
        assert (kept.fingerprint, kept.note, kept.changed_by_id) == (fingerprint, note, None)
    assert not Cause.objects.using("default").exists()


@pytest.mark.slow
def test_the_page_that_follows_an_act_is_of_the_same_database_whatever_was_chosen_since() -> None:
    testing.make_job(TYPE, status="dead", using="tenant")
    letter = DeadLetter.objects.using("tenant").get()
    client = operator()
    client.get("/admin/django_jobs/deadletter/?database=default")
    form = confirmed("replay_selected", letter.pk, back="page", django_jobs_database="tenant")
    answer = client.post("/admin/django_jobs/deadletter/", form, follow=True)
    url = f"/admin/django_jobs/deadletter/{letter.pk}/change/?database=tenant"
    assert answer.redirect_chain == [(url, 302)]
    assert answer.status_code == 200
    assert letter.job_id in answer.text
    assert '<a href="?database=tenant" aria-current="page">' in answer.text


@pytest.mark.slow
def test_a_list_that_follows_an_act_keeps_its_filters() -> None:
    here, there = (testing.make_job(TYPE, queue="mail", using=alias) for alias in ("default", "tenant"))
    other = django_jobs.submit(TYPE, using="tenant")
    client = operator()
    client.get("/admin/django_jobs/job/?database=default")
    form = confirmed("change_selected", there.pk, priority="9", django_jobs_database="tenant")
    address = "/admin/django_jobs/job/?queue=mail&q=&database=default"
    answer = client.post(address, form, follow=True)
    (location, _), *_ = answer.redirect_chain
    assert parse_qs(urlsplit(location).query, keep_blank_values=True) == {
        "queue": ["mail"], "q": [""], "database": ["tenant"]
    }  # fmt: skip
    assert there.pk in answer.text
    assert here.pk not in answer.text
    assert other.pk not in answer.text


@pytest.mark.slow
def test_an_act_on_the_chosen_database_leads_to_a_plain_address() -> None:
    testing.make_job(TYPE, status="dead")
    letter = DeadLetter.objects.get()
    client = operator()
    form = confirmed("replay_selected", letter.pk, back="page", django_jobs_database="default")
    for chosen in ("", "?database=default"):
        client.get(f"/admin/django_jobs/deadletter/{chosen}")
        answer = client.post("/admin/django_jobs/deadletter/", form)
        assert answer["Location"] == f"/admin/django_jobs/deadletter/{letter.pk}/change/"


@pytest.mark.slow
def test_who_replayed_a_dead_letter_of_another_database_than_the_users_is_left_to_the_admins_log() -> None:
    from django.contrib.auth.models import User

    user = User.objects.create_user("ada")
    for alias, told in (("default", user.pk), ("tenant", None)):
        job = testing.make_job(TYPE, status="dead", using=alias)
        dead = DeadLetter.objects.using(alias).get(job_id=job.pk)
        with use_database(alias):
            replay_dead_letters([dead.pk], by=user).raise_if_left()
        dead.refresh_from_db()
        assert dead.replayed_by_id == told


# --- objects of the library outside of the context's database


def test_what_names_no_database_has_that_of_the_routers_wherever_it_is_used() -> None:
    heard: list[str] = []

    class Hearer:
        def on_job_submitted(self, job: Job) -> None:
            heard.append(job.pk)

    with JobQueueManager({"queues": {"mail": {}}}, Hearer()):
        django_jobs.submit(TYPE, queue="mail", using="tenant")
        with use_database("tenant"):
            ours = JobQueue("mail").enqueue(TYPE, {})
            Scheduler().schedule_interval("poll", TYPE, 60)
    assert Job.objects.using("default").get().pk == ours
    assert heard == [ours]
    assert Schedule.objects.using("default").filter(name="poll").exists()
    assert not Schedule.objects.using("tenant").filter(name="poll").exists()
