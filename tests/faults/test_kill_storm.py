"""SIGKILLs of random worker processes: nothing is lost, atomic effects happen once, duplicates are runs that were killed."""

import pytest

from tests.support.databases import Database

from .storm import Figures, run_storm

pytestmark = pytest.mark.django_db(transaction=True)


def _check(figures: Figures) -> None:
    assert figures.lost == 0, figures
    assert figures.duplicates <= figures.in_flight, figures
    assert figures.atomic_effects == figures.atomic_jobs, figures


@pytest.mark.quick("postgresql", "mariadb")
@pytest.mark.slow
def test_a_short_kill_storm_loses_nothing() -> None:
    figures = run_storm(jobs=250, processes=2, threads=4, every=0.8, lasts=2.5, patience=90, job_seconds=0.02)
    assert figures.kills >= 2
    _check(figures)


@pytest.mark.fault
def test_a_kill_a_second_loses_nothing() -> None:
    figures = run_storm(jobs=2_000, processes=4, threads=4, every=1.0, lasts=20, patience=180)
    _check(figures)


@pytest.mark.fault
def test_a_full_kill_storm_loses_nothing(database: Database) -> None:
    figures = run_storm(jobs=20_000, processes=4, threads=4, every=0.5, lasts=60, patience=300)
    print(f"\n{database.vendor}: {figures}")
    _check(figures)
