"""What is JSON for us: the same answer whatever the database, every problem named by its path, nothing slow."""

import dataclasses
import enum
import json
import pathlib
import time
import uuid
from collections import OrderedDict, namedtuple
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.http import HttpRequest, QueryDict
from django.test import override_settings
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Job
from django_jobs.payloads import MAX_DEPTH, JobsJSONDecoder, decode, encode_payload, encode_result

LARGEST = 2**63 - 1


class Colour(enum.StrEnum):
    RED = "red"


class Shade(enum.Enum):
    DARK = 1


class Level(enum.IntEnum):
    HIGH = 7


Point = namedtuple("Point", "x y")


def problems(value: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidJob) as caught:
        encode_payload(value)
    return caught.value.problems


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_text_is_compact_readable_and_in_the_order_given() -> None:
    assert encode_payload({"b": [1, 2.5, None, True], "a": {"é": "ü\n"}}) == '{"b":[1,2.5,null,true],"a":{"é":"ü\\n"}}'


def test_subclasses_of_json_types_count_by_their_value() -> None:
    value = {Colour.RED: Colour.RED, "level": Level.HIGH, "map": OrderedDict(a=1), "point": Point(1, 2), "pair": (3, 4)}
    assert encode_payload(value) == '{"red":"red","level":7,"map":{"a":1},"point":[1,2],"pair":[3,4]}'


def test_numbers_are_written_as_every_database_gives_them_back() -> None:
    text = encode_result([-0.0, 0.0, 1e15, 1e16, -1e17, 9.3e18, 1e300, 0.1, 5e-324, LARGEST, -LARGEST])
    assert text == (
        "[0.0,0.0,1000000000000000.0,10000000000000000,-100000000000000000,9.3e+18,1e+300,0.1,5e-324,"
        f"{LARGEST},-{LARGEST}]"
    )


def test_digits_beyond_64_bits_are_read_as_the_float_they_were() -> None:
    # As PostgreSQL's jsonb writes 1e300 and 9.3e18.
    text = f"[{'1' + '0' * 300}, 9300000000000000000, {LARGEST}, {-LARGEST}, {'9' * 5000}]"
    values = json.loads(text, cls=JobsJSONDecoder)
    assert values[:4] == [1e300, 9.3e18, LARGEST, -LARGEST]
    assert [type(value) for value in values] == [float, float, int, int, float]
    assert decode(text) == values


