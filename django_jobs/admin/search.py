"""Search by words and by `key:value`, in columns and in payloads, metadata, results and errors, the newest rows first.

No index serves the content of a job, and none shall: it would cost every submit. So the rows are read in steps, newest first,
until enough were found, enough were read, or the time is up; `Look` says how far it came. What REDACT masks is never found, for
the answer would tell it.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast, Lower
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.timezone import is_naive, make_aware

from django_jobs.handlers import encrypts_any
from django_jobs.masking import MASK, masked

MOST_FOUND = 1_000
STEP, LARGEST_STEP = 2_500, 20_000  # rows; what the first steps take says how large the next ones may be
ROOTS = ("payload", "metadata", "result")
COLUMNS = {
    "id": "id",
    "type": "job_type",
    "queue": "queue",
    "status": "status",
    "worker": "worker_id",
    "key": "unique_key",
    "limit": "limit_key",
    "fair": "fair_key",
}
OWN = ("job_type", "error")  # of a dead letter as of a job
TIMES = {"after": "created_at__gte", "before": "created_at__lt"}
_TOKEN = re.compile(r"([A-Za-z_][\w.-]*):(.+)", re.DOTALL)
_PLAIN = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]+")  # what JSON writes as it is, whoever encodes it
Fits = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at the newest rows found: keys, how many rows were read, and whether these were all there are."""

    keys: list[Any]
    read: int
    is_complete: bool


