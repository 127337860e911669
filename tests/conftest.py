"""Run every database test on each database that can be reached, in one pytest run (`pytest --help`: databases)."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import connections
from django.test import TransactionTestCase
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from django_jobs.lifecycle import turns
from tests.support.databases import (
    SERVERS,
    VENDORS,
    Database,
    create_database,
    created_database,
    default_database_at,
    drop_leftovers,
    empty_tables,
    migrate,
    new_url,
    server_url,
    why_unreachable,
)
from tests.support.servers import PRIVATE_SERVERS, PrivateServer

DATABASE_FIXTURES = {"database", "db", "transactional_db", "django_db_reset_sequences", "live_server"}
# The same examples in each run, however slow the machine is; `--hypothesis-profile=thorough` looks for new ones.
_ANY_MACHINE: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis_settings.register_profile("default run", max_examples=50, derandomize=True, **_ANY_MACHINE)
hypothesis_settings.register_profile("thorough", max_examples=1_000, **_ANY_MACHINE)
hypothesis_settings.load_profile("default run")
STATE = pytest.StashKey["dict[str, str]"]()
LEFT_OUT = pytest.StashKey["Counter[str]"]()
LONG = ("fault", "load", "browser", "slow")  # the marks that `addopts` leaves out
MOST_PROCESSES = 4  # each with databases and sessions of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("databases")
    group.addoption(
        "--database",
        action="append",
        choices=VENDORS,
        help="run database tests on this database only, and fail when it cannot be reached (repeatable); "
        "without it on all in JOBS_TEST_DATABASES (default: all three) that can be reached; "
        "with JOBS_TEST_REQUIRE=1 all must be; servers: " + ", ".join(variable for variable, _ in SERVERS.values()),
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "databases(*names): run this database test on these databases only")
    config.stash[STATE] = {}
    config.stash[LEFT_OUT] = Counter()
    if config.getoption("--database") or os.environ.get("JOBS_TEST_REQUIRE") == "1":
        for vendor in _chosen(config):
            if reason := why_unreachable(vendor):
                raise pytest.UsageError(f"{vendor} is required and cannot be used: {reason}")


def _chosen(config: pytest.Config) -> list[str]:
    named = config.getoption("--database") or os.environ.get("JOBS_TEST_DATABASES", ",".join(VENDORS)).split(",")
    chosen = [name.strip() for name in named]
    if unknown := set(chosen) - set(VENDORS):
        raise pytest.UsageError(f"JOBS_TEST_DATABASES: unknown {', '.join(sorted(unknown))}; use {', '.join(VENDORS)}")
    return chosen


def _uses_database(metafunc: pytest.Metafunc) -> bool:
    marked = metafunc.definition.get_closest_marker("django_db") is not None
    return marked or not DATABASE_FIXTURES.isdisjoint(metafunc.fixturenames)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise database tests over all databases; session scope makes pytest run them database by database."""
    if _uses_database(metafunc):
        if "database" not in metafunc.fixturenames:
            metafunc.fixturenames.insert(0, "database")
        metafunc.parametrize("database", VENDORS, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the variants for databases that a test's mark, the options or the machine rule out."""
    items[:] = [item for item in items if _vendor(item) in (None, *_allowed(item))]
    if not any(map(_vendor, items)):
        return
    state, chosen = config.stash[STATE], _chosen(config)
    for vendor in VENDORS:
        reason = why_unreachable(vendor) if vendor in chosen else "not chosen"
        state[vendor] = f"not run ({reason})" if reason else "nothing to run"
        if reason:
            dropped = [item for item in items if _vendor(item) == vendor]
            config.hook.pytest_deselected(items=dropped)
            items[:] = [item for item in items if _vendor(item) != vendor]


def _vendor(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("database") if callspec else None


def _allowed(item: pytest.Item) -> tuple[str, ...]:
    mark = item.get_closest_marker("databases")
    if mark and (unknown := set(mark.args) - set(VENDORS)):
        raise pytest.UsageError(f"{item.nodeid}: @databases names unknown {unknown}")
    return mark.args if mark else VENDORS


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the tests that their mark left out, for the summary."""
    for item in items:
        if mark := next((mark for mark in LONG if item.get_closest_marker(mark)), None):
            item.config.stash[LEFT_OUT][mark] += 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Share whole folders among processes; a few named tests are sooner done in one, and long runs want the machine."""
    few = any(not Path(name).is_dir() for name in config.args)
    alone = any(f"not {mark}" not in config.option.markexpr for mark in ("fault", "load", "browser"))
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    return 0 if few or alone or processes == 1 else processes


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """Let a process of pytest-xdist report what hostile tests write: a lone surrogate is no text for it."""
    return _as_utf8((yield))  # type: ignore[misc, return-value]


def _as_utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_utf8(key): _as_utf8(one) for key, one in value.items()}
    return [_as_utf8(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a process of pytest-xdist has to say in the summary: that it ran a database, or what was left out."""
    told = getattr(node, "workeroutput", {})
    state = node.config.stash[STATE]
    state.update({vendor: what for vendor, what in told.get("databases", {}).items() if state.get(vendor) != "ran"})
    node.config.stash[LEFT_OUT] |= Counter(told.get("left out", {}))  # each process collects all tests


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the summary over, in a process of pytest-xdist."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output |= {"databases": session.config.stash[STATE], "left out": dict(session.config.stash[LEFT_OUT])}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if state := config.stash[STATE]:
        told = ", ".join(f"{vendor} {what}" for vendor, what in state.items())
        terminalreporter.write_line(f"databases: {told}", yellow="not run" in told)
    if left_out := config.stash[LEFT_OUT]:
        told = ", ".join(f"{count} of {mark}" for mark, count in left_out.items())
        terminalreporter.write_line(f'left out: {told}; they run with -m "{" or ".join(left_out)}"')


@pytest.fixture(scope="session")
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any
) -> Iterator[Database]:
    """Give the database under test: created, migrated, and `default` for this process and its subprocesses."""
    vendor: str = request.param
    url = new_url(vendor, tmp_path_factory.mktemp("database"))
    with ExitStack() as stack:
        with django_db_blocker.unblock():
            if vendor in SERVERS:
                drop_leftovers(server_url(vendor))
            stack.enter_context(created_database(url))
        request.config.stash[STATE][vendor] = "ran"
        stack.enter_context(mock.patch.object(TransactionTestCase, "_fixture_teardown", _empty_tables_after_test))
        yield Database(vendor=vendor, url=url)
        with django_db_blocker.unblock():
            stack.close()


def _empty_tables_after_test(test: TransactionTestCase) -> None:
    """Stand in for Django's flush, which truncates every table and writes all permissions anew after each test."""
    empty_tables(connections["default"])


@pytest.fixture(autouse=True)
def _nothing_known_of_queues() -> None:
    """Forget which queues had jobs with fair keys: a process keeps that for a second, which may be a test ago."""
    turns.forget_queues()


@pytest.fixture
def django_db_setup(database: Database) -> None:
    """Take the place of pytest-django's fixture: the `database` fixture does the work, once per database."""


@pytest.fixture(params=sorted(PRIVATE_SERVERS))
def private_server(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[PrivateServer]:
    """Give a server of the test's own, migrated and `default`, that it may stop, kill and start again.

    Not for tests marked `django_db`: there is no rollback and no emptying, the server goes as a whole.
    """
    with PRIVATE_SERVERS[request.param]() as server, django_db_blocker.unblock():
        url = new_url(request.param, tmp_path, server.url)
        create_database(url)
        with default_database_at(url):
            migrate()
            yield server
