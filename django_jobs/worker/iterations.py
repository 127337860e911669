"""Loops with a cursor: what they go over and in which order, when the cursor is written, where a later run goes on.

The cursor stands behind an item once the loop's body is done with it, which is when the next one is asked for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Manager, QuerySet
from django.db.models.query import ModelIterable

from django_jobs.db.dialects.words import StepRow
from django_jobs.exceptions import InvalidJob, StepMismatch
from django_jobs.numbers import LONGEST_SECONDS, is_number
from django_jobs.payloads import decode, encode_result, readable
from django_jobs.text import shown

if TYPE_CHECKING:
    from .steps import Place, Steps

PAGE = 2_000  # rows of one query, as many as of `QuerySet.iterator()`
# Rows that are done with at once are read more at a time: a query takes as long as a hundred of these, and none gets old.
LARGEST_PAGE = 8_000
QUICK_SECONDS = 25e-6  # of a row
LOOK_SECONDS = 1.0
_NOWHERE = object()  # no cursor stands there
Pair = tuple[Any, Any]  # the cursor behind an item, and the item


class Rows:
    """The rows of a QuerySet in ascending order of a unique field, a page at a time: memory does not grow with them.

    `cursor_of` gives the cursor behind a row.
    """

    def __init__(self, rows: QuerySet[Any], key: Any) -> None:
        self._name, attribute = _unique_field(rows, key)
        self.cursor_of: Callable[[Any], Any] = attrgetter(attribute)
        self._rows = rows.order_by(self._name)
        self._rows.query.standard_ordering = True  # whatever reverse() said

    def page(self, cursor: Any, size: int) -> Iterable[Any]:
        """Return the next rows behind a cursor, the first ones behind None; they are all read when the first one is asked for.

        They become objects one by one: a page of objects alive together keeps the garbage collector busy.
        """
        rows = self._rows if cursor is None else self._rows.filter(**{f"{self._name}__gt": cursor})
        page: Any = rows[:size]
        if page._prefetch_related_lookups:
            return page  # type: ignore[no-any-return]
        return page._iterable_class(page, chunk_size=size)  # type: ignore[no-any-return]  # fetched at once, not by hundreds

    def _whole_page(self, cursor: Any) -> list[Any]:
        return list(self.page(cursor, PAGE))

    async def abehind(self, cursor: Any) -> AsyncIterator[Pair]:
        """Yield what is behind a cursor, read in the thread of the database work."""
        while page := await sync_to_async(self._whole_page)(cursor):
            for row in page:
                cursor = self.cursor_of(row)
                yield cursor, row


class Items:
    """The items of any iterable; the cursor is a JSON value that `key` gives of an item, or the number of items.

    `cursor_of` is called once for each item, in their order.
    """

    def __init__(self, items: Any, key: Callable[[Any], Any] | None) -> None:
        self._items = items
        self._number = 0
        self._is_read = False
        self.cursor_of: Callable[[Any], Any] = key or self._count

    def _count(self, item: Any) -> int:
        self._number += 1
        return self._number

    def page(self, cursor: Any, size: int) -> Iterable[Any]:
        """Return all that is behind a cursor, and nothing when asked again."""
        if self._is_read:
            return ()
        self._is_read = True
        return self._items if cursor is None else self._behind(cursor)

    def _behind(self, cursor: Any) -> Iterator[Any]:
        """Yield what is behind a cursor; raise StepMismatch when the item of the cursor is not there any more."""
        skipping = _Skipping(cursor, self.cursor_of)
        for item in self._items:
            if skipping.is_behind(item):
                yield item
        skipping.end()

    async def abehind(self, cursor: Any) -> AsyncIterator[Pair]:
        """Yield what is behind a cursor, of an async iterable, too."""
        if not hasattr(self._items, "__aiter__"):
            for item in self.page(cursor, PAGE):
                yield self.cursor_of(item), item
            return
        skipping = _Skipping(cursor, self.cursor_of)
        async for item in self._items:
            if skipping.is_behind(item):
                yield self.cursor_of(item), item
        skipping.end()


class _Skipping:
    """Passes items over until behind the one of the cursor."""

    def __init__(self, cursor: Any, cursor_of: Callable[[Any], Any]) -> None:
        self._cursor = cursor
        self._cursor_of = cursor_of
        self._is_behind = cursor is None

    def is_behind(self, item: Any) -> bool:
        if self._is_behind:
            return True
        self._is_behind = as_json(self._cursor_of(item)) == self._cursor
        return False

    def end(self) -> None:
        if not self._is_behind:
            raise StepMismatch(f"the item at which it stopped ({shown(self._cursor)}) is not among its items any more")


def source_of(given: Any, key: Any, *, is_async: bool) -> Rows | Items:
    """Return what a loop goes over; raise InvalidJob for what it cannot go over."""
    if isinstance(given, Manager):
        given = given.all()
    if isinstance(given, QuerySet):
        return Rows(given, key)
    if key is not None and not callable(key):
        raise InvalidJob(f"key={shown(key)}: give a function of an item, or the name of a unique field for a QuerySet")
    if isinstance(given, Iterable) or (is_async and hasattr(given, "__aiter__")):
        return Items(given, key)
    raise InvalidJob(f"give a QuerySet or an iterable, not {type(given).__name__}")


def _unique_field(rows: QuerySet[Any], key: Any) -> tuple[str, str]:
    """Return the name by which rows are ordered and filtered, and the attribute that holds its value."""
    meta = rows.model._meta
    if rows.query.is_sliced or rows.query.combinator or rows._iterable_class is not ModelIterable:
        raise InvalidJob(
            "give a QuerySet of whole objects, without a slice, values() or union(): it is read page by page"
        )
    if key is None:
        if len(getattr(meta, "pk_fields", [meta.pk])) != 1:
            raise InvalidJob(
                f"{meta.label} has a primary key of several fields; give key= with the name of a unique one"
            )
        return "pk", meta.pk.attname
    try:
        field = meta.get_field(key)
    except FieldDoesNotExist:
        field = None
    if field is None or not getattr(field, "unique", False) or field.null:
        raise InvalidJob(f"key={shown(key)}: give the name of a unique field of {meta.label} that is never NULL")
    return field.name, field.attname


def as_json(cursor: Any) -> Any:
    """Return a cursor as it is recorded: keys that are no JSON as text, as Django's lookups take them."""
    if isinstance(cursor, UUID | Decimal):
        return str(cursor)
    if isinstance(cursor, datetime | date):
        return cursor.isoformat()
    return decode(encode_result(cursor, where="cursor"))


