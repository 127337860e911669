"""Fair keys at full size: a flood of one key and a single job of another, and a thousand keys beside each other."""

import pytest

from django_jobs import NewJob, job, submit, submit_many
from django_jobs.handlers import registry
from django_jobs.lifecycle.claim import claim
from django_jobs.testing.factory import worker_process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.load]
BATCH = 128
FLOOD = 100_000
KEYS = 1_000
JOBS = 20
MOST_DISTINCT = 10_000


@pytest.fixture(autouse=True)
def by_tenant():
    @job("tests.flood", fair_key="tenant")
    def flood(payload): ...

    yield
    registry.forget("tests.flood")


def _submit(keys: list[str]) -> None:
    for start in range(0, len(keys), 10_000):
        submit_many([NewJob("tests.flood", {"tenant": key}) for key in keys[start : start + 10_000]])


def _claimed(times: int) -> list[str]:
    with worker_process() as process_id:
        return [one.fair_key for _ in range(times) for one in claim("default", BATCH, process_id)]


def test_behind_a_flood_of_another_key_a_single_job_is_in_the_first_batch() -> None:
    _submit(["a"] * FLOOD)
    submit("tests.flood", {"tenant": "b"})
    assert _claimed(1).index("b") == 1


def test_two_starts_of_a_key_are_at_most_two_fair_rounds_apart() -> None:
    keys = [f"k{number:04}" for number in range(KEYS)]
    _submit([key for key in keys for _ in range(JOBS)])
    order = _claimed(KEYS * JOBS // BATCH + 1)
    assert len(order) == KEYS * JOBS
    last: dict[str, int] = {}
    gaps = []
    for place, key in enumerate(order):
        gaps.append(place - last.get(key, place))
        last[key] = place
    print(f"the greatest distance of two starts of one of {KEYS} keys: {max(gaps)}")
    assert max(gaps) <= 2 * KEYS


def test_ten_thousand_keys_each_have_their_turn_in_one_round() -> None:
    keys = [f"k{number:05}" for number in range(MOST_DISTINCT)]
    _submit([*keys, *keys])
    order = _claimed(MOST_DISTINCT // BATCH + 1)
    assert {*order[:MOST_DISTINCT]} == {*keys}
