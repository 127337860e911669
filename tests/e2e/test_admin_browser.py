"""The night shift in a real browser, with real workers: see what is wrong, mend it, and never break the page's policy."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from playwright.sync_api import Browser, Page, expect, sync_playwright

import django_jobs
from django_jobs.models import DeadLetter, Job, Queue
from django_jobs.scheduling.store import create_schedule
from tests.support.factories import JobFactory
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (one) => window.violations.push(one.violatedDirective));
"""
WORKERS = {"LEASE_SECONDS": 4, "MAX_RETRIES": 0}


@pytest.fixture
def browser(live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """Give a headless Chromium, started after the database was made: Playwright keeps an event loop in this thread."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        # While a loop runs, Django keeps another connection object for this thread; an earlier database may have left one.
        with suppress(AttributeError):
            del connections["default"]
        expect.set_options(timeout=15_000)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
        connections.close_all()


class Desk:
    """An operator at the admin, logged in."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.root = f"{url}/admin/django_jobs"
        self.troubles: list[str] = []
        context = browser.new_context(**options)
        context.add_init_script(NOTE_VIOLATIONS)
        context.set_default_timeout(15_000)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.goto(f"{url}/admin/")
        self.page.fill("#id_username", "operator")
        self.page.fill("#id_password", "secret")
        self.page.click("input[type=submit]")

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and "favicon" not in text and "404" not in text:
            self.troubles.append(text)

    def open(self, path: str) -> Page:
        """Go to a page of the console."""
        self.page.goto(f"{self.root}/{path}")
        return self.page


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
        wait_until(lambda: DeadLetter.objects.open().count() == 6, 30, "six dead letters")

        page = desk.open("overview/")
        page.get_by_role("link", name="6 open dead letters").click()
        expect(page.get_by_role("heading", name="effects.flaky")).to_be_visible()
        page.get_by_role("button", name="Replay all…").click()
        expect(page.get_by_text("all 6")).to_be_visible()
        page.get_by_role("button", name="Replay dead letters").click()
        expect(page.get_by_text("Replayed 6 dead letters.")).to_be_visible()
        done = Job.objects.filter(pk__in=[job.pk for job in jobs], status="completed")
        wait_until(lambda: done.count() == 6, 30, "six completed jobs")

        failed = django_jobs.submit("effects.fail", {"message": "the bank is closed"}, max_retries=0)
        wait_until(lambda: DeadLetter.objects.open().filter(job=failed).exists(), 30, "a dead letter")
        page = desk.open("deadletter/")
        page.get_by_role("link", name=f"#{DeadLetter.objects.open().get().pk}").click()
        expect(page.locator("pre.jobs-error")).to_contain_text("ValueError: the bank is closed")
        page.get_by_label("Note").fill("it opens at nine")
        page.get_by_role("button", name="Acknowledge").click()
        expect(page.get_by_text("it opens at nine")).to_be_visible()
        assert DeadLetter.objects.get(job=failed).note == "it opens at nine"

        running = django_jobs.submit("effects.sleep_politely", {"seconds": 120})
        wait_until(lambda: Job.objects.filter(pk=running.pk, status="running").exists(), 30, "a running job")
        page = desk.open(f"job/?q={running.pk}")
        page.locator("#result_list").get_by_role("link", name="effects.sleep_politely").first.click()
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_role("button", name="Cancel jobs").click()
        wait_until(lambda: Job.objects.filter(pk=running.pk, status="cancelled").exists(), 30, "a cancelled job")
        expect(page.locator(".jobs-badge.jobs-cancelled")).to_be_visible()  # the page refreshed itself

        page = desk.open("queue/")
        page.get_by_role("button", name="Pause queue default").click()
        expect(page.get_by_text("Paused queue default")).to_be_visible()
        held = django_jobs.submit("effects.record", {})
        other = django_jobs.submit("effects.record", {}, queue="other")
        wait_until(lambda: Job.objects.filter(pk=other.pk, status="completed").exists(), 30, "the other queue's job")
        assert Job.objects.get(pk=held.pk).status == "pending"
        page.get_by_role("button", name="Resume queue default").click()
        wait_until(lambda: Job.objects.filter(pk=held.pk, status="completed").exists(), 30, "the held job")
        assert not Queue.objects.filter(paused_at__isnull=False).exists()

        row = create_schedule("nightly", "effects.record", every=3600, payload={"result": 1})
        page = desk.open(f"schedule/{row.pk}/change/")
        page.get_by_role("button", name="Run now").click()
        expect(page.get_by_text("Submitted the job of 1 schedule.")).to_be_visible()
        made = Job.objects.filter(metadata__schedule="nightly", status="completed")
        wait_until(made.exists, 30, "the schedule's job")

        desk.open("workerprocess/").get_by_role("checkbox", name="Select all").or_(
            page.locator("#action-toggle")
        ).check()
        page.get_by_role("combobox").first.select_option("stop_selected")
        page.get_by_role("button", name="Go").or_(page.get_by_role("button", name="Run")).click()
        page.get_by_role("button", name="Ask worker processes to stop").click()
        expect(page.get_by_text("Asked 1 worker process to stop.")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_breaks_the_policy_or_the_width_of_the_screen(desk: Desk, width: int) -> None:
    job = JobFactory(status="running", progress=0.3, job_type="shop.a_rather_long_module_name.and_a_function_name")
    JobFactory.create_batch(60)
    row = create_schedule("nightly", "effects.record", cron="0 3 * * 1-5")
    dead_letter = DeadLetter.objects.create(
        job=JobFactory(status="dead"), reason="retries exhausted", error="x" * 300, died_at=job.created_at
    )
    desk.page.set_viewport_size({"width": width, "height": 800})
    for path in (
        "", "overview/", "job/", f"job/{job.pk}/change/", "deadletter/", "deadletter/causes/",
        f"deadletter/{dead_letter.pk}/change/", "queue/", "workerprocess/", "schedule/", f"schedule/{row.pk}/change/",
    ):  # fmt: skip
        page = desk.open(path)
        assert page.evaluate("window.violations") == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, path


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
