"""Declaring tasks: which are refused and why, what our options do, and what the system checks say of TASKS."""

import pickle
import subprocess
import sys
from copy import deepcopy
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.exceptions import ImproperlyConfigured

from django_jobs import compat, job
from django_jobs.backends import DummyBackend, ImmediateBackend, JobsBackend, JobsTask, task
from django_jobs.compat import InvalidTask, Task, TaskResultStatus, task_backends
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from tests.support.effects import tasks

ROOT = Path(__file__).resolve().parents[2]
OURS = "django_jobs.backends."

if find_spec("django.tasks") is not None:
    from django.tasks import task as djangos_task
else:
    from django_tasks import task as djangos_task


def plain(one: int = 0) -> int:
    """A function of a module, which each test may make a task of."""
    return one + 1


def with_context(context: Any) -> None:
    """Takes the context first."""


async def coroutine() -> None:
    """A coroutine of a module."""


def naïve() -> None:
    """Its name is not ASCII."""


class Holder:
    """Holds a function."""

    @staticmethod
    def method() -> int:
        """A function of a class of a module."""
        return 1


@pytest.fixture(autouse=True)
def forget_the_tasks_of_this_file() -> Any:
    """Let each test declare them anew."""
    yield
    for handler in list(registry):
        if handler.job_type.startswith(__name__):
            registry.forget(handler.job_type)


def test_djangos_own_tasks_are_preferred_to_the_backport() -> None:
    root = "django.tasks" if find_spec("django.tasks") else "django_tasks"
    assert {getattr(compat, name).__module__.startswith(root) for name in ("Task", "TaskResult", "InvalidTask")} == {
        True
    }


def test_djangos_decorator_makes_our_tasks() -> None:
    made = djangos_task(plain)
    assert isinstance(made, JobsTask)
    assert made == task(plain)
    assert made.call(4) == 5


def test_our_backend_can_do_all_that_there_is() -> None:
    backend = task_backends["default"]
    assert isinstance(backend, JobsBackend)
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert backend.supports_priority


def test_djangos_decorator_takes_our_options_where_it_forwards_keywords() -> None:
    if django.VERSION[:2] == (6, 0):
        with pytest.raises(TypeError):
            djangos_task(max_retries=9)(plain)
    else:
        assert djangos_task(max_retries=9)(plain).max_retries == 9


def test_our_decorator_takes_our_options_everywhere() -> None:
    made = task(priority=7, queue_name="mail", max_retries=9, timeout_seconds=2, atomic=True, retry_on=OSError)(plain)
    assert (made.priority, made.queue_name, made.max_retries) == (7, "mail", 9)
    handler = registry.get(made.module_path)
    assert (handler.queue, handler.max_retries, handler.timeout_seconds) == ("mail", 9, 2)
    assert (handler.atomic, handler.retry_on) == (True, (OSError,))


def test_a_task_may_be_a_function_of_a_class() -> None:
    made = task(Holder.method)
    assert made.module_path == f"{__name__}.Holder.method"
    assert registry.get(made.module_path).function.task is made


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda: None, {}, "module level"),
        (len, {}, "module level"),
        ([], {}, "module level"),
        (plain, {"takes_context": True}, "context"),
        (plain, {"priority": 101}, "priority"),
        (plain, {"priority": -101}, "priority"),
        (plain, {"priority": 1.5}, "priority"),
        (plain, {"queue_name": ""}, "queue"),
        (plain, {"queue_name": "a;drop"}, "queue"),
        (plain, {"queue_name": "unlisted", "backend": "strict"}, "unlisted"),
        (naïve, {}, "letters"),
        (plain, {"max_retries": -1}, "max_retries"),
        (plain, {"max_retries": "5"}, "max_retries"),
        (plain, {"timeout_seconds": 0}, "timeout_seconds"),
        (plain, {"timeout_seconds": float("inf")}, "timeout_seconds"),
        (plain, {"unique_key": ""}, "unique_key"),
        (plain, {"depends_on": "job-1"}, "depends_on"),
        (plain, {"depends_on": [7]}, "depends_on"),
        (plain, {"on_dependency_failure": "maybe"}, "on_dependency_failure"),
        (plain, {"metadata": {"when": datetime(2026, 1, 1)}}, "metadata"),
        (plain, {"base_delay": "1"}, "base_delay"),
        (plain, {"retry_on": "OSError"}, "retry_on"),
        (plain, {"isolation": "container"}, "isolation"),
        (plain, {"atomic": "yes"}, "atomic"),
        (plain, {"max_crashes": 0}, "max_crashes"),
        (coroutine, {"atomic": True}, "atomic"),
    ],
)
def test_a_wrong_task_is_refused_with_the_reason(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTask, match=message):
        task(**options)(function)


