"""Run an operation on the selected rows or on all that match: rights, confirmation, chunks, message and log entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.bulk import CHUNK, Tally
from django_jobs.text import shown

from .base import ConsoleAdmin
from .paging import capped_count, count_text

SECONDS_PER_REQUEST = 20.0  # a proxy in front of the site gives up not much later
LOGGED_ONE_BY_ONE = 200
KEYS_AT_ONCE = 10_000
SAMPLE = 10


class NoOptions(forms.Form):
    """Nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Who asked for an operation, with what options, and how many rows came before this chunk."""

    by: Any
    options: dict[str, Any]
    position: int = 0

    def delays(self, number: int) -> list[float] | None:
        """Return the wait of each row of this chunk for the rate asked for (`per_second`), or None without one."""
        rate = self.options.get("per_second")
        return [(self.position + index) // rate for index in range(number)] if rate else None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing that an operator does to rows. `asks` puts the confirmation page before it, whatever is selected.

    `done` says it was done, in singular and plural by `number`, with that number written out as `count`.
    """

    title: Any
    permission: str
    run: Callable[[Sequence[Any], Order], Tally]
    done: Any
    form: type[forms.Form] = NoOptions
    asks: bool = False
    help: Any = ""

    def said(self, count: int) -> str:
        """Return the sentence about so many rows."""
        return str(self.done % {"number": count, "count": number_format(count)})


class OperatingAdmin(ConsoleAdmin):
    """The way from an admin action to a move of `lifecycle/` and back."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, or run an action; without JavaScript "all that match" may come without a selected row."""
        if request.POST.get("select_across") == "1" and ACTION_CHECKBOX_NAME not in request.POST:
            posted = request.POST.copy()
            posted.setlist(ACTION_CHECKBOX_NAME, [""])
            request.POST = posted  # type: ignore[assignment]
        return super().changelist_view(request, extra_context)

    def operate(self, request: HttpRequest, rows: QuerySet[Any], operation: Operation) -> HttpResponse | None:
        """Run an operation on rows, or ask for confirmation first."""
        self.require(request, operation.permission)
        if request.method != "POST":
            raise PermissionDenied
        across = request.POST.get("select_across") == "1"
        confirmed = "confirmed" in request.POST
        form = operation.form(request.POST)
        valid = form.is_valid()
        if not valid or ((across or operation.asks) and not confirmed):
            if not confirmed and valid is False and not _was_sent(form, request):
                form = operation.form()
            return self._confirmation(request, rows, operation, form, across)
        return self._run(request, rows, operation, form.cleaned_data, across)

    def _confirmation(
        self, request: HttpRequest, rows: QuerySet[Any], operation: Operation, form: forms.Form, across: bool
    ) -> HttpResponse:
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        count = capped_count(rows)
        context = {
            "operation": operation,
            "action": request.POST.get("action", ""),
            "selected": selected,
            "across": across,
            "count": count,
            "count_text": count_text(count),
            "sample": [str(row) for row in rows.order_by("-pk")[:SAMPLE]],
            "hidden_more": count > SAMPLE,
            "window": getattr(request, "console_window", None) if across else None,
            "form": form,
            "back": request.POST.get("back", ""),
            "back_url": self._back_url(request) or request.get_full_path(),
            "target": request.get_full_path(),
        }
        return self.page(request, "admin/django_jobs/confirm.html", operation.title, context)

    def _run(
        self, request: HttpRequest, rows: QuerySet[Any], operation: Operation, options: dict[str, Any], across: bool
    ) -> HttpResponse | None:
        ids: list[Any] = []
        tally, more = Tally(), False
        deadline = time.monotonic() + SECONDS_PER_REQUEST
        try:
            for chunk in _chunks_of(rows):
                if time.monotonic() > deadline:
                    more = True
                    break
                order = Order(by=request.user, options=options, position=len(ids))
                tally += operation.run(chunk, order)
                ids += chunk
        except JobsError as error:
            messages.error(request, str(error))
        gone = 0 if across else max(0, len(set(request.POST.getlist(ACTION_CHECKBOX_NAME))) - len(ids))
        self._tell(request, operation, Tally(tally.done, tally.left + gone), more)
        if tally.done:
            reason = " ".join(f"{name}: {shown(value)}." for name, value in options.items() if value not in (None, ""))
            self.log(request, ids, operation, tally.done, reason, across)
        back = self._back_url(request)
        return HttpResponseRedirect(back) if back else None

    def _tell(self, request: HttpRequest, operation: Operation, tally: Tally, more: bool) -> None:
        if tally.done:
            messages.success(request, operation.said(tally.done))
        if tally.left:
            text = ngettext(
                "%(count)s was left as it is: its state does not allow this.",
                "%(count)s were left as they are: their state does not allow this.",
                tally.left,
            )
            messages.warning(request, text % {"count": number_format(tally.left)})
        if more:
            messages.warning(request, _("Time was up before all were done. Do it again for the rest."))
        if not tally.done and not tally.left:
            messages.warning(request, _("Nothing matched, nothing was done."))

    def _back_url(self, request: HttpRequest) -> str | None:
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if request.POST.get("back") == "page" and len(selected) == 1:
            return self.object_url(str(self.opts.model_name), selected[0])
        return None

    def log(
        self, request: HttpRequest, ids: Sequence[Any], operation: Operation, count: int, reason: str, across: bool
    ) -> None:
        """Write who did what: an entry for each row, or one for all when they are many."""
        message = f"{operation.said(count)} {reason}".strip()
        if across:
            message += " " + _("All that matched %(filter)s.") % {"filter": request.META.get("QUERY_STRING") or "-"}
        one_by_one = len(ids) <= LOGGED_ONE_BY_ONE
        named = self.model._default_manager.in_bulk(ids) if one_by_one else {}
        rows = [(str(pk), str(row)) for pk, row in named.items()]
        self.write_log(request, rows or [(None, operation.said(count))], message)

    def write_log(self, request: HttpRequest, rows: Sequence[tuple[str | None, str]], message: str) -> None:
        """Write a log entry with one message for each (primary key, description)."""
        kind = ContentType.objects.get_for_model(self.model)
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=request.user.pk or 0,
                content_type=kind,
                object_id=pk,
                object_repr=description[:200],
                action_flag=CHANGE,
                change_message=message,
            )
            for pk, description in rows
        )


def _chunks_of(rows: QuerySet[Any]) -> Iterator[list[Any]]:
    """Yield the keys of rows in chunks for one transaction each; many are read at once, for a filter may have no index."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    read = list(keys[:KEYS_AT_ONCE])
    while read:
        for start in range(0, len(read), CHUNK):
            yield read[start : start + CHUNK]
        read = list(keys.filter(pk__gt=read[-1])[:KEYS_AT_ONCE]) if len(read) == KEYS_AT_ONCE else []


def _was_sent(form: forms.Form, request: HttpRequest) -> bool:
    return any(name in request.POST for name in form.fields)
