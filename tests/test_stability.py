"""What is public: the page on stability names every public name of the code, and no other."""

import ast
import importlib
import inspect
import re
import textwrap
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.dispatch import Signal

from django_jobs import api
from tests.support.pages import DOCS

PAGE = DOCS / "reference/stability.md"
MODULES = ("", "backends", "exceptions", "metrics", "models", "queue", "signals", "testing", "urls")
CLASSES = {
    "Context": "django_jobs.worker.context",
    **dict.fromkeys(
        ("JobQueue", "JobQueueManager", "Scheduler", "Worker", "WorkerPool", "EventHandler"), "django_jobs.queue"
    ),
}


@cache
def told(heading: str) -> dict[str, set[str]]:
    """Return the rows of the table under a heading of the page: the first word of each, with the other words."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line) for line in section.splitlines() if line.startswith("| `")]
    assert rows, f"the page has no table under {heading!r}"
    return {first: set(others) for first, *others in rows}


def names_of(module: ModuleType) -> set[str]:
    """Return the names that a module offers: its `__all__`, else the classes and signals that it defines."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, Signal) or (inspect.isclass(value) and value.__module__ == module.__name__))
    }


def members_of(kind: type) -> set[str]:
    """Return the public methods, properties and attributes that the source of a class, or of a base of ours, defines."""
    ours = [vars(base) for base in kind.__mro__ if base.__module__.startswith("django_jobs.")]
    found = {name for members in ours if "__init__" in members for name in _attributes(members["__init__"])} | {
        name
        for members in ours
        for name, value in members.items()
        if (callable(value) and not inspect.isclass(value)) or isinstance(value, property | classmethod)
    }
    return {name for name in found if not name.startswith("_")}


def _attributes(init: Any) -> set[str]:
    """Return the names of the attributes that an `__init__` sets."""
    if not inspect.isfunction(init):
        return set()
    nodes = [
        node
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(init))))
        if isinstance(node, ast.Attribute)
    ]
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}


def class_of(name: str) -> Any:
    """Return a class by the name that it has on the page; of `Job.objects` that of its queries."""
    if name in CLASSES:
        return getattr(importlib.import_module(CLASSES[name]), name)
    model = apps.get_model("django_jobs", name.removesuffix(".objects"))
    return type(model.objects.all()) if name.endswith(".objects") else model


# Public to Python and not to sites: for the package itself.
OWN = {
    "Context": {"is_time_to_look", "take_over_deadline"},
    "Event.objects": {"called", "kept", "undelivered"},
    "Job.objects": {"graph_of", "held_by", "held_under"},
    "JobQueue": {"enqueue_by_rules"},
    "Schedule": {"checked", "clean", "from_db", "save", "take_progress_of", "timing"},
    "Schedule.objects": {"declared_elsewhere", "declared_here", "due", "known_here", "not_declared_elsewhere"},
    "Worker": {
        "buffer",
        "handlers",
        "idle_since",
        "is_silent",
        "poll_interval",
        "process",
        "run",
        "run_one",
        "selector",
        "slot",
        "step",
    },
    "WorkerProcess.objects": {"at_work", "of_other_sites", "registered", "silent_threads", "snapshots"},
}


def compare(told: set[str], real: set[str], what: str) -> None:
    assert real - told == set(), f"{what}: public in the code and not on {PAGE.name}; name it there, or make it private"
    assert told - real == set(), (
        f"{what}: on {PAGE.name} and not in the code; what is public goes only after a deprecation"
    )


@pytest.mark.parametrize("name", MODULES)
def test_each_public_module_offers_what_the_page_says(name: str) -> None:
    path = f"django_jobs.{name}".rstrip(".")
    module = importlib.import_module(path)
    real = {pattern.name for pattern in module.urlpatterns} if name == "urls" else names_of(module)
    compare(told("Modules")[path], real, path)


def test_no_other_module_is_public() -> None:
    assert set(told("Modules")) == {f"django_jobs.{name}".rstrip(".") for name in MODULES}


def test_what_is_the_packages_own_exists() -> None:
    for name, own in OWN.items():
        assert own <= members_of(class_of(name)), name


MODELS = [model.__name__ for model in apps.get_app_config("django_jobs").get_models() if not model._meta.proxy]


@pytest.mark.parametrize("name", MODELS)
def test_each_model_has_the_columns_that_the_page_says(name: str) -> None:
    columns = {field.name for field in apps.get_model("django_jobs", name)._meta.concrete_fields}
    compare(told("Columns")[name], columns, name)


@pytest.mark.parametrize("name", [*CLASSES, *MODELS, *(f"{name}.objects" for name in MODELS)])
def test_each_public_class_has_the_methods_and_properties_that_the_page_says(name: str) -> None:
    kind = class_of(name)
    fields = {field.name for field in kind._meta.get_fields()} if name in MODELS else set()
    compare(told("Methods").get(name, set()), members_of(kind) - fields - OWN.get(name, set()), name)


def test_a_handler_has_the_methods_that_the_page_says() -> None:
    tree = ast.parse(inspect.getsource(api._register))
    set_here = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    compare(told("Methods")["a handler"], set_here, "a handler")
