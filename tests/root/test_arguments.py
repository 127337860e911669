"""Arguments: how a signature is read, which payloads fit it, and what is said of those that do not."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from django_jobs import job, submit
from django_jobs.arguments import Arguments, arguments_of
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry


def welcome(user_id: int, template: str = "plain") -> None: ...
def keywords_only(*, user_id: int, template: str = "plain") -> None: ...
def rest(user_id: int, *args: Any, **rest: Any) -> None: ...
def nothing() -> None: ...
def whole(payload: dict[str, Any], more: int = 1) -> None: ...
def whole_by_position(payload: dict[str, Any], /) -> None: ...
def with_context(context: Any, user_id: int) -> None: ...
def with_context_alone(context: Any) -> None: ...
def with_context_and_rest(context: Any, **rest: Any) -> None: ...
def with_nameless_context(context: Any, /, **rest: Any) -> None: ...
def with_spread_context(*args: Any, user_id: int) -> None: ...
def with_whole(context: Any, payload: dict[str, Any]) -> None: ...


class Method:
    def run(self, user_id: int) -> None: ...
    def __call__(self, user_id: int) -> None: ...


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def gives_a_client(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(user_id: int) -> Any:
        return function("client", user_id)

    return inner


@gives_a_client
def with_client(client: Any, user_id: int) -> None: ...


class Unspeakable:
    def __repr__(self) -> str:
        raise AssertionError("a default is not to be shown: a queryset would run")


def unspeakable(user_id: int, default: Any = Unspeakable()) -> None: ...  # noqa: B008


def of(function: Callable[..., Any], takes_context: bool = False) -> Arguments:
    arguments = arguments_of(function, takes_context)
    assert arguments is not None
    return arguments


FITS = [
    (welcome, False, {"user_id": 1}),
    (welcome, False, {"user_id": 1, "template": "rich"}),
    (keywords_only, False, {"user_id": 1}),
    (rest, False, {"user_id": 1, "any-thing": 2, "args": 3}),
    (nothing, False, {}),
    (with_context, True, {"user_id": 1}),
    (with_context_alone, True, {}),
    (with_context_and_rest, True, {"a": 1}),
    (with_nameless_context, True, {"context": 1}),
    (with_spread_context, True, {"user_id": 1}),
    (Method().run, False, {"user_id": 1}),
    (Method(), False, {"user_id": 1}),
    (functools.partial(welcome, template="rich"), False, {"user_id": 1}),
    (passes_on(welcome), False, {"user_id": 1}),
    (passes_on(passes_on(with_context)), True, {"user_id": 1}),
    (with_client, False, {"user_id": 1}),
    (passes_on(with_client), False, {"user_id": 1}),
]
MISFITS = [
    (welcome, False, {}, ["payload: 'user_id' is missing, for welcome(user_id, template=…)"]),
    (
        welcome,
        False,
        {"usr_id": 1, "template": "rich"},
        [
            "payload: 'user_id' is missing, for welcome(user_id, template=…)",
            "payload: 'usr_id' is too much, for welcome(user_id, template=…). Did you mean 'user_id'?",
        ],
    ),
    (nothing, False, {"a": 1}, ["payload: 'a' is too much, for nothing()."]),
    (rest, False, {"args": 1}, ["payload: 'user_id' is missing, for rest(user_id, *args, **rest)"]),
    (with_context_alone, True, {"context": 1}, ["payload: 'context' is too much, for with_context_alone(context)."]),
    (
        with_context_and_rest,
        True,
        {"context": 1},
        ["payload: 'context' is too much, for with_context_and_rest(context, **rest)."],
    ),
    (
        with_context,
        False,
        {"user_id": 1},
        [
            "payload: 'context' is missing, for with_context(context, user_id) (a handler that wants a context says"
            " takes_context=True)"
        ],
    ),
    (unspeakable, False, {}, ["payload: 'user_id' is missing, for unspeakable(user_id, default=…)"]),
    (
        passes_on(welcome),
        False,
        {"a": 1, "user_id": 1},
        ["payload: 'a' is too much, for welcome(user_id, template=…)."],
    ),
]


@pytest.mark.parametrize(("function", "takes_context", "payload"), FITS)
def test_a_payload_that_python_could_call_with_fits(
    function: Callable[..., Any], takes_context: bool, payload: dict[str, Any]
) -> None:
    assert of(function, takes_context).problems(payload) == []
    function(*([None] if takes_context else []), **payload)


@pytest.mark.parametrize(("function", "takes_context", "payload", "said"), MISFITS)
def test_what_does_not_fit_is_named(
    function: Callable[..., Any], takes_context: bool, payload: dict[str, Any], said: list[str]
) -> None:
    assert of(function, takes_context).problems(payload) == said
    with pytest.raises(TypeError):
        function(*([None] if takes_context else []), **payload)


def test_of_a_payload_for_something_else_twenty_keys_are_named() -> None:
    assert len(of(nothing).problems({f"key {number}": 1 for number in range(10_000)})) == 20


@pytest.mark.parametrize(
    ("function", "takes_context"),
    [
        (whole, False),
        (whole_by_position, False),
        (with_whole, True),
        (passes_on(whole), False),
        (dict, False),  # nobody can say
    ],
)
def test_a_parameter_called_payload_gets_the_whole(function: Callable[..., Any], takes_context: bool) -> None:
    assert arguments_of(function, takes_context) is None


def positional(user_id: int, /) -> None: ...
def payload_second(template: str = "plain", payload: Any = None) -> None: ...
def payload_by_name(*, payload: Any) -> None: ...
def payload_and_more(payload: Any, user_id: int) -> None: ...
def context_by_name(*, context: Any) -> None: ...
def yields(user_id: int) -> Any:
    yield user_id


@pytest.mark.parametrize(
    ("function", "takes_context", "said"),
    [
        (positional, False, "'user_id' is taken by position only"),
        (payload_second, False, "has to come first; put it there, or give takes_context=True"),
        (payload_by_name, False, "has to come first"),
        (payload_and_more, False, "nothing for 'user_id'; name each key instead of 'payload', or give a default"),
        (with_whole, False, "or give takes_context=True for a context before it"),
        (whole, True, "or leave out takes_context=True"),
        (nothing, True, "gives it the context first"),
        (context_by_name, True, "gives it the context first"),
        (yields, False, "is a generator function"),
    ],
)
def test_a_function_that_no_worker_could_call_is_refused(
    function: Callable[..., Any], takes_context: bool, said: str
) -> None:
    with pytest.raises(InvalidJob, match=said):
        arguments_of(function, takes_context)


# --- of a decorated handler


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    registry.forget("words.welcome")


def test_a_handler_makes_payloads_of_its_arguments() -> None:
    decorated = job("words.welcome")(welcome)
    assert decorated.payload(7) == {"user_id": 7}
    assert decorated.payload(7, template="rich") == {"user_id": 7, "template": "rich"}
    assert of(rest).payload(7, a=1) == {"user_id": 7, "a": 1}
    assert of(with_context, True).payload(7) == {"user_id": 7}
    with pytest.raises(InvalidJob, match="'user_id' is missing, for welcome"):
        decorated.payload()  # type: ignore[call-arg]
    with pytest.raises(InvalidJob, match=r"'usr_id' is too much, for welcome.*Did you mean 'user_id'"):
        decorated.payload(usr_id=7)  # type: ignore[call-arg]
    with pytest.raises(InvalidJob, match="'user_id' is given twice"):
        decorated.payload(7, user_id=7)  # type: ignore[misc]
    with pytest.raises(InvalidJob, match="too many positional arguments, for welcome"):
        decorated.payload(7, "rich", 9)  # type: ignore[call-arg]
    with pytest.raises(InvalidJob, match="more arguments by position"):
        of(rest).payload(7, 8)


def test_one_that_takes_the_whole_gives_it_back() -> None:
    decorated = job("words.welcome")(whole)
    assert decorated.payload({"a": 1}) == {"a": 1}


def test_what_does_not_fit_is_refused_before_the_database_is_asked() -> None:
    decorated = job("words.welcome")(welcome)
    with pytest.raises(InvalidJob, match=r"'usr_id' is too much.*Did you mean 'user_id'"):
        decorated.submit({"usr_id": 7})
    with pytest.raises(InvalidJob, match="'user_id' is missing"):
        submit("words.welcome")


def test_a_schedule_of_its_own_has_no_payload() -> None:
    with pytest.raises(InvalidJob, match=r"'user_id' is missing.*a schedule of @job has no payload"):
        job("words.welcome", every=60)(welcome)
    assert registry.find("words.welcome") is None
