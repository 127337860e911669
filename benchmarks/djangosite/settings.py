"""Settings of the benchmark's site: one database, one queue, chosen by BENCH_STORE and BENCH_PEER."""

import os

from benchmarks import stores
from benchmarks.djangosite import counted
from testproject.database import database_from_url

APPS = {
    "django_jobs": ["django.contrib.auth", "django.contrib.contenttypes", "django_jobs", "benchmarks.djangosite"],
    "bare": ["benchmarks.djangosite"],
    "django_ox": ["django_ox"],
    "django_tasks_db": ["django_tasks_db"],
}
BACKENDS = {"django_ox": "django_ox.backend.OxBackend", "django_tasks_db": "django_tasks_db.DatabaseBackend"}

PEER = os.environ.get("BENCH_PEER", "bare")
INSTALLED_APPS = APPS[PEER]
DATABASES = {"default": database_from_url(stores.current().url) | {"CONN_MAX_AGE": None}}
TASKS = {"default": {"BACKEND": BACKENDS[PEER]}} if PEER in BACKENDS else {}
SECRET_KEY = "only for benchmarks"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
DEBUG = False
LOGGING = {  # errors only, for every queue: a line for each job would be measured too
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "ERROR", "handlers": ["console"]},
    "loggers": {name: {"level": "ERROR"} for name in ("django_ox", "django_tasks_db", "django.tasks")},
}
DJANGO_JOBS: dict[str, object] = {}
if others := os.environ.get("BENCH_OTHER_SERVERS"):  # URLs by commas: the queues are spread over several servers
    for number, url in enumerate(others.split(","), start=2):
        DATABASES[f"server{number}"] = database_from_url(url) | {"CONN_MAX_AGE": None}
    DJANGO_JOBS["DATABASES"] = list(DATABASES)
if "BENCH_CONCURRENCY" in os.environ:
    DJANGO_JOBS["ASYNC_CONCURRENCY"] = int(os.environ["BENCH_CONCURRENCY"])
if "BENCH_LOG_LEVEL" in os.environ:
    DJANGO_JOBS["LOG_LEVEL"] = os.environ["BENCH_LOG_LEVEL"]
if "BENCH_NOTIFY" in os.environ:
    DJANGO_JOBS["NOTIFY"] = os.environ["BENCH_NOTIFY"] == "1"
if "BENCH_RETENTION_SECONDS" in os.environ:
    DJANGO_JOBS["RETENTION"] = {"completed": int(os.environ["BENCH_RETENTION_SECONDS"]) / 86_400}

counted.start()
