"""Hostile text: what an error, a value or a traceback becomes before it is stored or shown."""

import json
import sys
import traceback
from typing import Any

import pytest

from django_jobs.text import (
    ERROR_LENGTH,
    MOST_PLACES,
    TRACEBACK_LENGTH,
    _known_frames,
    describe_exception,
    fingerprint,
    format_traceback,
    scrub,
    shown,
)
from django_jobs.worker import executor


class Hostile(Exception):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __str__(self) -> str:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def storable(text: str) -> bool:
    return "\0" not in text and text.encode("utf-8") is not None


def test_nul_goes_and_lone_surrogates_are_replaced() -> None:
    assert scrub("a\0b\ud800c\udfffd🎉") == "ab\ufffdc\ufffdd🎉"


def test_long_text_is_cut_and_says_how_long_it_was() -> None:
    text = scrub("x" * 5000)
    assert len(text) == ERROR_LENGTH
    assert text.endswith("x… [5,000 characters in all]")
    assert scrub("x" * 50, limit=10) == "x" * 10


@pytest.mark.parametrize("value", [None, 7, b"\xff", Hostile(ValueError()), Hostile(5), object()])
def test_scrubbing_never_raises(value: Any) -> None:
    assert storable(scrub(value))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a message"), "ValueError: a message"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "KeyError: 'key'"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError("a\0b\ud800"), "ValueError: ab\ufffd"),
        (Hostile(ValueError("no")), "Hostile: <its message cannot be read>"),
        (Hostile(RecursionError()), "Hostile: <its message cannot be read>"),
        (Hostile(5), "Hostile: <its message cannot be read>"),
    ],
)
def test_an_exception_is_described_whatever_its_message_does(error: BaseException, said: str) -> None:
    assert describe_exception(error) == said


def test_a_huge_message_is_cut_before_it_is_copied() -> None:
    error = raised(ValueError("x" * 200_000_000))
    assert len(describe_exception(error)) <= ERROR_LENGTH
    assert len(format_traceback(error)) <= TRACEBACK_LENGTH
    assert format_traceback(error).startswith("Traceback (most recent call last):\n")


def test_a_traceback_shows_the_lines_and_the_causes_but_no_variables() -> None:
    def inner() -> None:
        password = "hunter" + "2"
        raise KeyError(len(password))

    try:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        error.add_note("a note")
        text = format_traceback(error)
    assert "hunter2" not in text
    assert text.index("raise KeyError") < text.index("KeyError: 7") < text.index("direct cause") < text.index("outer")
    assert text.endswith("RuntimeError: outer\na note")


def test_a_traceback_shows_the_members_of_a_group() -> None:
    text = format_traceback(raised(ExceptionGroup("several", [ValueError("one"), raised(KeyError("two"))])))
    assert "ExceptionGroup: several (2 sub-exceptions)" in text
    assert "ValueError: one" in text
    assert "KeyError: 'two'" in text


def test_a_long_traceback_keeps_its_start_and_its_end() -> None:
    error = raised(ValueError("the end"))
    for number in range(3):
        error = raised(ExceptionGroup("x" * 1900, [error] * 3 + [raised(ValueError(f"{number}" + "y" * 1900))] * 8))
    error.__cause__ = raised(Hostile("z" * 1_000_000))
    text = format_traceback(error)
    assert len(text) <= TRACEBACK_LENGTH
    assert text.startswith("Traceback")


def test_endless_recursion_and_chains_in_circles_have_tracebacks() -> None:
    def again() -> None:
        again()

    try:
        again()
    except RecursionError as error:
        text = format_traceback(error)
    assert "RecursionError" in text
    assert len(text) <= TRACEBACK_LENGTH
    first, second = raised(ValueError("first")), raised(ValueError("second"))
    first.__cause__, second.__cause__ = second, first
    assert format_traceback(first).endswith("ValueError: first")


def test_a_value_is_shown_on_one_short_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown(["x" * 1000] * 1000)) <= 80
    assert shown(Hostile(ValueError())).startswith("<Hostile instance")
    assert shown(Hostile("two\nlines")) == "two lines"
    assert shown(10**10_000) == "<int>" or len(shown(10**10_000)) <= 80


def failing(error: Exception) -> Exception:
    return raised(error)


def test_failures_of_one_kind_have_one_fingerprint() -> None:
    def one() -> None:
        int("x")

    def other() -> None:
        int("x")

    def failure(function: Any) -> BaseException:
        try:
            function()
        except ValueError as error:
            return error
        raise AssertionError

    same = {fingerprint("a", failure(one)) for _ in range(3)}
    assert len(same) == 1
    assert len(same.pop()) == 32
    kinds = {
        fingerprint("a", failure(one)),
        fingerprint("b", failure(one)),
        fingerprint("a", failure(other)),
        fingerprint("a", failing(KeyError("x"))),
        fingerprint("a", KeyError("x")),
    }
    assert len(kinds) == 5


def test_a_fingerprint_points_at_the_sites_code_and_not_at_a_librarys() -> None:
    import json

    def parse(text: str) -> BaseException:
        try:
            json.loads(text)
        except ValueError as error:
            return error
        raise AssertionError

    def parse_elsewhere(text: str) -> BaseException:
        try:
            json.loads(text)
        except ValueError as error:
            return error
        raise AssertionError

    assert fingerprint("a", parse("{")) == fingerprint("a", parse("[1,"))
    assert fingerprint("a", parse("{")) != fingerprint("a", parse_elsewhere("{"))
    assert "json" in sys.modules


def test_frames_that_were_seen_before_are_written_as_the_first_time() -> None:
    def fail(number: int) -> None:
        values = [1 / number, 2 / (number - 1)]  # the marks below the line are at one or the other
        raise ValueError(values)

    def again(number: int, depth: int) -> None:
        if depth:
            again(number, depth - 1)
        fail(number)

    for _ in range(2):
        for number in (0, 1, 2):  # three places of one function
            for depth in (0, 2, 8, 200):  # the last two have a line that stands for repeated frames
                with pytest.raises((ZeroDivisionError, ValueError)) as caught:
                    again(number, depth)
                frames = "".join(traceback.format_tb(caught.value.__traceback__))
                head, end = "Traceback (most recent call last):\n", describe_exception(caught.value)
                assert format_traceback(caught.value) == head + frames + end


def test_code_that_comes_and_goes_is_not_mistaken_for_another() -> None:
    for number in range(3 * MOST_PLACES):
        functions: dict[str, Any] = {}
        exec(f"def made_{number}():\n    raise ValueError({number})", functions)
        with pytest.raises(ValueError) as caught:
            functions[f"made_{number}"]()
        assert f"in made_{number}\n" in format_traceback(caught.value)
        del functions, caught
    assert len(_known_frames) <= MOST_PLACES


def test_a_traceback_begins_where_the_site_does() -> None:
    """The frames of the worker above the handler say nothing; those of libraries below it do."""
    ours: dict[str, Any] = {}
    exec(compile("def call(handler):\n    handler()", executor.__file__, "exec"), ours)

    def handler() -> None:
        json.loads("no JSON")

    try:
        ours["call"](handler)
    except ValueError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this test is the site's own, too
        places = [line for line in format_traceback(error).splitlines() if line.startswith("  File")]
    assert places[0].endswith("in handler")
    assert "json/decoder.py" in places[-1]


def test_one_that_has_no_frame_of_the_site_is_kept_as_a_whole() -> None:
    with pytest.raises(ValueError) as caught:
        json.loads("no JSON")
    error = caught.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    assert "json/__init__.py" in format_traceback(error)
