"""A stranger's night shift: who has never seen the site asks what is asked at night, and has each answer in three clicks.

A laptop asks all of them from the admin's index, in a real browser, and other presentations those with wide pages; each looks
whether the answer can be read: no text may be cut or overlap. The clicks and the seconds are printed (`pytest -rP`).
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Locator, expect

from django_jobs.admin import base
from tests.support.boxes import troubles_of
from tests.support.desk import Desk
from tests.support.night import ACTOR, BROKEN, SLOW, TENANT, Night, seed

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.databases("sqlite")]

ColorScheme = Literal["light", "dark"]
Question = Callable[["Shift"], None]

MOST_CLICKS = 3
IMAGES = Path(__file__).parents[2] / "docs" / "images"
MOST_TABS = 600  # stops of the keyboard on a page


class Shift:
    """Somebody who looks for an answer, and counts the clicks; or, by keyboard only, the times that Enter was pressed."""

    def __init__(self, desk: Desk, night: Night, *, by_keyboard: bool) -> None:
        self.desk = desk
        self.page = desk.page
        self.night = night
        self.by_keyboard = by_keyboard
        self.clicks = 0

    def begin(self) -> None:
        """Go to the admin's index."""
        self.clicks = 0
        self.page.goto(self.desk.root.removesuffix("django_jobs"))

    def menu(self, name: str) -> None:
        """Follow the index to one of our pages."""
        self.follow(self.page.locator(f'#content a[href="/admin/django_jobs/{name}/"]').first)

    def link(self, address: str) -> None:
        """Follow the first link of the page's content whose address contains this."""
        self.follow(self.page.locator(f'#content a[href*="{address}"]').first)

    def follow(self, link: Locator) -> None:
        """Click, or press Tab until the link has the focus and then Enter."""
        self.clicks += 1
        if self.by_keyboard:
            self._reach(link)
        with self.page.expect_navigation():  # to its end: the page before it has long been loaded
            if self.by_keyboard:
                self.page.keyboard.press("Enter")
            else:
                link.click()

    def search(self, text: str) -> None:
        """Type into the search field of a list, and press Enter, which counts as a click."""
        self.clicks += 1
        field = self.page.locator("#searchbar, input[name=q]").first
        if self.by_keyboard:
            self._reach(field)
        else:
            field.focus()
        self.page.keyboard.type(text)
        with self.page.expect_navigation(url=re.compile("q=")):
            self.page.keyboard.press("Enter")

    def sees(self, *texts: str) -> None:
        """See that the content of the page says all of this."""
        for text in texts:
            expect(self.page.locator("#content")).to_contain_text(text)

    def _reach(self, wanted: Locator) -> None:
        handle = wanted.element_handle()
        for _ in range(MOST_TABS):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("(wanted) => document.activeElement === wanted", handle):
                return
        raise AssertionError(f"the keyboard does not reach {wanted}")


def what_is_wrong_now(shift: Shift) -> None:
    shift.menu("overview")
    shift.sees("500", "mail", "mial", "Europe/Atlantis", "search.reindex")


def which_release_broke_it_and_since_when(shift: Shift) -> None:
    shift.menu("overview")
    shift.link(f"causes/{shift.night.cause}")
    shift.sees(BROKEN, "KeyError: 'iban'", "shop.py:40 in charge")


def which_jobs_are_of_a_tenant(shift: Shift) -> None:
    shift.menu("job")
    shift.search(f"metadata.tenant:{TENANT}")
    if shift.page.locator('#content a[href*="scope=everything"]').count():
        shift.link("scope=everything")  # the look at the newest ones ended before it had seen all, and says so
    expect(shift.page.locator("#result_list tbody tr")).to_have_count(len(shift.night.tenants))
    shift.sees(*shift.night.tenants)


def what_the_dead_worker_held_and_how_it_ended(shift: Shift) -> None:
    shift.menu("goneprocess")
    shift.link("dead01")
    for pk in shift.night.held:
        expect(shift.page.locator(f'#content a[href*="{pk}"]')).to_have_count(1)
    expect(shift.page.locator(".jobs-badge.jobs-dead")).to_be_visible()


def how_long_a_type_takes_and_whether_it_is_slower_today(shift: Shift) -> None:
    shift.menu("job")
    shift.link("_types/")
    shift.link(SLOW)
    shift.sees(SLOW)
    if shift.page.locator("html").get_attribute("lang") == "en":
        shift.sees("Today's runs take 3.0 times as long", "6.6 s at the median, 2.2 s before")


def what_a_user_did(shift: Shift) -> None:
    shift.menu("overview")
    shift.link("acts/")
    shift.link(f"user={ACTOR}")
    expect(shift.page.locator(".jobs-table tbody tr")).to_have_count(6)
    shift.sees("Replayed 15 dead letters.")


def which_jobs_wait_for_a_worker_that_is_not_there(shift: Shift) -> None:
    shift.menu("overview")
    shift.link("queue=mial")
    expect(shift.page.locator("#result_list tbody tr")).to_have_count(12)


def what_a_job_said_before_it_died(shift: Shift) -> None:
    shift.menu("deadletter")
    shift.link(f"job/{shift.night.logged.job_id}")
    shift.sees(f"asking the bank for order {shift.night.logged.job.payload['order']}")


