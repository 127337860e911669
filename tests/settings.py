"""Settings of the tests: those of the test project, with an app whose jobs leave effects that tests can count."""

import os

from testproject.settings import *  # noqa: F403
from testproject.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "tests.support.effects"]
if "JOBS_TEST_POINT" in os.environ:
    INSTALLED_APPS.append("tests.support.points")
if "JOBS_TEST_SQLITE_TIMEOUT" in os.environ:
    DATABASES["default"]["OPTIONS"]["timeout"] = float(os.environ["JOBS_TEST_SQLITE_TIMEOUT"])  # noqa: F405
THEME = os.environ.get("JOBS_TEST_THEME", "")  # an app that draws the admin, for tests/faces/test_admin_themes.py
if THEME:
    INSTALLED_APPS.insert(0, THEME)
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # users made by the hundred need no slow hash
CATALOGUE_SCHEDULES = False  # no test shall depend on the time of the day

# Any queue will do; the second one names its queues and has defaults for its tasks.
TASKS = {
    "default": {"BACKEND": "django_jobs.backends.JobsBackend", "QUEUES": []},
    "strict": {
        "BACKEND": "django_jobs.backends.JobsBackend",
        "QUEUES": ["default", "reports"],
        "OPTIONS": {"max_retries": 1, "timeout_seconds": 30, "base_delay": 0.01},
    },
}
MIDDLEWARE = [*MIDDLEWARE, "tests.support.csp.StrictPolicy"]  # the admin has to live with it
