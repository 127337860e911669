"""System checks: each sees what it is for, says how to mend it, and is silent about a good site."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.test import override_settings

from django_jobs import Limit, checks
from django_jobs.conf import this_site
from django_jobs.db.server import OLDEST, journal_mode, max_connections, product_and_version
from django_jobs.handlers import make_handler, registry
from django_jobs.models import Job, Schedule
from django_jobs.queue import Scheduler
from django_jobs.testing import make_job
from testproject.database import SQLITE_OPTIONS

pytestmark = pytest.mark.django_db


def ours(databases: list[str] | None = None) -> list[str]:
    """Return the ids of what `manage.py check` says of django_jobs, each of which has a hint."""
    found = [one for one in run_checks(databases=databases) if str(one.id).startswith("django_jobs.")]
    assert all(one.hint for one in found)
    return [str(one.id) for one in found]


@contextmanager
def looks_like(vendor: str, **given: Any) -> Iterator[None]:
    """Let the checks that only read settings take the database for another one."""
    fake = mock.Mock(vendor=vendor, settings_dict={"OPTIONS": given}, alias="default")
    fake.is_in_memory_db.return_value = False
    fake.Database.__name__ = "MySQLdb"
    with mock.patch.object(checks, "jobs_connection", return_value=fake):
        yield


def messages(check: Any, *args: Any) -> list[CheckMessage]:
    found = list(check(*args))
    assert all(one.hint for one in found)
    return found


def ids(check: Any, *args: Any) -> list[str]:
    return [str(one.id) for one in messages(check, *args)]


def test_a_good_site_has_nothing_to_mend() -> None:
    assert ours(["default"]) == []


# --- options


def test_sqlite_without_options_is_warned_about_each() -> None:
    with looks_like("sqlite"):
        assert ids(checks.check_database_options) == ["django_jobs.W001", "django_jobs.W002"]
    with looks_like("sqlite", **SQLITE_OPTIONS):
        assert ids(checks.check_database_options) == []
    with looks_like("sqlite", transaction_mode="exclusive", timeout=10):
        assert ids(checks.check_database_options) == []


def test_the_hint_for_sqlite_is_what_the_test_project_has() -> None:
    with looks_like("sqlite"):
        hint = str(messages(checks.check_database_options)[0].hint)
    assert eval(hint.partition("= ")[2].rstrip(".")) == SQLITE_OPTIONS


def test_a_database_in_memory_has_no_workers_to_wait_for() -> None:
    with looks_like("sqlite"):
        checks.jobs_connection().is_in_memory_db.return_value = True  # type: ignore[attr-defined]
        assert ids(checks.check_database_options) == []


@pytest.mark.databases("sqlite")
def test_sqlite_without_a_write_ahead_log_is_warned_about() -> None:
    assert ours(["default"]) == []
    with mock.patch.object(checks, "journal_mode", return_value="delete"):
        assert ours(["default"]) == ["django_jobs.W003"]
    assert journal_mode() == "wal"


@pytest.mark.parametrize(
    ("level", "found"),
    [
        (None, 0),
        (2, 0),
        ("read committed", 0),
        ("READ COMMITTED", 0),
        (4, 1),
        ("repeatable read", 1),
        ("serializable", 1),
    ],
)
@pytest.mark.parametrize("vendor", ["postgresql", "mysql"])
def test_another_isolation_than_read_committed_is_reported(vendor: str, level: Any, found: int) -> None:
    given = {} if level is None else {"isolation_level": level}
    with looks_like(vendor, **given):
        assert ids(checks.check_database_options) == ["django_jobs.W004"] * found


@pytest.mark.parametrize(
    ("pool", "found"),
    [(None, 0), (True, 1), ({"max_size": 10}, 0), ({"min_size": 10}, 0), ({"max_size": 9}, 1), ({"min_size": 2}, 1)],
)
def test_a_pool_smaller_than_a_worker_process_is_reported(pool: Any, found: int) -> None:
    with looks_like("postgresql", pool=pool):
        assert ids(checks.check_database_options) == ["django_jobs.W005"] * found


def test_more_threads_want_a_larger_pool() -> None:
    with looks_like("postgresql", pool={"max_size": 8}), override_settings(DJANGO_JOBS={"THREADS": 5}):
        (message,) = messages(checks.check_database_options)
    assert "'max_size': 11" in str(message.hint)


def test_an_engine_without_our_statements_is_an_error() -> None:
    with looks_like("oracle"):
        assert ids(checks.check_database_options) == ["django_jobs.E006"]


def test_psycopg2_is_an_error_and_psycopg_3_is_none() -> None:
    with looks_like("postgresql"):
        assert "django_jobs.E011" not in ids(checks.check_database_options)
        with mock.patch("django.db.backends.postgresql.psycopg_any.is_psycopg3", False):
            (message,) = [found for found in messages(checks.check_database_options) if found.id == "django_jobs.E011"]
    assert "psycopg 3" in message.msg
    assert "pip install" in str(message.hint)


def test_another_driver_in_the_place_of_mysqlclient_is_an_error() -> None:
    with looks_like("mysql"):
        assert "django_jobs.E011" not in ids(checks.check_database_options)
        checks.jobs_connection().Database.__name__ = "pymysql"  # as install_as_MySQLdb() leaves it
        (message,) = messages(checks.check_database_options)
    assert (message.id, "pymysql" in message.msg, "mysqlclient" in message.msg) == ("django_jobs.E011", True, True)
    assert "pip install" in str(message.hint)


def test_a_host_without_time_zone_data_is_told_which_schedules_need_it() -> None:
    berlin = mock.Mock(timing=mock.Mock(is_known_here=False))
    berlin.name = "nightly"
    with mock.patch.object(checks, "declared", return_value=[berlin, mock.Mock(timing=mock.Mock(is_known_here=True))]):
        (message,) = messages(checks.check_time_zone_data)
    assert (message.id, "nightly" in message.msg, "tzdata" in str(message.hint)) == ("django_jobs.W011", True, True)


# --- bulk handlers


def test_a_list_longer_than_a_limit_is_warned_of() -> None:
    for bulk in (500, 3):
        options = {"bulk": bulk, "limit": Limit(concurrency=3)}
        registry.register(make_handler(lambda payloads: None, f"checks.bulk{bulk}", options))
    try:
        (message,) = messages(checks.check_bulk_handlers)
    finally:
        registry.forget("checks.bulk500")
        registry.forget("checks.bulk3")
    assert (message.id, "bulk=500" in message.msg, "jobs and not calls" in str(message.hint)) == (
        "django_jobs.W012",
        True,
        True,
    )


# --- encryption


def test_encryption_needs_its_package_and_a_key_that_nobody_guesses() -> None:
    strong = "k3y-" * 20 + "0123456789"
    assert ids(checks.check_encryption) == []  # nothing is encrypted
    with override_settings(DJANGO_JOBS={"ENCRYPT": True}, SECRET_KEY=strong, DEBUG=False):
        assert ids(checks.check_encryption) == []
        with mock.patch.object(checks, "find_spec", return_value=None):
            assert ids(checks.check_encryption) == ["django_jobs.E015"]
        for weak in ("short", "a" * 60, f"django-insecure-{strong}", b"short"):
            with override_settings(SECRET_KEY=weak):
                assert ids(checks.check_encryption) == ["django_jobs.W013"]
            with override_settings(SECRET_KEY_FALLBACKS=[weak]):
                assert ids(checks.check_encryption) == ["django_jobs.W013"]
            with override_settings(SECRET_KEY=weak, DEBUG=True):
                assert ids(checks.check_encryption) == []
    registry.register(make_handler(lambda payload: None, "checks.hidden", {"encrypt": True}))
    try:
        with override_settings(SECRET_KEY="short", DEBUG=False):
            assert ids(checks.check_encryption) == ["django_jobs.W013"]
    finally:
        registry.forget("checks.hidden")


# --- routers


class Router:
    """Sends models elsewhere by name, and allows tables or not."""

    def __init__(self, *elsewhere: str, allows: bool | None = None) -> None:
        self.elsewhere, self.allows = elsewhere, allows

    def db_for_write(self, model: type, **hints: Any) -> str | None:
        return "elsewhere" if model.__name__ in self.elsewhere else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return self.allows


@pytest.mark.parametrize(
    ("router", "found"),
    [
        (Router(), []),
        (Router("Schedule"), ["django_jobs.E007"]),
        (Router(allows=False), ["django_jobs.E008"]),
        (Router("User"), ["django_jobs.W008"]),
    ],
    ids=["none", "torn", "no tables", "users elsewhere"],
)
def test_a_router_keeps_the_tables_together(router: Router, found: list[str]) -> None:
    with override_settings(DATABASE_ROUTERS=[router]):
        assert ids(checks.check_router) == found


# --- users


SITES_WITHOUT_USERS = {
    "no app": {"INSTALLED_APPS": ["django_jobs"]},
    "the app of the model is missing": {"INSTALLED_APPS": ["django_jobs"], "AUTH_USER_MODEL": "accounts.User"},
    "a model that is spelt wrong": {"INSTALLED_APPS": ["django_jobs"], "AUTH_USER_MODEL": "users"},
}


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES_WITHOUT_USERS)
@pytest.mark.parametrize("command", ["check", "migrate", "makemigrations --check", "runworkers --drain"])
@pytest.mark.databases("sqlite")
def test_a_site_without_users_is_told_so_by_every_command(site: str, command: str, tmp_path: Path) -> None:
    done = manage(tmp_path, SITES_WITHOUT_USERS[site], command)
    assert done.returncode != 0
    assert "django_jobs.E010" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["stats", "health", "dlq list", "list", "enqueue effects.record"])
@pytest.mark.databases("sqlite")
def test_a_site_without_users_gets_one_line_from_jobs(verb: str, tmp_path: Path) -> None:
    done = manage(tmp_path, SITES_WITHOUT_USERS["no app"], f"jobs {verb}")
    assert done.returncode == 1
    assert done.stderr == "AUTH_USER_MODEL refers to model 'auth.User' that has not been installed\n"


def test_a_site_with_users_of_its_own_needs_nothing_else() -> None:
    with mock.patch.object(checks, "get_user_model", return_value=Schedule):
        assert ids(checks.check_user_model) == []


def manage(folder: Path, settings: dict[str, Any], command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a site with these settings."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "site.sqlite3"), "OPTIONS": SQLITE_OPTIONS}
    whole = {"SECRET_KEY": "x", "USE_TZ": True, "DATABASES": {"default": database}, **settings}
    (folder / "site_settings.py").write_text("\n".join(f"{name} = {value!r}" for name, value in whole.items()))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "site_settings", "PYTHONPATH": f"{folder}:{os.getcwd()}"}
    line = [sys.executable, "-m", "django", *command.split()]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)


# --- settings


@pytest.mark.parametrize(("seconds", "found"), [(60, []), (10, []), (9.5, ["django_jobs.W007"])])
def test_a_short_lease_is_reported(seconds: float, found: list[str]) -> None:
    with override_settings(DJANGO_JOBS={"LEASE_SECONDS": seconds}):
        assert ours() == found


@pytest.mark.parametrize(("on", "debug", "found"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_shell_jobs_on_a_real_site_are_reported(on: bool, debug: bool, found: int) -> None:
    with override_settings(DJANGO_JOBS={"SHELL_JOBS": on}, DEBUG=debug):
        assert ours() == ["django_jobs.W009"] * found


# --- what the database itself says


@pytest.mark.parametrize(
    ("product", "version", "expected"),
    [
        ("postgresql", (14, 9), "is PostgreSQL 14.9; django_jobs needs 15"),
        ("mariadb", (10, 5, 22), "is MariaDB 10.5.22; django_jobs needs 10.6"),
        ("mysql", (5, 7, 44), "is MySQL 5.7.44; django_jobs needs 8.0.11"),
        ("sqlite", (3, 37, 2), "is SQLite 3.37.2; django_jobs needs 3.38"),
    ],
)
def test_a_database_that_is_too_old_is_an_error(product: str, version: tuple[int, ...], expected: str) -> None:
    with mock.patch.object(checks, "product_and_version", return_value=(product, version)):
        (message,) = messages(checks.check_database, ["default"])
    assert (message.id, expected in str(message.msg)) == ("django_jobs.E009", True)


def test_the_version_is_read_from_the_database() -> None:
    product, version = product_and_version()
    assert product in OLDEST
    assert version >= OLDEST[product][1]
    assert (max_connections() is None) == (product == "sqlite")


@pytest.mark.databases("postgresql", "mariadb")
def test_a_server_that_takes_fewer_connections_than_one_process_wants_is_reported() -> None:
    with mock.patch.object(checks, "max_connections", return_value=9):
        assert ours(["default"]) == ["django_jobs.W006"]
    with override_settings(DJANGO_JOBS={"THREADS": 1000}):
        assert ours(["default"]) == ["django_jobs.W006"]


def test_live_jobs_and_schedules_without_a_handler_are_reported() -> None:
    make_job("effects.recrod")
    make_job("effects.recrod", status="scheduled")
    make_job("effects.gone", status="completed")
    Scheduler().schedule_interval("fetch", "effects.record", 60)
    Schedule.objects.filter(name="fetch").update(job_type="feeds.fetch")  # the code changed since
    found = messages(checks.check_database, ["default"])
    assert [(one.id, one.msg) for one in found] == [
        (
            "django_jobs.W010",
            "Unfinished jobs have the type 'effects.recrod', which has no handler. Did you mean 'effects.record'?",
        ),
        ("django_jobs.W010", "An enabled schedule has the type 'feeds.fetch', which has no handler."),
    ]
    assert registry.find("effects.record") is not None


def test_the_database_is_asked_only_when_it_is_named(django_assert_num_queries: Any) -> None:
    make_job("effects.gone")
    with django_assert_num_queries(0):
        assert ours() == []
        assert ids(checks.check_database, ["other"]) == ids(checks.check_database, None) == []
    assert ours(["default"]) == ["django_jobs.W010"]


def test_checks_before_the_first_migrate_ask_for_no_table() -> None:
    with (
        mock.patch.object(checks, "missing_migrations", return_value=["django_jobs.0001_initial"]),
        mock.patch.object(Job, "objects", None),
    ):
        assert ours(["default"]) == []


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    make_job("effects.gone")
    call_command("check", databases=["default"])
    assert "django_jobs.W010" in capsys.readouterr().err


def test_schedules_of_another_site_on_the_database_are_its_own_business() -> None:
    values = {"job_type": "feeds.fetch", "kind": "interval", "interval_seconds": 60, "declared": True}
    Schedule.objects.create(name="theirs", site="another", **values)
    assert ids(checks.check_database, ["default"]) == []
    Schedule.objects.create(name="ours", site=this_site(), **values)
    assert ids(checks.check_database, ["default"]) == ["django_jobs.W010"]
