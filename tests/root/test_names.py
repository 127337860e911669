"""Names: which job types, queues, ids and keys are refused, and with which words."""

from typing import Any

import pytest

from django_jobs import names
from django_jobs.names import did_you_mean, id_problem, job_type_problem, queue_problem, unique_key_problem


@pytest.mark.parametrize("name", ["a", "shop.jobs.settle_order", "email.welcome", "a:b/c-d", "m.<locals>.f", "x" * 200])
def test_a_sound_job_type_has_no_problem(name: str) -> None:
    assert job_type_problem(name) is None


@pytest.mark.parametrize("check", [job_type_problem, queue_problem, id_problem, unique_key_problem])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        (" a", "nor start or end with a blank"),
        ("a\n", "nor start or end with a blank"),
        ("x" * 201, "it has 201 characters; at most"),
        (None, "give a string, not NoneType"),
        (7, "give a string, not int"),
        (b"a", "give a string, not bytes"),
    ],
)
def test_no_name_is_empty_blank_long_or_no_string(check: Any, value: Any, said: str) -> None:
    assert said in check(value)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\x7fb", "a\ud800b", "a\u2028b"])
def test_no_name_has_characters_that_cannot_be_printed(value: str) -> None:
    for check in (job_type_problem, queue_problem, id_problem, unique_key_problem):
        assert "cannot be printed" in (check(value) or "")


def test_queues_and_job_types_are_plain_and_ids_are_free() -> None:
    assert queue_problem("a;drop") == "queue 'a;drop': use letters, digits and _ - . :"
    assert queue_problem("a/b") == "queue 'a/b': use letters, digits and _ - . :"
    assert queue_problem("größe") is not None
    assert job_type_problem("a b") == "job_type 'a b': use letters, digits and _ - . : /"
    assert id_problem("order 7 / größe 🎉") is None
    assert unique_key_problem("welcome:7; x") is None


def test_lengths_are_limited() -> None:
    assert queue_problem("x" * names.MAX_QUEUE) is None
    assert "at most 64" in (queue_problem("x" * 65) or "")
    assert "at most 64" in (id_problem("x" * 65) or "")
    assert "at most 200" in (unique_key_problem("x" * 201) or "")
    assert len(id_problem("x" * 10_000) or "") < 200


def test_the_nearest_known_word_is_suggested() -> None:
    assert did_you_mean("prioriy", ["priority", "queue"]) == " Did you mean 'priority'?"
    assert did_you_mean("zzz", ["priority", "queue"]) == ""
    assert did_you_mean(7, ["priority"]) == ""
