"""Lists that stay fast on millions of rows: pages go by key, counts stop at a limit, searches at the newest rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import AutoField, QuerySet
from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy

from . import selection

REFRESH_SECONDS = 5
MOST_COUNTED = 10_000
WINDOW = 100_000
OLDER = "older_than"
NEWER = "newer_than"
SCOPE = "scope"
SORT = "sort"
OLDEST_FIRST = "oldest"
SORTED = 10_000
EVERYTHING = "everything"
NOTHING_FITS = gettext_lazy("Nothing here fits the search and the filters.")


def capped_count(rows: QuerySet[Any]) -> int:
    """Count rows, but no more than MOST_COUNTED + 1."""
    return rows.order_by().values("pk")[: MOST_COUNTED + 1].count()


def count_text(count: int, limit: int | None = None) -> str:
    """Return a capped count as text: `1,234`, or `10,000+` past the limit (MOST_COUNTED)."""
    limit = limit or MOST_COUNTED
    text = number_format(min(count, limit), use_l10n=True, force_grouping=True)
    return f"{text}+" if count > limit else text


def window_floor(rows: QuerySet[Any]) -> Any:
    """Return the key of the oldest of the newest WINDOW rows, or None when there are not more rows than that.

    Numbers are subtracted: to pass over 100,000 rows with their texts takes MariaDB 230 ms. With gaps it is fewer rows.
    """
    if isinstance(rows.model._meta.pk, AutoField):
        newest = rows.order_by("-pk").values_list("pk", flat=True).first() or 0
        return newest - WINDOW + 1 if rows.filter(pk__lte=newest - WINDOW).exists() else None
    return rows.order_by("-pk").values_list("pk", flat=True)[WINDOW - 1 : WINDOW].first()


class KeysetChangeList(ChangeList):
    """A list in the order of the primary key, newest first, that never asks the database to skip rows."""

    count_text: str
    older_url: str | None = None
    newer_url: str | None = None
    window_url: str | None = None
    window_text: str
    sorted_text: str = ""
    empty_text: str = ""  # what a list without rows says
    refused: Sequence[str] = ()
    passes_over: bool = False

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        self.title = str(capfirst(str(self.opts.verbose_name_plural)))

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        """Return the rows that match filters and search, all pages of them."""
        if any("\x00" in value for values in request.GET.lists() for value in values[1]):
            raise IncorrectLookupParameters("NUL")
        self.cursor = {name: request.GET[name] for name in (OLDER, NEWER) if name in request.GET}
        self.everything = request.GET.get(SCOPE) == EVERYTHING
        for parameters in (self.params, self.filter_params):
            for name in (OLDER, NEWER, SCOPE):
                parameters.pop(name, None)
        selection.start(request)
        rows = super().get_queryset(request, *args, **kwargs)
        self.window_text = count_text(WINDOW, WINDOW)
        self.refused = getattr(request, "console_refused", ())
        self.passes_over = getattr(request, "console_passes_over", False)
        if (look := getattr(request, "console_look", None)) is not None:
            if not look.is_complete:
                request.console_window = look.read  # type: ignore[attr-defined]  # the confirmation page says so
                self.window_text = count_text(look.read, look.read)
                self.window_url = self.get_query_string({SCOPE: EVERYTHING})
            return rows
        return self.narrow(request, rows) if self.query or self.filter_params.keys() - {SORT} else rows

    def get_filters(self, request: HttpRequest) -> Any:
        """Return Django's; a lookup that was typed into the address is none of our filters."""
        found = super().get_filters(request)
        if found[2]:
            selection.note(request, None)
        return found

    def narrow(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the newest WINDOW rows only, unless the user asks for everything or the filter has an index."""
        if self.everything or not self.model_admin.needs_window(self):  # type: ignore[attr-defined]
            return rows
        floor = window_floor(self.root_queryset)
        if floor is None:
            return rows
        request.console_window = WINDOW  # type: ignore[attr-defined]  # the confirmation page says so
        selection.note(request, {"pk__gte": floor})
        self.window_url = self.get_query_string({SCOPE: EVERYTHING})
        return rows.filter(pk__gte=floor)

    def get_results(self, request: HttpRequest) -> None:
        """Fetch one page, by key, and a capped count."""
        sort = request.GET.get(SORT, "")
        order = getattr(self.model_admin, "orders", {}).get(sort)
        try:
            page, is_whole = self._sorted(order) if order else self._page(sort == OLDEST_FIRST)
        except (ValueError, ValidationError) as error:
            raise IncorrectLookupParameters(error) from error
        size = self.list_per_page
        self.result_count = len(page) if is_whole else capped_count(self.queryset)
        self.count_text = count_text(self.result_count)
        self.result_list = page
        self.show_admin_actions = bool(page)
        if not page:
            is_narrowed = self.query or self.cursor or self.filter_params.keys() - {SORT}
            self.empty_text = str(NOTHING_FITS if is_narrowed else self.model_admin.empty_text)  # type: ignore[attr-defined]
        self.full_result_count = None
        self.can_show_all = True
        self.multi_page = False
        self.paginator = Paginator(page, size)

    def _page(self, oldest_first: bool) -> tuple[list[Any], bool]:
        """Return a page by key, and whether it is all there is."""
        rows, size = self.queryset, self.list_per_page
        upwards = NEWER in self.cursor or (oldest_first and OLDER not in self.cursor)
        if upwards:
            rows = rows.filter(pk__gt=self.cursor[NEWER]) if NEWER in self.cursor else rows
            page = self._read(rows.order_by("pk"))
            has_newer, has_older = len(page) > size, NEWER in self.cursor
            page = page[:size][::-1]
        else:
            rows = rows.filter(pk__lt=self.cursor[OLDER]) if OLDER in self.cursor else rows
            page = self._read(rows.order_by("-pk"))
            has_newer, has_older = OLDER in self.cursor, len(page) > size
            page = page[:size]
        extra = {SCOPE: EVERYTHING} if self.everything else {}
        if page and has_newer:
            self.newer_url = self.get_query_string({**extra, NEWER: page[0].pk})
        if page and has_older:
            self.older_url = self.get_query_string({**extra, OLDER: page[-1].pk})
        return page[::-1] if oldest_first else page, not (self.cursor or has_newer or has_older)

    def _read(self, rows: QuerySet[Any]) -> list[Any]:
        """Return the rows of a page and one more."""
        first = slice(self.list_per_page + 1)
        if not self.query:
            return list(rows[first])
        # The keys first: where PostgreSQL expects few that match a text, it sorts all of them, whole rows with their joins.
        return list(rows.filter(pk__in=list(rows.values_list("pk", flat=True)[first])))

    def _sorted(self, order: Any) -> tuple[list[Any], bool]:
        """Return the first rows in an order that no index serves, among the newest SORTED of those that match."""
        floor = self.queryset.order_by("-pk").values_list("pk", flat=True)[SORTED - 1 : SORTED].first()
        rows = self.queryset if floor is None else self.queryset.filter(pk__gte=floor)
        page = list(rows.order_by(order, "-pk")[: self.list_per_page + 1])
        if floor is not None:
            self.sorted_text = count_text(SORTED, SORTED)
        return page[: self.list_per_page], floor is None and len(page) <= self.list_per_page


class EmptyChangeList(ChangeList):
    """What Django gives the template of lists, for a page of ours that lists nothing. It reads nothing."""

    formset = None  # Django's view of a list sets it, before Django 6

    @classmethod
    def of(cls, request: HttpRequest, model_admin: Any) -> EmptyChangeList:
        """Return the empty list of an admin."""
        return cls(
            request, model_admin.model, ["__str__"], (), (), None, (), False, model_admin.list_per_page,
            model_admin.list_max_show_all, (), model_admin, (), None,
        )  # fmt: skip

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        # The parameters in the address are those of our page; they filter nothing here.
        self.filter_specs, self.has_filters, self.has_active_filters = [], False, False
        self.clear_all_filters_qs = "?"
        return self.root_queryset.none()
