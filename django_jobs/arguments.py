"""How a handler takes its payload: as arguments, a key each, or as a whole. Read from its signature when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.names import did_you_mean
from django_jobs.text import shown

LIST = "payloads"
WHOLE = "payload"  # a parameter of this name gets the whole payload
CONTEXT = "context"
_MOST_SHOWN = 20  # keys of a payload that has nothing to do with the handler
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The keys that a handler takes from a payload as its arguments.

    A payload that fits is one with which Python would make the call; what the values are is the handler's business.
    """

    __slots__ = ("_call", "_known", "_refused", "_required", "_signature")

    def __init__(self, call: str, signature: Signature, refused: frozenset[str] = frozenset()) -> None:
        """Keep what the payload's keys may be.

        Args:
            call: the handler as it is declared, for messages.
            signature: its parameters without the context.
            refused: keys that `**rest` cannot take, because the context has that name.
        """
        self._signature = signature
        by_name = self.by_name()
        takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in signature.parameters.values())
        self._call = call
        self._refused = refused
        self._required = frozenset(one.name for one in by_name if one.default is Parameter.empty)
        self._known = None if takes_any else frozenset(one.name for one in by_name)

    def problems(self, payload: Mapping[str, Any]) -> list[str]:
        """Return why the handler cannot be called with a payload's keys; nothing when it can."""
        keys = payload.keys()
        if self._required <= keys and (keys.isdisjoint(self._refused) if self._known is None else keys <= self._known):
            return []
        known = self._required if self._known is None else self._known
        free = known - keys
        missing = [
            f"payload: {name!r} is missing, for {self._call}"
            + (" (a handler that wants a context says takes_context=True)" if name == CONTEXT else "")
            for name in self._signature.parameters
            if name in self._required and name not in keys
        ]
        too_much = [
            name for name in keys if name in self._refused or (self._known is not None and name not in self._known)
        ]
        return missing + [
            f"payload: {shown(name)} is too much, for {self._call}.{did_you_mean(name, free)}"
            for name in too_much[:_MOST_SHOWN]
        ]

    def by_name(self) -> list[Parameter]:
        """Return the parameters that take a key of the payload, in the order in which they are declared."""
        return [one for one in self._signature.parameters.values() if one.kind in _BY_NAME]

    @property
    def takes_any(self) -> bool:
        """Whether there is a `**rest` for further keys."""
        return self._known is None

    def payload(self, *values: Any, **named: Any) -> dict[str, Any]:
        """Return the payload with which the handler is called as if with these arguments; raise InvalidJob as a submit would."""
        try:
            payload = self._signature.bind_partial(*values).arguments
        except TypeError as error:
            raise InvalidJob(f"payload: {error}, for {self._call}") from None
        if any(
            one.kind is Parameter.VAR_POSITIONAL and one.name in payload for one in self._signature.parameters.values()
        ):
            raise InvalidJob(f"payload: more arguments by position than names for them, for {self._call}")
        if twice := payload.keys() & named.keys():
            raise InvalidJob(*(f"payload: {name!r} is given twice, for {self._call}" for name in sorted(twice)))
        payload |= named
        if problems := self.problems(payload):
            raise InvalidJob(*problems)
        return payload


def arguments_of(function: Callable[..., Any], takes_context: bool) -> Arguments | None:
    """Return the arguments of a handler, None when it takes the whole payload: its parameter is called `payload`.

    So does one whose signature nobody can read, as of some builtins. Raises InvalidJob for a function that no worker could call.
    """
    signature = _readable_signature(function)
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    call = _shown_call(function, signature)
    refused: frozenset[str] = frozenset()
    if takes_context:
        context = parameters[0] if parameters else None
        if context is None or context.kind not in (*_BY_POSITION, Parameter.VAR_POSITIONAL) or context.name == WHOLE:
            raise InvalidJob(
                f"{call} cannot be called by a worker, which gives it the context first: define it with a first parameter"
                " 'context', or leave out takes_context=True"
            )
        if context.kind in _BY_POSITION:
            del parameters[0]
        if context.kind is Parameter.POSITIONAL_OR_KEYWORD:
            refused = frozenset({context.name})
    if any(one.name == WHOLE and one.kind in (*_BY_POSITION, Parameter.KEYWORD_ONLY) for one in parameters):
        _check_whole(call, parameters, takes_context)
        return None
    if by_position := [
        one.name for one in parameters if one.kind is Parameter.POSITIONAL_ONLY and one.default is Parameter.empty
    ]:
        raise InvalidJob(
            f"{call} cannot be called by a worker, which names each argument, but {by_position[0]!r} is taken by position only"
        )
    return Arguments(call, signature.replace(parameters=parameters), refused)


