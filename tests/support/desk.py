"""An operator at the admin in a real browser: Chromium by Playwright, on the PATH or named in CHROMIUM."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connections
from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (one) => window.violations.push(one.violatedDirective));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give a headless Chromium. Start it after the database was made: Playwright keeps an event loop in this thread."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no Chromium on the PATH: install one, or name it in CHROMIUM"
    with sync_playwright() as playwright:
        # While a loop runs, Django keeps another connection object for this thread; an earlier database may have left one.
        with suppress(AttributeError):
            del connections["default"]
        expect.set_options(timeout=60_000)
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
        context.set_default_timeout(60_000)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.goto(f"{url}/admin/")
        self.page.fill("#id_username", "operator")
        self.page.fill("#id_password", "secret")
        with self.page.expect_navigation():
            self.page.click("input[type=submit]")

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and "favicon" not in text and "404" not in text:
            self.troubles.append(text)

    def open(self, path: str) -> Page:
        """Go to a page of the console."""
        self.page.goto(f"{self.root}/{path}")
        return self.page
