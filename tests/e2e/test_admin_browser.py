"""The night shift in a real browser, with real workers: see what is wrong, mend it, and never break the page's policy."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Browser, expect

import django_jobs
from django_jobs.lifecycle.causes import note_cause
from django_jobs.lifecycle.operations import begin
from django_jobs.models import (
    Alert,
    DeadLetter,
    GoneProcess,
    Job,
    JobDependency,
    JobLog,
    Limit,
    LimitSlot,
    OperationKind,
    Queue,
    WorkerProcess,
)
from django_jobs.models.fields import DbNow
from django_jobs.scheduling.store import create_schedule
from tests.support.boxes import troubles_of
from tests.support.desk import Desk
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

# On one database: what a browser makes of a page does not depend on it.
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.databases("sqlite")]

WORKERS = {"LEASE_SECONDS": 4, "MAX_RETRIES": 0}


@pytest.fixture
def desk(browser: Browser, live_server: Any) -> Iterator[Desk]:
    """Give an operator's desk; in the end nothing may have broken the policy or thrown an error."""
    User.objects.create_superuser("operator", password="secret")
    desk = Desk(browser, live_server.url)
    yield desk
    assert desk.troubles == []
    desk.page.context.close()


def test_the_night_shift(desk: Desk) -> None:
    with spawn_workers("--threads", "2", settings=WORKERS) as workers:
        workers.wait_ready()
        jobs = [django_jobs.submit("effects.flaky", {"failures": 1}, max_retries=0) for _ in range(6)]
        wait_until(lambda: DeadLetter.objects.open().count() == 6, 60, "six dead letters")

        page = desk.open("overview/")
        page.get_by_role("link", name="6 open dead letters").click()
        expect(page.get_by_role("heading", name="effects.flaky")).to_be_visible()
        page.get_by_role("button", name="Replay all…").click()
        expect(page.get_by_text("all 6")).to_be_visible()
        page.get_by_role("button", name="Replay dead letters").click()
        expect(page.get_by_text("Replayed 6 dead letters.")).to_be_visible()
        done = Job.objects.filter(pk__in=[job.pk for job in jobs], status="completed")
        wait_until(lambda: done.count() == 6, 60, "six completed jobs")

        again = [django_jobs.submit("effects.flaky", {"failures": 1}, max_retries=0) for _ in range(8)]
        wait_until(lambda: DeadLetter.objects.open().count() == 8, 60, "eight dead letters")
        page = desk.open("deadletter/causes/")
        page.get_by_label("Per second").fill("2")
        page.get_by_role("button", name="Replay all…").click()
        page.get_by_role("button", name="Replay dead letters").click()
        expect(page.get_by_role("heading", name="replay dead letters")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".jobs-badge.jobs-paused")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".jobs-badge.jobs-completed")).to_be_visible()  # the page refreshed itself
        done = Job.objects.filter(pk__in=[job.pk for job in again], status="completed")
        wait_until(lambda: done.count() == 8, 60, "eight completed jobs")

        failed = django_jobs.submit("effects.fail", {"message": "the bank is closed"}, max_retries=0)
        wait_until(lambda: DeadLetter.objects.open().filter(job=failed).exists(), 60, "a dead letter")
        page = desk.open("deadletter/")
        page.get_by_role("link", name=f"#{DeadLetter.objects.open().get().pk}").click()
        expect(page.locator("pre.jobs-error")).to_contain_text("ValueError: the bank is closed")
        page.get_by_label("Note").fill("it opens at nine")
        page.get_by_role("button", name="Acknowledge").click()
        expect(page.get_by_text("it opens at nine")).to_be_visible()
        assert DeadLetter.objects.get(job=failed).note == "it opens at nine"

        running = django_jobs.submit("effects.sleep_politely", {"seconds": 120})
        wait_until(lambda: Job.objects.filter(pk=running.pk, status="running").exists(), 60, "a running job")
        page = desk.open(f"job/?q={running.pk}")
        page.locator("#result_list").get_by_role("link", name="effects.sleep_politely").first.click()
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_role("button", name="Cancel jobs").click()
        wait_until(lambda: Job.objects.filter(pk=running.pk, status="cancelled").exists(), 60, "a cancelled job")
        expect(page.locator(".jobs-badge.jobs-cancelled")).to_be_visible()  # the page refreshed itself

        page = desk.open("queue/")
        page.get_by_role("button", name="Pause queue default").click()
        expect(page.get_by_text("Paused queue default")).to_be_visible()
        held = django_jobs.submit("effects.record", {})
        other = django_jobs.submit("effects.record", {}, queue="other")
        wait_until(lambda: Job.objects.filter(pk=other.pk, status="completed").exists(), 60, "the other queue's job")
        assert Job.objects.get(pk=held.pk).status == "pending"
        page.get_by_role("button", name="Resume queue default").click()
        wait_until(lambda: Job.objects.filter(pk=held.pk, status="completed").exists(), 60, "the held job")
        assert not Queue.objects.filter(paused_at__isnull=False).exists()

        row = create_schedule("nightly", "effects.record", every=3600, payload={"result": 1})
        page = desk.open(f"schedule/{row.pk}/change/")
        page.get_by_role("button", name="Run now").click()
        expect(page.get_by_text("Submitted the job of 1 schedule.")).to_be_visible()
        made = Job.objects.filter(metadata__schedule="nightly", status="completed")
        wait_until(made.exists, 60, "the schedule's job")

        desk.open("workerprocess/").get_by_role("checkbox", name="Select all").or_(
            page.locator("#action-toggle")
        ).check()
        page.get_by_role("combobox").first.select_option("stop_selected")
        page.get_by_role("button", name="Go").or_(page.get_by_role("button", name="Run")).click()
        page.get_by_role("button", name="Ask worker processes to stop").click()
        expect(page.get_by_text("Asked 1 worker process to stop.")).to_be_visible()