def what_came_of_the_last_replay(shift: Shift) -> None:
    shift.menu("deadletter")
    shift.link("causes/")
    shift.link(f"{shift.night.cause}/")
    came = shift.page.locator(".jobs-sample").first
    expect(came).to_contain_text(ACTOR)
    expect(came).to_contain_text("15")
    if shift.page.locator("html").get_attribute("lang") == "en":
        expect(came).to_contain_text("15 replayed, 15 died again")


def whether_the_nightly_schedule_ran_and_when_it_runs_next(shift: Shift) -> None:
    shift.menu("schedule")
    shift.link(f"schedule/{shift.night.nightly.pk}/")
    shift.sees("0 3 * * *", "Europe/Berlin")
    assert shift.page.locator(".jobs-badge.jobs-completed").count() >= 9


def how_far_the_throttled_replay_is(shift: Shift) -> None:
    shift.menu("operation")
    shift.link(f"operation/{shift.night.operation.pk}/")
    expect(shift.page.locator("progress, .jobs-progress").first).to_be_visible()
    shift.sees("9")


def who_was_told_of_it(shift: Shift) -> None:
    shift.menu("alert")
    shift.sees("dead letters of job type shop.charge: 200 in the last day")


QUESTIONS: tuple[Question, ...] = (
    what_is_wrong_now,
    which_release_broke_it_and_since_when,
    which_jobs_are_of_a_tenant,
    what_the_dead_worker_held_and_how_it_ended,
    how_long_a_type_takes_and_whether_it_is_slower_today,
    what_a_user_did,
    which_jobs_wait_for_a_worker_that_is_not_there,
    what_a_job_said_before_it_died,
    what_came_of_the_last_replay,
    whether_the_nightly_schedule_ran_and_when_it_runs_next,
    how_far_the_throttled_replay_is,
    who_was_told_of_it,
)
# name: (width, colours, language, by keyboard, questions); 640 px is a window of 1280 at a zoom of 200 %
PRESENTATIONS: dict[str, tuple[int, ColorScheme, str, bool, tuple[Question, ...]]] = {
    "laptop": (1280, "light", "en", False, QUESTIONS),
    "phone, dark, German": (
        390, "dark", "de", False,
        (what_is_wrong_now, which_release_broke_it_and_since_when, how_long_a_type_takes_and_whether_it_is_slower_today),
    ),
    "Japanese": (
        1280, "dark", "ja", False,
        (what_is_wrong_now, what_the_dead_worker_held_and_how_it_ended, who_was_told_of_it),
    ),
    "German at 200 %": (
        640, "light", "de", False,
        (what_is_wrong_now, which_jobs_wait_for_a_worker_that_is_not_there, what_came_of_the_last_replay),
    ),
    "by keyboard": (
        1280, "light", "en", True,
        (which_jobs_are_of_a_tenant, what_the_dead_worker_held_and_how_it_ended, what_a_user_did),
    ),
}  # fmt: skip


@pytest.fixture
def night(transactional_db: Any) -> Night:
    User.objects.create_superuser("operator", password="secret")
    return seed()


def test_a_stranger_finds_every_answer_in_three_clicks(
    browser: Browser, live_server: Any, night: Night, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LONGEST_SEARCH", 600)  # the live server is in this process
    troubles: list[str] = []
    for name, (width, colours, language, by_keyboard, questions) in PRESENTATIONS.items():
        settings.LANGUAGE_CODE = language
        desk = Desk(browser, live_server.url, viewport={"width": width, "height": 800}, color_scheme=colours)
        shift = Shift(desk, night, by_keyboard=by_keyboard)
        for question in questions:
            shift.begin()
            began = time.monotonic()
            question(shift)
            print(f"{name}: {question.__name__}: {shift.clicks} clicks, {time.monotonic() - began:.1f} s")
            where = (name, question.__name__)
            assert shift.clicks <= MOST_CLICKS, where
            if shift.page.evaluate("document.documentElement.scrollWidth") > width + 1:
                troubles.append(f"{where}: scrolls sideways")
            troubles += [f"{where}: {trouble}" for trouble in troubles_of(shift.page)]
        assert desk.troubles == [], name
        desk.page.context.close()
    assert troubles == []


def test_the_pictures_of_the_docs_can_be_made_again(
    browser: Browser, live_server: Any, night: Night, settings: Any, tmp_path: Path
) -> None:
    """`JOBS_TEST_PICTURES=docs/images pytest -m browser -k pictures` makes them for a release; look at each."""
    folder = Path(os.environ.get("JOBS_TEST_PICTURES") or tmp_path)
    laptop = Desk(browser, live_server.url, viewport={"width": 1280, "height": 800})
    for name, address in {
        "overview": "overview/",
        "job": f"job/{night.logged.job_id}/change/",
        "job-type": f"job/_types/{SLOW}/",
        "cause": f"deadletter/causes/{night.cause}/",
        "schedule": f"schedule/{night.nightly.pk}/change/",
        "worker": f"goneprocess/{quote(night.dead_worker)}/change/",
    }.items():
        laptop.open(address).screenshot(path=folder / f"admin-{name}.png", full_page=True)
        assert laptop.page.url.endswith(address), "the page is another one"
    settings.LANGUAGE_CODE = "de"
    phone = Desk(browser, live_server.url, viewport={"width": 390, "height": 800}, color_scheme="dark")
    phone.open("overview/").screenshot(path=folder / "admin-phone-dark-german.png")
    made = {path.name for path in folder.glob("admin-*.png")}
    assert made == {path.name for path in IMAGES.glob("admin-*.png")}
