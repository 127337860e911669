"""The night shift in a real browser, with real workers: see what is wrong, mend it, and never break the page's policy."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.core import mail
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

import django_jobs
from django_jobs.db.transactions import database_now
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
    Operation,
    OperationKind,
    Queue,
    WorkerProcess,
)
from django_jobs.models.fields import DbNow
from django_jobs.scheduling.store import create_schedule
from tests.support.boxes import troubles_of
from tests.support.desk import Desk
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.hooks import hook
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
        page.get_by_label("Per second").fill("0.01")  # one now, the next one in 100 s: far from done when it is paused
        page.get_by_role("button", name="Replay all…").click()
        page.get_by_role("button", name="Replay dead letters").click()
        expect(page.get_by_role("heading", name="replay dead letters")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".jobs-badge.jobs-paused")).to_be_visible()
        Operation.objects.update(per_second=None)
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
        "job/?q=nothing", "deadletter/?state=all", "deadletter/causes/?age=all", "alert/", "limit/", "batch/",
        f"batch/{quote(batch.pk)}/change/", "goneprocess/",
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
        desk.open(path)
        assert_it_can_be_read(desk.page, path)


def test_every_confirmation_can_be_read_at_every_width(desk: Desk, long_rows: list[str], settings: Any) -> None:
    settings.LANGUAGE_CODE = "de"
    asked = set()
    for path in ("job/", "deadletter/", "workerprocess/", "batch/"):
        page = desk.open(path)
        actions = page.locator("select[name=action] option").evaluate_all("all => all.map((one) => one.value)")
        for action in filter(None, actions):
            desk.open(path)
            page.set_viewport_size({"width": 1280, "height": 800})
            page.locator("#action-toggle").check()
            page.locator("select[name=action]").first.select_option(action)
            with page.expect_navigation():  # to its end: a click waits for the beginning of the next page only
                page.locator("button[name=index]").first.click()
            if page.locator("input[name=confirmed]").count():
                asked.add(action)
                assert_it_can_be_read(page, f"{path}: {action}")
    assert asked >= {
        "cancel_selected", "change_selected", "delete_selected", "discard_selected", "replay_selected",
        "acknowledge_selected", "stop_selected",
    }  # fmt: skip


def assert_it_can_be_read(page: Page, name: str) -> None:
    """See that no text of a page is cut, and that it does not scroll sideways, on screens of any width."""
    assert page.evaluate("window.violations") == [], name
    # 640 px is a window of 1280 at a zoom of 200 %.
    for width in (1920, 1280, 640, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, (name, width)
        assert troubles_of(page) == [], (name, width)


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


def test_a_charts_bars_tell_their_numbers_to_the_mouse_and_to_the_keyboard(desk: Desk) -> None:
    now = database_now()
    for minutes in (1, 5, 5, 30):
        at = now - timedelta(minutes=minutes)
        JobFactory(status="completed", started_at=at, finished_at=at)
    page = desk.open("overview/")
    chart = page.locator(".jobs-chart").first
    bars = chart.locator(".jobs-column")
    expect(bars).to_have_count(3)
    expect(page.locator(".jobs-tip:visible")).to_have_count(0)
    bars.nth(1).locator("rect").last.hover()
    tip = chart.locator(".jobs-tip:visible")
    expect(tip).to_contain_text("2 completed, 0 failed")
    page.mouse.move(0, 0)
    expect(tip).to_have_count(0)
    for _ in range(90):  # one stop of a chart: its last bar
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.jobs-column')"):
            break
    expect(bars.nth(2)).to_be_focused()
    expect(tip).to_contain_text("1 completed")
    page.keyboard.press("ArrowLeft")
    expect(bars.nth(1)).to_be_focused()
    expect(tip).to_contain_text("2 completed")
    box, around = tip.bounding_box(), chart.bounding_box()
    assert box
    assert around
    assert box["x"] >= around["x"]
    assert box["x"] + box["width"] <= around["x"] + around["width"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    expect(bars.nth(0)).to_be_focused()
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('.jobs-chart') === document.querySelector('.jobs-chart')")
    page.keyboard.press("Shift+Tab")
    expect(bars.nth(0)).to_be_focused()
    refreshed = page.locator(".jobs-refresh span")
    expect(refreshed).not_to_be_empty()  # the page has refreshed itself, and the bar has the focus still
    expect(bars.nth(0)).to_be_focused()
    expect(page.locator(".jobs-figure figcaption").first).to_contain_text("times in")


def test_a_test_alert_is_sent_and_arrives(desk: Desk, settings: Any) -> None:
    with hook() as server:
        settings.DJANGO_JOBS = {"ALERTS": {"email": ["ops@example.com"], "webhook": server.url}}
        page = desk.open("alert/")
        expect(page.locator("#content")).to_contain_text("ops@example.com")
        page.get_by_role("button", name="Send a test alert").click()
        expect(page.get_by_text("Sent a test alert by email.")).to_be_visible()
        expect(page.get_by_text("Sent a test alert by webhook.")).to_be_visible()
        assert server.keys == ["test"]
        server.status = 500
        page.get_by_role("button", name="Send a test alert").click()
        expect(page.get_by_text("Not sent by webhook: HTTPError")).to_be_visible()
        assert (server.keys, len(mail.outbox)) == (["test", "test"], 2)
        assert page.evaluate("window.violations") == []
    desk.open("overview/acts/")
    expect(page.get_by_text("Sent a test alert.").first).to_be_visible()


def test_the_log_of_a_job_that_a_worker_runs_is_seen_as_it_is_written(desk: Desk, tmp_path: Path) -> None:
    with spawn_workers("--threads", "2", settings=WORKERS | {"LOG_LEVEL": "INFO"}) as workers:
        workers.wait_ready()
        told = tmp_path / "told"
        told.write_text("the first line <b>\n")
        job = django_jobs.submit("effects.log_lines_of", {"path": str(told)})
        wait_until(lambda: JobLog.objects.filter(job=job).exists(), 60, "the log's first line")
        page = desk.open(f"job/{job.pk}/change/")
        log = page.locator("[data-follow]")
        expect(log).to_contain_text("the first line <b>")
        with told.open("a") as lines:
            lines.write("and the next one\n")
        expect(log).to_contain_text("and the next one")
        with told.open("a") as lines:
            lines.write("end\n")
        expect(page.locator(".jobs-badge.jobs-completed")).to_be_visible()
        expect(log).to_have_count(0)
        expect(page.locator("pre").filter(has_text="and the next one")).to_contain_text("end")
        assert page.evaluate("window.violations") == []


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