@pytest.fixture
def long_rows(transactional_db: Any, settings: Any) -> list[str]:
    """Write rows with long names and long texts; return the addresses of the pages that show them."""
    job = JobFactory(
        status="running", progress=0.3, progress_message="charged 40 of 100 customers of the northern region",
        job_type="shop.a_rather_long_module_name.and_a_function_name", worker_id=f"{'web.example.' * 5}com:1:a",
    )  # fmt: skip
    JobFactory.create_batch(20, queue="a_queue_of_sixty_four_characters_that_somebody_made_up_for_all_", retry_count=2)
    JobFactory.create_batch(20, status="dead", error="TimeoutError: https://api.example.com/" + "x" * 300)
    row = create_schedule("nightly." + "x" * 60, "effects.record", cron="0 3 * * 1-5", timezone="Europe/Berlin")
    WorkerProcessFactory(id=f"{'web.example.' * 5}com:4711:cafecafe", queues=["mail", "reports", "default"])
    root = JobFactory(status="dead")
    kids = JobFactory.create_batch(30, status="failed")
    JobDependency.objects.bulk_create(JobDependency(job=kid, depends_on=root) for kid in kids)
    dead_letters = [
        DeadLetter(
            job=job, job_type=job.job_type, reason="retries exhausted", died_at=job.created_at, fingerprint=f"f{index}",
            traceback="x " * 999, error=job.error or "ValueError: " + "x" * 300,
        )
        for index, job in enumerate(Job.objects.filter(status="dead"))
    ]  # fmt: skip
    DeadLetter.objects.bulk_create(dead_letters)
    note_cause("f1", note="the bank is closed " * 9, muted_until=timezone.now() + timedelta(days=2))
    queue = "a_queue_of_sixty_four_characters_that_somebody_made_up_for_all_"
    operation = begin(
        OperationKind.REPLAY_DEAD_LETTERS,
        filters={},
        per_second=0.5,
        options={"note": "x" * 200},
        address=f"queue={queue}&q={queue}",
    )
    GoneProcess.objects.create(
        id="gone" + "x" * 90, host="gone", pid=1, release="2026.11.29-" + "x" * 40, queues=[queue, "mail"], ending="host silent",
        held=3, started_at=job.created_at, heartbeat_at=job.created_at, ended_at=job.created_at,
    )  # fmt: skip
    AttemptFactory(job=job, worker_id="gone" + "x" * 90, release="2026.11.29-" + "x" * 40, error="y" * 300)
    JobLog.objects.create(job=job, number=1, text="a line of the log " * 30 + "x" * 300)
    Alert.objects.create(key="cause:f1", text="dead letters of job type " + "shop.charge" * 15, told_at=job.created_at)
    Limit.objects.create(name="name:" + "x" * 60, key="account", concurrency=12, rate="1000/m", set_at=job.created_at)
    LimitSlot.objects.create(
        job=job,
        scope=f"name:{'x' * 60} {'v' * 60}",
        waits=True,
        starts=False,
        queue=queue,
        rank=0,
        available_at=job.created_at,
    )
    with django_jobs.batch("import of " + "x" * 80) as batch:
        batch.submit("effects.record")
    addresses = [
        "", "overview/", "job/", f"job/{job.pk}/change/", f"job/{kids[0].pk}/change/", "deadletter/", "deadletter/causes/",
        f"deadletter/{DeadLetter.objects.first().pk}/change/", "queue/", "workerprocess/", "schedule/",
        f"schedule/{row.pk}/change/", "deadletter/causes/f1/", "operation/", f"operation/{operation.pk}/change/",
        "job/?sort=run&status=dead", "job/_types/", "job/_types/effects.greet/", "job/_types/effects.greet/new/",
        "overview/acts/", "schedule/add/", f"workerprocess/{quote(WorkerProcess.objects.get().pk)}/change/",
        "alert/", "limit/", "batch/", f"batch/{quote(batch.pk)}/change/", "goneprocess/",
        f"goneprocess/{quote(GoneProcess.objects.get().pk)}/change/",
    ]  # fmt: skip
    settings.DJANGO_JOBS = {
        "DATABASES": ["default"],
        "ALERTS": {"email": [f"{'night.shift.' * 5}@example.com"], "webhook": "https://hooks.example.com/secret"},
    }
    return addresses


