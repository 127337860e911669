"""Random workflows whose process dies at random statements, and resumes: compared with a run that nothing disturbs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import django_jobs
from django_jobs import NewJob
from django_jobs.handlers import make_handler, registry
from django_jobs.models import Batch, Event, Job, JobStep
from django_jobs.testing import advance_time, run_due
from django_jobs.testing.crash import ProcessDied
from tests.support.effects.models import Effect, leave_effect

pytestmark = pytest.mark.django_db
KINDS = ["step", "atomic", "sleep", "event", "loop", "children"]
MOST_RUNS = 80


class World:
    """What a workflow has done, as an outside world sees it: calls are never undone, rows of a rolled back transaction are."""

    def __init__(self, program: list[str], deaths: list[tuple[int, bool]]) -> None:
        self.program = program
        self.deaths = list(deaths)  # of one run each: at which statement of its handler, before it or after it
        self.calls: Counter[str] = Counter()
        self.repeated: list[str] = []
        self.items: list[int] = []
        self.died = 0

    def call(self, context: Any, name: str) -> str:
        if JobStep.objects.filter(job_id=context.job_id, name=name).exists():
            self.repeated.append(name)
        self.calls[name] += 1
        leave_effect(context.job_id, context.fence, f"step {name}")
        return name

    def handle(self, context: Any, payload: Any) -> list[Any]:
        with self.dying():
            return [self.part(context, kind, f"{kind} {place}") for place, kind in enumerate(self.program)]

    def part(self, context: Any, kind: str, name: str) -> Any:
        if kind == "sleep":
            return context.sleep(name, 60)
        if kind == "event":
            return context.wait_for_event(name, key=context.job_id)
        if kind == "children":
            number = int(name.split()[1])
            return context.run_children([NewJob("effects.record", {"result": number + one}) for one in (0, 1)], name)
        if kind == "loop":
            for item in context.iterate(name, range(5), every=0):
                self.items.append(item)
            return None
        return context.step(name, self.call, context, name, atomic=kind == "atomic")

    @contextmanager
    def dying(self) -> Iterator[None]:
        """Die at the statement that is planned for this run."""
        at, after = self.deaths.pop(0) if self.deaths else (-1, False)
        number = 0

        def run(execute: Any, *rest: Any) -> Any:
            nonlocal number
            number += 1
            if number == at and not after:
                self.die()
            result = execute(*rest)
            if number == at:
                self.die()
            return result

        with connection.execute_wrapper(run):
            yield

    def die(self) -> None:
        self.died += 1
        raise ProcessDied("at a statement, as the test wanted")


@given(
    program=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    deaths=st.lists(st.tuples(st.integers(1, 24), st.booleans()), max_size=8),
)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_a_workflow_that_dies_anywhere_ends_as_if_nothing_had_happened(
    program: list[str], deaths: list[tuple[int, bool]]
) -> None:
    world = World(program, deaths)
    for model in (Job, Batch, Event, Effect):
        model.objects.all().delete()
    registry.replace(make_handler(world.handle, "model.flow", {"takes_context": True, "max_crashes": 100}))
    try:
        job = django_jobs.submit("model.flow", job_id="flow")
        for place, kind in enumerate(program):
            if kind == "event" and place % 2:
                django_jobs.emit(f"event {place}", key="flow", payload={"n": place})
        for _ in range(MOST_RUNS):
            run_due()
            if Job.objects.get(pk="flow").is_finished:
                break
            advance_time(timedelta(seconds=61))
            for wait in JobStep.objects.filter(kind="event", ended_at=None):
                django_jobs.emit(str(wait.event_name), key="flow", payload={"n": int(str(wait.event_name).split()[1])})
    finally:
        registry.forget("model.flow")
    job.refresh_from_db()
    assert (job.status, job.error) == ("completed", job.error)
    names = [f"{kind} {place}" for place, kind in enumerate(program)]
    assert job.result == [_result(name) for name in names]
    assert [*JobStep.objects.values_list("position", "name")] == [*enumerate(names, 1)]
    assert world.repeated == [], "a recorded step ran again"
    effects = Counter(Effect.objects.values_list("kind", flat=True))
    for name in names:
        if name.startswith("atomic"):
            assert effects[f"step {name}"] == 1
        elif name.startswith("step"):
            assert 1 <= effects[f"step {name}"] <= 1 + world.died
    assert effects["start"] == 2 * program.count("children"), "children are submitted once"
    assert len(world.items) <= 5 * program.count("loop") + world.died
    assert set(world.items) == (set(range(5)) if "loop" in program else set())


def _result(name: str) -> Any:
    kind, _, place = name.partition(" ")
    number = int(place)
    return {"step": name, "atomic": name, "event": {"n": number}, "children": [number, number + 1]}.get(kind)
