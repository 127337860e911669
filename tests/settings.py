"""Settings of the tests: those of the test project, with an app whose jobs leave effects that tests can count."""

import os
from importlib.util import find_spec

from django import VERSION

from testproject.settings import *  # noqa: F403
from testproject.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "tests.support.effects"]
if not {"JOBS_TEST_POINT", "JOBS_TEST_BREAK"}.isdisjoint(os.environ):
    INSTALLED_APPS.append("tests.support.points")
if "JOBS_TEST_SQLITE_TIMEOUT" in os.environ:
    DATABASES["default"]["OPTIONS"]["timeout"] = float(os.environ["JOBS_TEST_SQLITE_TIMEOUT"])  # noqa: F405
THEME = os.environ.get("JOBS_TEST_THEME", "")  # an app that draws the admin, for tests/admin/test_themes.py
if THEME:
    INSTALLED_APPS.insert(0, THEME)
# The apps of other queues, for tests/e2e/test_adopting.py.
PEERS = [app for app in os.environ.get("JOBS_TEST_PEERS", "").split(",") if app]
INSTALLED_APPS += PEERS
if "django_tasks_db" in PEERS and find_spec("django.tasks") is None:
    INSTALLED_APPS.append("django_tasks")  # the backport
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # users made by the hundred need no slow hash
if VERSION >= (6, 1):  # where the older settings are deprecated
    MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
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
if "django_ox" in PEERS:
    TASKS["ox"] = {"BACKEND": "django_ox.backend.OxBackend", "QUEUES": []}
Q_CLUSTER = {"name": "site", "orm": "default", "timeout": 60, "retry": 120}
if "django_tasks_db" in PEERS:
    TASKS["theirs"] = {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": []}
MIDDLEWARE = [*MIDDLEWARE, "tests.support.csp.StrictPolicy"]  # the admin has to live with it
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"ours": {"()": "tests.support.logs.WithoutHandlersErrors"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
    "loggers": {"django_jobs": {"handlers": ["stderr"], "level": "WARNING"}},
}