def check_takes_whole(function: Callable[..., Any], takes_context: bool) -> None:
    """Raise InvalidJob when a function cannot be called with the whole payload, whatever its parameter is called."""
    signature = _readable_signature(function, follow_wrapped=False)
    arguments = (CONTEXT, WHOLE) if takes_context else (WHOLE,)
    if signature is None or _takes(signature, arguments):
        return
    hint = ""
    if takes_context and _takes(signature, (WHOLE,)):
        hint = ", or leave out takes_context=True"
    elif not takes_context and _takes(signature, (CONTEXT, WHOLE)):
        hint = ", or give takes_context=True, which calls it with (context, payload)"
    name = _name_of(function)
    raise InvalidJob(
        f"{_shown_call(function, signature)} cannot be called by a worker, which calls {name}({', '.join(arguments)}):"
        f" define it so{hint}"
    )


def check_takes_list(function: Callable[..., Any], takes_context: bool) -> None:
    """Raise InvalidJob when a function cannot be called with one list, of payloads or of contexts."""
    signature = _readable_signature(function)
    if signature is None or _takes(signature, (LIST,)):
        return
    what = "contexts" if takes_context else LIST
    raise InvalidJob(
        f"{_shown_call(function, signature)} cannot be called by a worker, which calls a bulk handler with one list:"
        f" define it as {_name_of(function)}({what})"
    )


def _check_whole(call: str, parameters: list[Parameter], takes_context: bool) -> None:
    """Raise InvalidJob unless the whole payload is the first argument, and all others may be left out."""
    first, *others = parameters
    if first.name != WHOLE or first.kind is Parameter.KEYWORD_ONLY:
        hint = "" if takes_context else ", or give takes_context=True for a context before it"
        raise InvalidJob(
            f"{call} cannot be called by a worker: its 'payload' gets the whole payload and has to come first; put it there{hint}"
        )
    needed = [one.name for one in others if one.default is Parameter.empty and one.kind in (*_BY_POSITION, *_BY_NAME)]
    if needed:
        raise InvalidJob(
            f"{call} cannot be called by a worker: its 'payload' gets the whole payload, so there is nothing for"
            f" {', '.join(map(repr, needed))}; name each key instead of 'payload', or give a default"
        )


def _readable_signature(function: Callable[..., Any], follow_wrapped: bool = True) -> Signature | None:
    """Return how a function is called, None when nobody can say; raise InvalidJob for a generator, which runs nothing.

    A decorator that passes all on, `(*args, **kwargs)`, is called as what it wraps; another one may be called otherwise.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidJob(
            f"{_name_of(function)}() is a generator function: a call of it runs nothing; return the result instead of yielding it"
        )
    try:
        if follow_wrapped:
            function = inspect.unwrap(function, stop=lambda wrapper: not _passes_all_on(wrapper))
        return inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):  # some builtins have none
        return None


def _passes_all_on(wrapper: Callable[..., Any]) -> bool:
    kinds = [one.kind for one in inspect.signature(wrapper, follow_wrapped=False).parameters.values()]
    return kinds == [Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD]


def _takes(signature: Signature, arguments: tuple[str, ...]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _shown_call(function: Callable[..., Any], signature: Signature) -> str:
    """Return `name(a, b=…)`. A default is not shown: to write a queryset down is to run it."""
    stars: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    parameters = (
        f"{stars.get(one.kind, '')}{one.name}{'' if one.default is Parameter.empty else '=…'}"
        for one in signature.parameters.values()
    )
    return f"{_name_of(function)}({', '.join(parameters)})"
