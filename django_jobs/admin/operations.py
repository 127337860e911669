"""Do something to the selected rows or to all that match: permission, confirmation, message and log entry.

A few rows are moved at once. Many, or those that are to be moved at a rate, become an operation, which workers carry out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.moved import CHUNK, Moved
from django_jobs.lifecycle.operations import FASTEST, MOST_IDS, SLOWEST, begin
from django_jobs.models import Operation, OperationKind
from django_jobs.text import shown

from .base import ConsoleAdmin
from .paging import NEWER, OLDER, capped_count, count_text
from .selection import noted

SECONDS_PER_REQUEST = 20.0  # a proxy in front of the site gives up not much later
LOGGED_ONE_BY_ONE = 200
KEYS_AT_ONCE = 10_000
SAMPLE = 10


class NoOptions(forms.Form):
    """An act without options."""


class ReplayForm(forms.Form):
    """Options of a replay."""

    per_second = forms.FloatField(
        label=gettext_lazy("At most per second"),
        min_value=SLOWEST,
        max_value=FASTEST,
        required=False,
        help_text=gettext_lazy(
            "A worker moves so many each second, so that they do not overrun what failed; you can pause it. Empty: all at once."
        ),
    )
    from_start = forms.BooleanField(
        label=gettext_lazy("From the start"),
        required=False,
        help_text=gettext_lazy("Do the steps that were done again; otherwise the jobs go on behind them."),
    )


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The rows of one call of a move, the user, and the options of the act's form."""

    ids: Sequence[Any]
    by: Any
    options: dict[str, Any]

    @property
    def from_start(self) -> bool:
        """Whether steps that were done are to be done again."""
        return bool(self.options.get("from_start"))


@dataclass(frozen=True, kw_only=True)
class Act:
    """What an operator can do to rows.

    Args:
        kind: what it is as an operation, which workers make of it when the rows are many or a rate is asked for; None: nothing.
        keywords: the options of the form that are keywords of the operation's move.
        done: the message afterwards, in singular and plural by `number`; it shows that number as `count`.
        needs_confirmation: ask also when the button of a row's own page was pressed; a selection in a list is always asked for.
        is_final: nothing is left of the rows, so that nothing can be shown of them.
        afterwards: how the list's parameters change to show the rows that were done; an empty value takes one away.
    """

    title: Any
    permission: str
    run: Callable[[Chunk], Moved]
    done: Any
    form: type[forms.Form] = NoOptions
    kind: OperationKind | None = None
    keywords: Sequence[str] = ()
    needs_confirmation: bool = False
    is_final: bool = False
    help: Any = ""
    afterwards: Mapping[str, str] = field(default_factory=dict)

    def message(self, count: int) -> str:
        """Return the message about so many rows."""
        return str(self.done % {"number": count, "count": number_format(count)})


