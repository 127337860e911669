"""The benchmark's jobs as `django.tasks` tasks."""

from django.tasks import task

from benchmarks import work


@task
def tick() -> None:
    work.tick()


@task
def nap() -> None:
    work.nap()


@task
def stamp(number: int) -> None:
    work.stamp(number)