class Loop:
    """A loop of a run. Its cursor is written now and then, at the end of the run, and when the loop is over."""

    def __init__(self, steps: Steps, place: Place, source: Rows | Items, every: float) -> None:
        record = steps.find(place)
        self._steps = steps
        self._place = place
        self._source = source
        self._every = every
        self._key = None if record is None else record.id
        self._cursor = None if record is None else readable(record.result)
        self._is_over = record is not None and record.has_ended
        self._recorded = self._cursor
        self._began = self._written_at = time.monotonic()

    def __str__(self) -> str:
        return self._place.name

    @property
    def is_dirty(self) -> bool:
        """Whether the cursor is to be written."""
        return self._cursor is not self._recorded

    def items(self) -> Iterator[Any]:
        """Yield the items that no run is done with yet."""
        if self._is_over:
            return
        self._steps.enter(self)
        page, cursor_of, now = self._source.page, self._source.cursor_of, time.monotonic
        next_look = now() + self._pause
        try:
            before: Any = _NOWHERE
            size = PAGE
            while self._cursor is not before:
                before, began = self._cursor, now()
                for item in page(before, size):
                    cursor = cursor_of(item)  # before the body: a row that it deletes forgets its primary key
                    yield item
                    self._cursor = cursor
                    if now() >= next_look:
                        self.look()
                        next_look = now() + self._pause
                is_quick = now() - began < size * QUICK_SECONDS
                size = min(2 * size, LARGEST_PAGE) if is_quick else PAGE
            self.write(has_ended=True)
        except StepMismatch as error:
            self._steps.lose_cursor(self._place, error)
        finally:
            self._steps.leave_loop(self)

    @property
    def _pause(self) -> float:
        return min(self._every, LOOK_SECONDS)

    def look(self) -> None:
        """Write the cursor if it is time to; raise Cancelled, or LeaseLost."""
        if time.monotonic() - self._written_at >= self._every:
            self.write()
        self._steps.check()

    def write(self, *, has_ended: bool = False) -> None:
        """Write the cursor."""
        cursor = self._steps.as_cursor(self._place, self._cursor)
        if self._key is None:
            text = None if cursor is None else encode_result(cursor)
            row = StepRow(
                *self._place,
                result=self._steps.stored(text),
                seconds=time.monotonic() - self._began,
                has_ended=has_ended,
            )
            self._key = self._steps.record(row)
        else:
            self._steps.change(self._key, result=cursor, has_ended=has_ended)
        self._is_over = has_ended
        self._recorded = self._cursor
        self._written_at = time.monotonic()


class AsyncLoop:
    """A loop of a coroutine handler. No generator, for one that is left by `break` would end some time later only."""

    def __init__(self, steps: Steps, place: Place, given: Any, key: Any, every: Any) -> None:
        self._steps = steps
        self._place = place
        self._given = (given, key, every)
        self._loop: Loop | None = None
        self._pairs: AsyncIterator[Pair] | None = None
        self._item: Pair | None = None
        self._next_look = 0.0

    def __aiter__(self) -> AsyncLoop:
        return self

    def __del__(self) -> None:
        if self._loop is not None:
            self._steps.leave_loop(self._loop)

    async def __anext__(self) -> Any:
        loop = self._loop or await self._begin()
        if loop._is_over:
            raise StopAsyncIteration
        assert self._pairs is not None
        if self._item is not None:
            loop._cursor = self._item[0]
            if time.monotonic() >= self._next_look:
                await sync_to_async(loop.look)()
                self._next_look = time.monotonic() + loop._pause
        try:
            self._item = await anext(self._pairs)
        except StopAsyncIteration:
            await sync_to_async(loop.write)(has_ended=True)
            self._steps.leave_loop(loop)
            raise
        except StepMismatch as error:
            self._steps.lose_cursor(self._place, error)
        return self._item[1]

    async def _begin(self) -> Loop:
        await self._steps.aload()
        self._loop = loop = self._steps.loop(self._place, *self._given)
        if not loop._is_over:
            self._steps.enter(loop)
        self._pairs = loop._source.abehind(loop._cursor)
        self._next_look = time.monotonic() + loop._pause
        return loop


def is_pause(value: Any) -> bool:
    """Say whether a value is a number of seconds between two writes of a cursor."""
    return is_number(value, 0, LONGEST_SECONDS)