class OperatingAdmin(ConsoleAdmin):
    """An admin whose actions are acts."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        # Django looks for whatever is selected; databases refuse to look for some of it.
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        kept = [key for key in selected if self._is_key(key)]
        # Without JavaScript, "all that match" may come without a selected row, which Django's action handling refuses.
        if request.POST.get("select_across") == "1" and not kept:
            kept = [""]
        if kept != selected:
            posted = request.POST.copy()
            posted.setlist(ACTION_CHECKBOX_NAME, kept)
            request.POST = posted  # type: ignore[assignment]
        return super().changelist_view(request, extra_context)

    def _is_key(self, text: str) -> bool:
        """Say whether a row could have this primary key."""
        try:
            self.opts.pk.clean(text, None)
        except ValidationError:
            return False
        return "\x00" not in text

    def operate(self, request: HttpRequest, rows: QuerySet[Any], act: Act) -> HttpResponse | None:
        """Do something to rows, or ask for its options or a confirmation first."""
        self.require(request, act.permission)
        if request.method != "POST":
            raise PermissionDenied
        across = request.POST.get("select_across") == "1"
        confirmed = "confirmed" in request.POST
        form = act.form(request.POST)
        at_once = request.POST.get("back") == "page" and not (across or act.needs_confirmation)
        if form.is_valid() and (confirmed or at_once):
            return self._run(request, rows, act, form.cleaned_data, across)
        if not form.is_valid() and not confirmed and not any(name in request.POST for name in form.fields):
            form = act.form()  # nobody has filled it in yet, so it shows no errors
        return self._confirmation(request, rows, act, form, across)

    def _confirmation(
        self, request: HttpRequest, rows: QuerySet[Any], act: Act, form: forms.Form, across: bool
    ) -> HttpResponse:
        count = capped_count(rows)
        context = {
            "operation": act,
            "is_large": act.kind is not None and count > CHUNK,
            "action": request.POST.get("action", ""),
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "across": across,
            "count": count,
            "count_text": count_text(count),
            "sample": [str(row) for row in rows.order_by("-pk")[:SAMPLE]],
            "has_more": count > SAMPLE,
            "window": getattr(request, "console_window", None) if across else None,
            "form": form,
            "back": request.POST.get("back", ""),
            "back_url": self._back_url(request) or request.get_full_path(),
            "target": request.get_full_path(),
        }
        return self.page(request, "confirm.html", act.title, context)

    def _run(
        self, request: HttpRequest, rows: QuerySet[Any], act: Act, options: dict[str, Any], across: bool
    ) -> HttpResponse | None:
        if act.kind is not None and (options.get("per_second") or _are_many(rows)):
            return self._begin(request, rows, act, options, across)
        named = _named(rows) if act.is_final else None
        moved, seen, is_late = Moved([], {}), 0, False
        deadline = time.monotonic() + SECONDS_PER_REQUEST
        try:
            for ids in _chunks_of(rows):
                if time.monotonic() > deadline:
                    is_late = True
                    break
                moved += act.run(Chunk(ids=ids, by=request.user, options=options))
                seen += len(ids)
        except JobsError as error:
            messages.error(request, str(error))
        gone = 0 if across else max(0, len(set(request.POST.getlist(ACTION_CHECKBOX_NAME))) - seen)
        back = None if act.is_final else self._back_url(request)
        shown_at = "" if back else self._shown_at(request, act)
        self._report(request, act, len(moved.done), len(moved.left) + gone, is_late, shown_at)
        if moved.done:
            self._log(request, act, moved.done, options, across, named)
        return HttpResponseRedirect(back) if back else None

    def _begin(
        self, request: HttpRequest, rows: QuerySet[Any], act: Act, options: dict[str, Any], across: bool
    ) -> HttpResponse | None:
        """Write an operation that workers carry out, and lead to its page."""
        filters = noted(request) if across else None
        keys = [] if filters is not None else list(rows.order_by("pk").values_list("pk", flat=True)[: MOST_IDS + 1])
        try:
            operation = begin(
                act.kind,  # type: ignore[arg-type]
                filters=filters,
                ids=keys[:MOST_IDS] if filters is None else None,
                options={name: options[name] for name in act.keywords if options.get(name) not in (None, "", False)},
                per_second=options.get("per_second"),
                by=request.user,
                address=request.META.get("QUERY_STRING", "") if across else "",
            )
        except JobsError as error:
            messages.error(request, str(error))
            return None
        words = {"title": str(act.title), "count": number_format(operation.total, force_grouping=True)}
        text = _("Began: %(title)s (%(count)s).") % words
        told = " ".join([text, *_told(options), *self._filter_text(request, across)])
        self.write_log(request, [(str(operation.pk), str(operation))], told, Operation)
        url = self.object_url("operation", operation.pk)
        messages.success(request, format_html('{} <a href="{}">{}</a>', text, url, _("Watch it")))
        if len(keys) > MOST_IDS:
            text = _("These are the first %(count)s rows that match. Do it again for the rest.")
            messages.warning(request, text % {"count": number_format(MOST_IDS, force_grouping=True)})
        return HttpResponseRedirect(url) if self.may(request, "view_job") else None

    def _shown_at(self, request: HttpRequest, act: Act) -> str:
        """Return the address of the list that shows the rows that were done; empty when this list does."""
        query = request.GET.copy()
        for name in (OLDER, NEWER):
            query.pop(name, None)
        before = query.urlencode()
        for name, value in act.afterwards.items():
            query.pop(name, None)
            if value:
                query[name] = value
        after = query.urlencode()
        return "" if after == before else f"{self.list_url(str(self.opts.model_name))}?{after}"

    def _report(self, request: HttpRequest, act: Act, done: int, left: int, is_late: bool, shown_at: str) -> None:
        if done and shown_at:
            told = format_html('{} <a href="{}">{}</a>', act.message(done), shown_at, _("Show them"))
            messages.success(request, told)
        elif done:
            messages.success(request, act.message(done))
        if left:
            text = ngettext(
                "%(count)s was left as it is: its state does not allow this.",
                "%(count)s were left as they are: their state does not allow this.",
                left,
            )
            messages.warning(request, text % {"count": number_format(left)})
        if is_late:
            messages.warning(request, _("Time was up before all were done. Do it again for the rest."))
        if not done and not left:
            messages.warning(request, _("Nothing matched, nothing was done."))

    def _back_url(self, request: HttpRequest) -> str | None:
        """Return the address of the row's page when its button was pressed."""
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if request.POST.get("back") == "page" and len(selected) == 1:
            return self.object_url(str(self.opts.model_name), selected[0])
        return None

    def _log(
        self,
        request: HttpRequest,
        act: Act,
        ids: Sequence[Any],
        options: dict[str, Any],
        across: bool,
        named: dict[Any, str] | None,
    ) -> None:
        """Write who did what: an entry for each row that was changed, or one for all when they are many."""
        done = act.message(len(ids))
        if named is None:
            named = _named(self.get_queryset(request).filter(pk__in=ids)) if len(ids) <= LOGGED_ONE_BY_ONE else {}
        rows: list[tuple[str | None, str]] = [(str(pk), named[pk]) for pk in ids if pk in named]
        self.write_log(
            request, rows or [(None, done)], " ".join([done, *_told(options), *self._filter_text(request, across)])
        )

    def _filter_text(self, request: HttpRequest, across: bool) -> list[str]:
        """Return which rows were meant, where all were that match."""
        if not across:
            return []
        return [_("All that matched %(filter)s.") % {"filter": request.META.get("QUERY_STRING") or "-"}]

    def write_log(
        self,
        request: HttpRequest,
        rows: Sequence[tuple[str | None, str]],
        message: str,
        model: type[Model] | None = None,
        flag: int = CHANGE,
    ) -> None:
        """Write a log entry with one message for each (primary key, description) of the admin's model, or of another one."""
        kind = ContentType.objects.get_for_model(model or self.model)
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=request.user.pk or 0,
                content_type=kind,
                object_id=pk,
                object_repr=description[:200],
                action_flag=flag,
                change_message=message,
            )
            for pk, description in rows
        )


def _named(rows: QuerySet[Any]) -> dict[Any, str]:
    """Return the names of rows by their keys, where they are so few that each gets a log entry."""
    found = {row.pk: str(row) for row in rows.order_by("pk")[: LOGGED_ONE_BY_ONE + 1]}
    return found if len(found) <= LOGGED_ONE_BY_ONE else {}


def _are_many(rows: QuerySet[Any]) -> bool:
    """Say whether there are more rows than one transaction moves."""
    return rows.order_by().values("pk")[: CHUNK + 1].count() > CHUNK


def _told(options: dict[str, Any]) -> list[str]:
    return [f"{name}: {shown(value)}." for name, value in options.items() if value not in (None, "", False)]


def _chunks_of(rows: QuerySet[Any]) -> Iterator[list[Any]]:
    """Yield the keys of rows in chunks for one transaction each; many are read at once, for a filter may have no index."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    read = list(keys[:KEYS_AT_ONCE])
    while read:
        for start in range(0, len(read), CHUNK):
            yield read[start : start + CHUNK]
        read = list(keys.filter(pk__gt=read[-1])[:KEYS_AT_ONCE]) if len(read) == KEYS_AT_ONCE else []