@dataclass(kw_only=True)
class Search:
    """A search as it was typed: every term must be true.

    Args:
        prefix: the path from the rows that are searched to their job, such as `job__`.
        may_see: whether payloads, results and metadata may be searched.

    `where` is what the database decides; `fits` decide about the values of a row that it lets through. `refused` are the terms
    that say nothing, or that the user may not ask. `lookups` are `where` as values of JSON; None where they cannot say it.
    `passes_over` says whether payloads and results were asked that may be encrypted, in which the database finds nothing.
    """

    text: str
    may_see: bool
    prefix: str = ""
    where: Q = field(default_factory=Q)
    aliases: dict[str, Any] = field(default_factory=dict)
    fits: list[Fits] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lookups: dict[str, Any] | None = field(default_factory=dict)
    passes_over: bool = False

    def __post_init__(self) -> None:
        for token in _tokens(self.text):
            match = _TOKEN.fullmatch(token)
            if match is None:
                self._add_words(token)
            else:
                self._add_pair(match[1], match[2])

    def narrow(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows that may fit, as far as the database can tell."""
        narrowed: QuerySet[Any] = rows.alias(**self.aliases).filter(self.where)
        return narrowed

    def look(self, rows: QuerySet[Any], *, most: int | None, seconds: float) -> Look:
        """Read rows, the newest first, return those that fit: of `most` rows at most (None: all), in about so many seconds."""
        size = STEP
        every = rows.model._default_manager.using(rows.db).order_by("-pk").values_list("pk", flat=True)
        wanted = self.narrow(rows).order_by("-pk").values("pk", *self._columns())
        began = time.monotonic()
        keys: list[Any] = []
        read = 0
        while True:
            size = min(size, most - read) if most else size
            floor = every[size - 1 : size].first()
            for values in wanted.filter(pk__gte=floor) if floor is not None else wanted:
                # Masked before it is compared: else a search would find out, letter by letter, what a mask hides.
                if all(fits({name: masked(value) for name, value in values.items()}) for fits in self.fits):
                    keys.append(values["pk"])
            read += size
            is_over = floor is None
            spent = time.monotonic() - began
            if is_over or len(keys) >= MOST_FOUND or (most and read >= most) or spent > seconds:
                return Look(keys=keys[:MOST_FOUND], read=read, is_complete=is_over and len(keys) <= MOST_FOUND)
            every, wanted = every.filter(pk__lt=floor), wanted.filter(pk__lt=floor)
            if spent < seconds / 8:
                size = min(2 * size, LARGEST_STEP)

    def _columns(self) -> list[str]:
        names = ("id", "job_type", "unique_key", *(ROOTS if self.may_see else ()))
        return list(dict.fromkeys([*(self._path(name) for name in names), "error"]))

    def _path(self, name: str) -> str:
        return name if name in OWN else f"{self.prefix}{name}"

    def _add_pair(self, name: str, value: str) -> None:
        if name in TIMES:
            moment = _moment(value)
            if moment is None:
                self.refused.append(f"{name}:{value}")
            else:
                self.where &= Q(**{f"{self.prefix}{TIMES[name]}": moment})
                self._note(TIMES[name], moment.isoformat())
        elif name == "error":
            self.where &= self._like("error", value)
            self.lookups = None
        elif name in COLUMNS:
            self.where &= Q(**{self._path(COLUMNS[name]): value})
            self._note(COLUMNS[name], value)
        elif self.may_see:
            self._add_key(name.split("."), value)
        else:
            self.refused.append(f"{name}:{value}")

    def _note(self, name: str, value: str) -> None:
        if self.lookups is None or name in self.lookups:  # two values of one column: nothing fits both
            self.lookups = None
        else:
            self.lookups[self._path(name)] = value

    def _add_key(self, names: list[str], wanted: str) -> None:
        """Search for a value under a path of keys: of the payload or the metadata, unless the first one names where."""
        is_named = names[0] in ROOTS and len(names) > 1
        roots = [f"{self.prefix}{root}" for root in ((names[0],) if is_named else ("payload", "metadata"))]
        path = names[1:] if is_named else names
        may_be = [self._like_json(root, path[-1]) & self._like_json(root, wanted) for root in roots]
        if all(may_be):
            self.where &= Q(*may_be, _connector=Q.OR)
        self.passes_over |= names[0] != "metadata" and encrypts_any()
        self.fits.append(lambda values: any(_is(one, wanted) for root in roots for one in _at(values[root], path)))

    def _add_words(self, text: str) -> None:
        """Search for words in type, error and, where they may be seen, all values; or for the start of an id or key."""
        roots = [f"{self.prefix}{root}" for root in ROOTS if self.may_see]
        self.passes_over |= bool(roots) and encrypts_any()
        starts = [f"{self.prefix}id", f"{self.prefix}unique_key"]
        may_be = [
            self._like("job_type", text),
            self._like("error", text),
            *(self._like_json(root, text) for root in roots),
        ]
        if all(may_be):
            self.where &= Q(*(Q(**{f"{name}__startswith": text}) for name in starts), *may_be, _connector=Q.OR)
        self.fits.append(
            lambda values: (
                any(str(values[name] or "").startswith(text) for name in starts)
                or any(_contains(values[name], text) for name in ("job_type", "error", *roots))
            )
        )

    def _like(self, path: str, text: str, expression: Any = None) -> Q:
        # Lower(), because our columns have exact collations, in which `icontains` tells cases apart on some databases.
        name = f"low_{path.replace('__', '_')}"
        self.aliases[name] = Lower(expression or path)
        return Q(**{f"{name}__contains": text.lower()})

    def _like_json(self, path: str, text: str) -> Q:
        """Return what JSON text contains at least if it contains this; empty where it may be written in several ways."""
        plain = max(_PLAIN.findall(text), key=len, default="")
        return self._like(path, plain, Cast(path, TextField())) if plain else Q()


def term_of(path: str, value: Any) -> str:
    """Return the search that finds the rows with a value under a path; empty for a value that a search cannot name."""
    if value is None or isinstance(value, dict | list) or not _TOKEN.fullmatch(f"{path}:x") or value in ("", MASK):
        return ""
    return shlex.quote(f"{path}:{_text(value) if not isinstance(value, str) else value}")


def _tokens(text: str) -> list[str]:
    """Split at blanks that are not quoted; a quote without an end stands for itself."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _moment(text: str) -> datetime | None:
    try:
        found = parse_datetime(text) or parse_date(text)
    except ValueError:
        return None
    if found is None:
        return None
    moment = found if isinstance(found, datetime) else datetime(found.year, found.month, found.day)
    return make_aware(moment) if is_naive(moment) else moment


def _at(value: Any, names: list[str]) -> Iterator[Any]:
    """Yield what stands under a path of keys; of a list, what stands there in each of its items."""
    if isinstance(value, list):
        for item in value:
            yield from _at(item, names)
    elif not names:
        yield value
    elif isinstance(value, dict) and names[0] in value:
        yield from _at(value[names[0]], names[1:])


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value)).lower()


def _is(value: Any, wanted: str) -> bool:
    return not isinstance(value, dict) and _text(value) == wanted.lower()


def _contains(value: Any, text: str) -> bool:
    if isinstance(value, dict):
        return any(text.lower() in _text(key) or _contains(item, text) for key, item in value.items())
    if isinstance(value, list):
        return any(_contains(item, text) for item in value)
    return value is not None and text.lower() in _text(value)
