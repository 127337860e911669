"""Async code: each public move has a twin that does the same, and waiting holds no thread."""

import ast
import asyncio
import inspect
import keyword
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.apps import apps
from django.db import transaction

import django_jobs
from django_jobs import NewJob, api
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import DeadLetter, Job
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.in_process import running_process


def twin_of(name: str) -> str:
    return f"a{name}_" if keyword.iskeyword(f"a{name}") else f"a{name}"


def moves(owner: Any) -> Iterator[str]:
    """Yield the public functions of a class or a module that call a move or wait, both of which ask the database."""
    for name, function in vars(owner).items():
        if name.startswith("_") or not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            continue
        if function.__module__ != getattr(owner, "__module__", owner.__name__):
            continue
        imported = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        if any(source.startswith(("django_jobs.lifecycle", "django_jobs.waiting")) for source in imported):
            yield name


WITHOUT_A_TWIN = {"batch"}  # a block is a transaction, and Django has none in async code
OWNERS = [
    api,
    *(model for model in apps.get_app_config("django_jobs").get_models()),
    *(type(model.objects.all()) for model in apps.get_app_config("django_jobs").get_models()),
]


def test_each_public_move_has_a_twin_with_its_arguments() -> None:
    found = [(owner, name) for owner in OWNERS for name in moves(owner)]
    assert {"submit", "submit_many", "cancel", "wait", "replay", "acknowledge"} <= {name for _, name in found}
    for owner, name in found:
        if name in WITHOUT_A_TWIN:
            continue
        sync, twin = vars(owner)[name], vars(owner).get(twin_of(name))
        assert inspect.iscoroutinefunction(twin), f"{owner.__name__}.{name} has no twin {twin_of(name)}"
        assert inspect.signature(twin) == inspect.signature(sync), f"{owner.__name__}.{name}"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("before", "move", "after"),
    [
        ("pending", lambda job: job.acancel(), "cancelled"),
        ("dead", lambda job: job.areplay(), "pending"),
        ("scheduled", lambda job: job.arun_now(), "pending"),
        ("pending", lambda job: Job.objects.filter(pk=job.pk).acancel(), "cancelled"),
        ("dead", lambda job: Job.objects.filter(pk=job.pk).areplay(), "pending"),
        ("scheduled", lambda job: Job.objects.filter(pk=job.pk).arun_now(), "pending"),
        ("dead", lambda job: DeadLetter.objects.get(job=job).areplay(), "pending"),
        ("dead", lambda job: DeadLetter.objects.get(job=job).aacknowledge(note="seen"), "dead"),
    ],
)
def test_a_twin_does_what_the_move_does(before: str, move: Callable[[Job], Any], after: str) -> None:
    job = JobFactory(status=before)
    if before == "dead":
        DeadLetterFactory(job=job)
    async_to_sync(wrapped(lambda: move(job)))()
    job.refresh_from_db()
    assert job.status == after
    assert not DeadLetter.objects.open().exists()


def wrapped(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a coroutine function for what `make` gives, which may ask the database before it is awaited."""

    async def awaited() -> Any:
        return await (await sync_to_async(make)())

    return awaited


@pytest.mark.django_db(transaction=True)
def test_async_code_submits_and_builds_graphs() -> None:
    async def build() -> list[Job]:
        first = await django_jobs.asubmit("effects.record")
        others = await django_jobs.asubmit_many([NewJob("effects.record")])
        await others[0].aadd_dependency(first)
        return [first, *others]

    first, other = async_to_sync(build)()
    assert other.depends_on == [first.pk]
    assert other.pending_dependencies == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_many_wait_in_one_thread_until_their_jobs_have_finished() -> None:
    jobs = [JobFactory() for _ in range(20)]
    before = threading.active_count()

    async def wait_for_all(timeout: float) -> tuple[list[Any], int]:
        waiting = asyncio.gather(*(job.await_(timeout) for job in jobs), return_exceptions=True)
        await asyncio.sleep(min(timeout / 2, 1))
        threads = threading.active_count()
        return list(await waiting), threads

    left, threads = async_to_sync(wait_for_all)(0.5)
    assert {type(one) for one in left} == {TimeoutError}
    assert threads <= before + 2, "that of the event loop"
    with running_process():
        done, _ = async_to_sync(wait_for_all)(30)
    assert done == jobs
    assert {job.status for job in jobs} == {"completed"}


@pytest.mark.django_db(transaction=True)
def test_it_gives_up_in_time_and_refuses_to_wait_in_vain() -> None:
    job = JobFactory()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"is still pending after 0\.1 seconds"):
        async_to_sync(job.await_)(timeout=0.1)
    assert time.monotonic() - began >= 0.1
    with pytest.raises(InvalidJob, match="give seconds"):
        async_to_sync(job.await_)(timeout="soon")
    with pytest.raises(JobNotFound):
        async_to_sync(Job(id="gone").await_)()
    with transaction.atomic(), pytest.raises(InvalidJob, match="would wait in vain"):
        async_to_sync(job.await_)()