def test_what_we_refuse_is_both_djangos_error_and_ours() -> None:
    with pytest.raises(InvalidJob) as caught:
        task(max_retries=-1)(plain)
    assert isinstance(caught.value, InvalidTask)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: task(max_retrys=3)(plain), "max_retries"),
        (lambda: task(run_after=datetime(2026, 1, 1))(plain), "using"),
        (lambda: task(plain).using(atomic=True), "@task"),
        (lambda: task(plain).using(unique_kee="a"), "unique_key"),
    ],
)
def test_an_unknown_or_misplaced_option_is_a_type_error_that_helps(use: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        use()


def test_using_changes_what_it_is_told_and_keeps_the_rest() -> None:
    made = task(max_retries=4, unique_key="a")(plain)
    other = made.using(priority=3, max_retries=0, metadata={"tenant": "a"}, queue_name=None)
    assert (other.priority, other.max_retries, other.unique_key, other.queue_name) == (3, 0, "a", "default")
    assert (made.priority, made.max_retries) == (0, 4)
    assert other.func is made.func
    assert registry.get(made.module_path).max_retries == 4, "the handler keeps the task's own option"


@pytest.mark.parametrize(
    "run_after",
    [datetime(2030, 1, 1), timedelta(seconds=-1), timedelta.max],
    ids=["a naive time", "a negative wait", "longer than there are dates"],
)
def test_using_refuses_a_wrong_run_after(run_after: Any) -> None:
    with pytest.raises(InvalidTask, match="run_after"):
        task(plain).using(run_after=run_after)


def test_using_takes_a_wait_from_the_enqueue_on() -> None:
    assert task(plain).using(run_after=timedelta(minutes=5)).run_after == timedelta(minutes=5)


def test_a_function_is_either_a_job_or_a_task() -> None:
    job(plain)
    with pytest.raises(InvalidTask, match="job already"):
        task(plain)
    assert registry.get(plain.job_type).function is plain  # type: ignore[attr-defined]


def test_a_function_cannot_be_two_tasks_with_different_rules() -> None:
    task(max_crashes=2)(plain)
    with pytest.raises(InvalidTask, match="max_crashes"):
        task(max_crashes=1)(plain)


def test_the_options_of_the_backend_are_defaults(settings: Any) -> None:
    options = {"max_retries": 8, "base_delay": 0.5, "atomic": True}
    settings.TASKS = {"default": {"BACKEND": f"{OURS}JobsBackend", "OPTIONS": options}}
    handler = registry.get(task(max_retries=2)(plain).module_path)
    assert (handler.max_retries, handler.base_delay, handler.atomic) == (2, 0.5, True)
    assert not registry.get(task(coroutine).module_path).atomic, "a coroutine has no transaction to run in"


def test_changed_options_of_the_backend_reach_the_handler(settings: Any) -> None:
    made = task(plain)
    settings.TASKS = {"default": {"BACKEND": f"{OURS}JobsBackend", "OPTIONS": {"base_delay": 0.5}}}
    made.using(priority=1)
    assert registry.get(made.module_path).base_delay == 0.5


def test_our_options_need_one_of_our_backends(settings: Any) -> None:
    foreign = compat.DummyBackend.__module__ + ".DummyBackend"
    settings.TASKS = {"default": {"BACKEND": foreign}}
    assert type(task(plain)) is Task
    with pytest.raises(InvalidTask, match=r"django_jobs\.backends"):
        task(max_retries=2)(plain)


def test_a_task_of_another_backend_is_known_once_it_uses_ours(settings: Any) -> None:
    foreign = compat.DummyBackend.__module__ + ".DummyBackend"
    settings.TASKS = {"default": {"BACKEND": foreign}, "jobs": {"BACKEND": f"{OURS}JobsBackend"}}
    made = task(plain)
    assert registry.find(made.module_path) is None
    made.using(backend="jobs")
    assert registry.get(made.module_path).function.task.func is plain


def test_a_task_is_copied_and_where_django_can_pickled() -> None:
    assert deepcopy(tasks.add) == tasks.add
    hash(tasks.add.using(metadata={"a": 1}))
    if django.VERSION >= (6, 1):
        assert pickle.loads(pickle.dumps(tasks.add.using(max_retries=2))) == tasks.add.using(max_retries=2)


# --- the siblings for tests and development


def test_the_immediate_sibling_takes_our_options_and_runs_at_once(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": f"{OURS}ImmediateBackend"}}
    assert isinstance(task_backends["default"], ImmediateBackend)
    result = task(max_retries=2, atomic=True)(plain).using(unique_key="a").enqueue(4)
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 5)
    with pytest.raises(InvalidTask, match="run_after"):
        task(plain).using(run_after=timedelta(seconds=1))
    with pytest.raises(InvalidTask, match="max_retries"):
        task(max_retries=-2)(plain)


def test_the_dummy_sibling_takes_our_options_and_remembers(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": f"{OURS}DummyBackend"}}
    backend = task_backends["default"]
    assert isinstance(backend, DummyBackend)
    result = tasks.add.using(max_retries=2, run_after=timedelta(hours=1)).enqueue(4)
    assert [kept.id for kept in backend.results] == [result.id]
    assert result.task.max_retries == 2


# --- construction and configuration


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


CONFIGURE = """
import importlib.util, sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_jobs"],
    TASKS={"default": {"BACKEND": "django_jobs.backends.JobsBackend"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nonexistent/x"}}, USE_TZ=True)
"""


@pytest.mark.slow
def test_a_task_is_declared_before_the_apps_are_loaded() -> None:
    done = _python(
        f"{CONFIGURE}import json\nfrom django_jobs.backends import task\ntask(json.dumps)\n"
        "assert 'django_jobs.models' not in sys.modules, 'no model was imported'"
    )
    assert done.returncode == 0, done.stderr


NEITHER = f"""{CONFIGURE}
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name in ("django.tasks", "django_tasks") else real(name, *args)
"""


@pytest.mark.slow
def test_without_a_tasks_api_the_use_of_the_backend_says_what_to_install() -> None:
    done = _python(f"{NEITHER}import django_jobs.backends")
    assert "ImproperlyConfigured" in done.stderr
    assert "pip install django-tasks" in done.stderr


@pytest.mark.slow
def test_without_a_tasks_api_all_the_rest_works() -> None:
    done = _python(
        f"{NEITHER}settings.TASKS = {{}}\nimport django; django.setup()\nimport django_jobs.api, django_jobs.compat"
    )
    assert done.returncode == 0, done.stderr


def _check_ids() -> list[str]:
    return [message.id or "" for message in compat.checks.check_tasks()]


def test_the_checks_are_content_with_a_good_setting() -> None:
    assert _check_ids() == []


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ({"QUEUES": "default"}, ["django_jobs.tasks.E002"]),
        ({"QUEUES": ["default", "a;drop"]}, ["django_jobs.tasks.E003"]),
        ({"OPTIONS": {"max_retrys": 3}}, ["django_jobs.tasks.E004"]),
        ({"OPTIONS": {"unique_key": "a"}}, ["django_jobs.tasks.E004"]),
        ({"OPTIONS": {"max_retries": -1, "timeout_seconds": "5"}}, ["django_jobs.tasks.E005"] * 2),
        ({"OPTIONS": {"on_dependency_failure": "maybe"}}, ["django_jobs.tasks.E005"]),
        ({"OPTIONS": ["max_retries"]}, ["django_jobs.tasks.E005"]),
    ],
)
@pytest.mark.parametrize("backend", ["JobsBackend", "ImmediateBackend", "DummyBackend"])
def test_the_checks_name_each_mistake(settings: Any, backend: str, alias: dict[str, Any], expected: list[str]) -> None:
    settings.TASKS = {"default": {"BACKEND": f"{OURS}{backend}", **alias}}
    assert _check_ids() == expected


def test_the_checks_ask_for_the_app(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_jobs"]
    assert _check_ids() == ["django_jobs.tasks.E001"] * len(settings.TASKS)


def test_a_misspelt_backend_is_improperly_configured(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": f"{OURS}JobBackend"}}
    with pytest.raises(ImproperlyConfigured, match="JobBackend"):
        task(plain)
