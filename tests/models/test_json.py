"""What the validator lets through comes back equal from every database."""

from typing import Any

import pytest

from django_jobs.models import Job
from django_jobs.payloads import MAX_DEPTH, decode, encode_payload
from tests.support.factories import JobFactory

pytestmark = pytest.mark.django_db


def nested(levels: int) -> Any:
    value: Any = "the innermost"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(MAX_DEPTH - 1),
        [1e16, -1e17, 9.3e18, 1e300, -1e300, 5e-324, 1.0, 0.1, -0.0, 1e15, 123456789.123456789],
        [2**63 - 1, -(2**63 - 1), 2**53 + 1, 0],
        ["é🎉", "", " a ", '"', "\\", "\\u0000", "\u2028", "\x01\x1f", "</script>", "x" * 200_000],
        {"": 1, "a b": 2, "é": 3, "b": 4, "B": 5, "b ": 6},
        [None, True, False, [], {}],
    ],
    ids=["deep", "floats", "integers", "strings", "keys", "constants"],
)
def test_json_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    text = encode_payload({"value": value})
    job = JobFactory(payload=decode(text))
    found = Job.objects.get(pk=job.pk).payload
    assert found == decode(text)
    assert repr(found["value"]) == repr(decode(text)["value"]) or isinstance(value, dict)