@pytest.mark.parametrize("language", ["en", "de", "ja"])
def test_every_page_can_be_read_at_every_width(desk: Desk, long_rows: list[str], settings: Any, language: str) -> None:
    settings.LANGUAGE_CODE = language
    for path in long_rows:
        page = desk.open(path)
        assert page.evaluate("window.violations") == [], path
        # 640 px is a window of 1280 at a zoom of 200 %.
        for width in (1920, 1280, 640, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, (path, width)
            assert troubles_of(page) == [], (path, width)


def test_text_that_is_cut_outside_or_overlaps_is_found(desk: Desk) -> None:
    page = desk.open("overview/")
    assert troubles_of(page) == []
    page.evaluate("""() => {
        const add = (text, style) => {
            const one = document.createElement('div');
            one.textContent = text;
            Object.assign(one.style, style);
            document.querySelector('#content-main').append(one);
        };
        add('planted and cut', {width: '40px', overflow: 'hidden', whiteSpace: 'nowrap'});
        add('planted outside', {position: 'absolute', left: '5000px', top: '0'});
        add('planted below', {position: 'absolute', left: '20px', top: '400px'});
        add('planted above', {position: 'absolute', left: '24px', top: '402px'});
    }""")
    found = troubles_of(page)
    for planted in ("cut: planted and cut", "outside: planted outside", "overlap: planted below / planted above"):
        assert planted in found


def test_a_page_of_a_row_leads_to_its_list_and_its_history(desk: Desk) -> None:
    dead_letter = DeadLetterFactory()
    row = create_schedule("nightly", "effects.record", every=3600)
    for path in (f"job/{dead_letter.job_id}", f"deadletter/{dead_letter.pk}", f"schedule/{row.pk}"):
        for name in ("History", "List"):
            page = desk.open(f"{path}/change/")
            page.locator(".jobs-bar").get_by_role("link", name=name).click()
            expect(page).to_have_url(re.compile("/history/$" if name == "History" else r"/(job|deadletter|schedule)/$"))
    page = desk.open("deadletter/causes/")
    page.locator(".jobs-bar").get_by_role("link", name="List").click()
    expect(page).to_have_url(re.compile("/deadletter/$"))


def test_a_large_graph_is_fitted_enlarged_and_leads_to_the_root_cause(desk: Desk) -> None:
    root = JobFactory(id="root", status="dead")
    kids = JobFactory.create_batch(60, status="failed")
    last = JobFactory(id="last", status="failed")
    edges = [JobDependency(job=kid, depends_on=root) for kid in kids]
    JobDependency.objects.bulk_create([*edges, *(JobDependency(job=last, depends_on=kid) for kid in kids)])
    page = desk.open("job/last/change/")

    def heights() -> tuple[float, float]:
        picture, graph = page.locator(".jobs-picture").bounding_box(), page.locator(".jobs-graph").bounding_box()
        assert picture
        assert graph
        return picture["height"], graph["height"]

    window, natural = heights()
    assert natural > window
    page.get_by_role("button", name="Fit").click()
    window, fitted = heights()
    assert fitted <= window
    page.get_by_role("button", name="Larger").click()
    assert heights()[1] == pytest.approx(fitted * 1.4, rel=0.01)
    page.get_by_role("button", name="100 %").click()
    assert heights()[1] == natural
    page.locator(".jobs-root").get_by_role("link").click()
    expect(page).to_have_url(re.compile("/job/root/change/$"))


def test_the_overview_refreshes_itself_until_it_is_stopped(desk: Desk) -> None:
    page = desk.open("overview/")
    expect(page.locator(".jobs-problems")).to_have_count(0)
    JobFactory()
    expect(page.locator(".jobs-problems")).to_contain_text("no worker process is alive")
    page.get_by_role("button", name="Stop refreshing").click()
    assert page.get_by_role("button", name="Refresh again").get_attribute("aria-pressed") == "true"


def test_all_that_match_are_replayed_without_javascript(browser: Browser, live_server: Any) -> None:
    User.objects.create_superuser("operator", password="secret")
    JobFactory.create_batch(60, status="dead")
    desk = Desk(browser, live_server.url, java_script_enabled=False)
    page = desk.open("job/?status=dead")
    page.get_by_label("All 60 that match").check()
    page.get_by_role("combobox").first.select_option("replay_selected")
    page.get_by_role("button", name="Go").or_(page.get_by_role("button", name="Run")).click()
    expect(page.locator(".jobs-count")).to_contain_text("all 60")
    page.get_by_role("button", name="Replay jobs").click()
    expect(page.get_by_text("Replayed 60 jobs.")).to_be_visible()
    assert Job.objects.filter(status="pending").count() == 60
    page.context.close()


def test_the_console_is_worked_by_keyboard(desk: Desk) -> None:
    JobFactory(queue="mail")
    page = desk.open("queue/")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pause queue mail":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_text("Paused queue mail")).to_be_visible()


def test_the_log_of_a_running_job_grows_and_its_end_stays_in_sight_until_one_scrolls_up(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_jobs.admin.jobs.REFRESH_SECONDS", 1)
    job = JobFactory(status="running", started_at=DbNow())
    log = JobLog.objects.create(job=job, number=1, text="".join(f"line {number}\n" for number in range(200)))
    page = desk.open(f"job/{job.pk}/change/")
    place = "() => { const log = document.querySelector('[data-follow]');"
    from_end = f"{place} return log.scrollHeight - log.clientHeight - log.scrollTop; }}"
    assert page.evaluate(from_end) < 4

    JobLog.objects.filter(pk=log.pk).update(text=f"{log.text}the next line <b>\n")
    expect(page.locator("[data-follow]")).to_contain_text("the next line <b>")
    assert page.evaluate(from_end) < 4

    page.evaluate(f"{place} log.scrollTop = 100; }}")
    JobLog.objects.filter(pk=log.pk).update(text=f"{log.text}one more\n")
    expect(page.locator("[data-follow]")).to_contain_text("one more")
    assert page.evaluate(f"{place} return log.scrollTop; }}") == 100
    assert page.evaluate("window.violations") == []