def test_text_that_is_not_json_is_refused_as_the_json_module_does() -> None:
    for text in ("{", "", "[1,]"):
        with pytest.raises(json.JSONDecodeError):
            decode(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-LARGEST, LARGEST)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_what_is_encoded_is_decoded_equal_or_refused(value: Any) -> None:
    try:
        text = encode_result(value)
    except InvalidJob:
        assert "\\u0000" in json.dumps(value)
        return
    assert decode(text) == value
    assert encode_result(decode(text)) == text
    assert "\\u0000" not in text.replace("\\\\", "")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (datetime(2024, 1, 2), "datetime is not JSON; use isoformat() (datetime.datetime(2024, 1, 2, 0, 0))"),
        (date(2024, 1, 2), "date is not JSON; use isoformat() (datetime.date(2024, 1, 2))"),
        (timedelta(1), "timedelta is not JSON; use total_seconds() (datetime.timedelta(days=1))"),
        (uuid.UUID(int=0), "UUID is not JSON; use str() (UUID('00000000-0000-0000-0000-000000000000'))"),
        (Decimal("1.5"), "Decimal is not JSON; use str() (Decimal('1.5'))"),
        ({1}, "set is not JSON; use a sorted list ({1})"),
        (b"x", "bytes is not JSON; use base64 text (b'x')"),
        (float("nan"), "nan is not JSON; use None or a string"),
        (float("-inf"), "-inf is not JSON; use None or a string"),
        (2**63, "integers go from -(2**63-1) to 2**63-1; use a string (9223372036854775808)"),
        (-(2**63), "integers go from -(2**63-1) to 2**63-1; use a string (-9223372036854775808)"),
        ("a\0b", "a NUL character cannot be stored ('a\\x00b')"),
        ("\ud800", "a lone surrogate ('\\ud800') cannot be stored ('\\ud800')"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_json_is_named_with_its_path_and_the_mend(value: Any, said: str) -> None:
    assert problems({"user": {"x": value}}) == (f"payload.user.x: {said}",)


@dataclasses.dataclass
class Order:
    number: int


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (gettext_lazy("Save"), "lazy string is not JSON; it is translated when it is shown: use str(), in the active language"),
        (Job.objects.all(), "QuerySet is not JSON; use primary keys: list(….values_list('pk', flat=True)) (of Job)"),
        (Job.objects.filter(pk="a").values("pk"), "QuerySet is not JSON; use primary keys"),
        (Job(), "Job is not JSON; use its primary key"),
        (Order(7), "Order is not JSON; use dataclasses.asdict()"),
        (Shade.DARK, "Shade is not JSON; use its .value"),
        (pathlib.PurePosixPath("/a"), "PurePosixPath is not JSON; use str()"),
        (HttpRequest(), "HttpRequest is not JSON; use the values that the handler needs of it"),
        (ContentFile(b"x"), "ContentFile is not JSON; keep the file in a storage and use its name"),
        (MappingProxyType({}), "mappingproxy is not JSON; use dict()"),
        (range(3), "range is not JSON; use a list"),
        ({}.keys(), "dict_keys is not JSON; use a list"),
        (iter([1]), "list_iterator is not JSON; use a list"),
        (bytearray(b"x"), "bytearray is not JSON; use base64 text"),
        (QueryDict("a=1&a=2"), "QueryDict has 2 values here; use dict(….lists()), or .dict() for the last"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_djangos_own_values_are_refused_with_what_to_use(value: Any, said: str) -> None:
    (problem,) = problems({"x": value})
    assert said in problem


def test_a_queryset_is_refused_without_a_query() -> None:
    with pytest.raises(InvalidJob, match=r"of Job"):  # no database is allowed here: a query would be an error
        encode_payload({"jobs": Job.objects.all()})


def test_a_form_with_one_value_each_is_a_payload() -> None:
    assert encode_payload(QueryDict("a=1&b=x%20y")) == '{"a":"1","b":"x y"}'
    (problem,) = problems(QueryDict("a=1&b=x&b=y"))
    assert problem.startswith("payload.b: QueryDict has 2 values here")


def test_an_integer_that_has_no_decimal_text_is_refused_like_any_other() -> None:
    assert problems({"x": 10**5000}) == (
        "payload.x: integers go from -(2**63-1) to 2**63-1; use a string (16610 bits)",
    )


def test_all_problems_are_named_at_once() -> None:
    assert problems({"a": {1: 2}, "b c": [0, object], "\0": 1, "n": float("inf")}) == (
        "payload.a[1]: keys are strings, not int",
        "payload['b c'][1]: type is not JSON (<class 'object'>)",
        "payload['\\x00']: a NUL character cannot be stored ('\\x00')",
        "payload.n: inf is not JSON; use None or a string",
    )


def test_problems_beyond_the_twentieth_are_not_listed() -> None:
    said = problems({"list": [object()] * 1000})
    assert len(said) == 21
    assert said[-1] == "and more"


def test_a_value_is_shown_in_eighty_characters_at_most() -> None:
    (said,) = problems({"x": {"y" * 500}})
    assert len(said) < 140


def test_keys_that_become_one_are_refused() -> None:
    class Key(str):
        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return self is other

    assert problems({Key("a"): 1, Key("a"): 2}) == ("payload.a: the key stands there twice",)


def test_a_payload_is_an_object_and_a_result_anything() -> None:
    assert problems([1]) == ("payload: give a JSON object (a dict), not list ([1])",)
    assert problems(None) == ("payload: give a JSON object (a dict), not NoneType (None)",)
    assert [encode_result(value) for value in ([1], None, "x", True)] == ["[1]", "null", '"x"', "true"]


def test_where_it_stands_can_be_said() -> None:
    with pytest.raises(InvalidJob, match=r"^jobs\[3\]\.metadata\.x: object is not JSON"):
        encode_payload({"x": object()}, where="jobs[3].metadata")


def test_a_cycle_is_named_as_one() -> None:
    value: dict[str, Any] = {}
    value["me"] = [value]
    assert problems({"a": value}) == ("payload.a.me[0]: a cycle: it contains itself, being payload.a",)


def test_the_same_list_twice_is_no_cycle() -> None:
    shared = [object.__name__]
    assert encode_payload({"a": shared, "b": [shared, shared]}) == '{"a":["object"],"b":[["object"],["object"]]}'


@pytest.mark.parametrize("innermost", [[], {}, (), [1], {"x": 1}])
def test_sixty_four_levels_are_the_limit(innermost: Any) -> None:
    value = innermost
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    assert decode(encode_payload({"a": value}))["a"]
    assert [problem[-30:] for problem in problems({"a": [value]})] == [": nested deeper than 64 levels"]


def test_depth_is_no_recursion_error() -> None:
    assert "nested deeper" in problems({"a": nested(100_000)})[0]


def test_the_limit_is_in_bytes() -> None:
    with override_settings(DJANGO_JOBS={"PAYLOAD_MAX_BYTES": 20, "RESULT_MAX_BYTES": 10}):
        assert encode_payload({"a": "x" * 12}) == '{"a":"' + "x" * 12 + '"}'
        assert encode_payload({"a": "é" * 6})
        assert "larger than 20 bytes encoded (PAYLOAD_MAX_BYTES)" in problems({"a": "é" * 7})[0]
        with pytest.raises(InvalidJob, match="larger than 10 bytes"):
            encode_result("x" * 9)


def bomb() -> Any:
    value: Any = [1]
    for _ in range(40):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x" * 10_000_000},
        {"a": list(range(3_000_000))},
        {"a": ["é" * 1000] * 10_000},
        {"a": [{"b": 2.0**70}] * 500_000},
        {"a": bomb()},
        {"a": [("x" * 10_000_000)] * 1000},
        {"a": {str(number): None for number in range(500_000)}},
    ],
    ids=["string", "integers", "strings", "floats", "bomb", "repeated", "keys"],
)
def test_a_huge_payload_is_refused_in_no_time(value: Any) -> None:
    started = time.thread_time()  # of computing, by this thread
    assert "larger than 262,144 bytes" in problems(value)[0]
    assert time.thread_time() - started < 10


def test_text_that_looks_like_an_escaped_nul_is_fine() -> None:
    assert decode(encode_payload({"a": "\\u0000"})) == {"a": "\\u0000"}


def test_a_container_that_cannot_be_read_is_a_problem_and_no_crash() -> None:
    class Broken(dict[str, int]):
        def items(self) -> Any:
            raise KeyError("lost")

    assert problems({"a": Broken(x=1)}) == ("payload.a: Broken cannot be read: KeyError: 'lost'",)
