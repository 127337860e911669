"""Operators' acts: who did what when to which rows, from the admin's own log of the console's pages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.contenttypes.models import ContentType
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, path
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from django_jobs.db.transactions import database_now

from .base import ConsoleAdmin
from .widgets import code, cut, link, moment

ON_A_PAGE = 50
MOST_USERS = 100
LOOKED_AT = 10_000  # newest entries of the admin's log, which no index serves by model or user and time


class ActPages(ConsoleAdmin):
    """The page of the operators' acts; part of the admin of the overview."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.acts_view)
        return [path("acts/", view, name="django_jobs_acts"), *super().get_urls()]

    @method_decorator(require_safe)
    def acts_view(self, request: HttpRequest) -> HttpResponse:
        """List the acts, the newest first: of everybody or one user, on everything, one kind of rows or one row."""
        self.require(request, "view_job")
        kinds = {kind.pk: kind for kind in ContentType.objects.filter(app_label=self.opts.app_label)}
        models = {kind.model: kind.pk for kind in kinds.values()}
        chosen = {name: request.GET.get(name, "").replace("\x00", "") for name in ("user", "kind", "key", "older_than")}
        entries = self._entries(list(kinds), chosen, models)
        page = list(entries[: ON_A_PAGE + 1])
        now, used = database_now(), self._used(list(kinds))
        query = {name: value for name, value in chosen.items() if value and name != "older_than"}
        older = {**query, "older_than": str(page[ON_A_PAGE - 1].pk)} if len(page) > ON_A_PAGE else None
        context = {
            "acts": [self._act(entry, kinds, now) for entry in page[:ON_A_PAGE]],
            "users": self._users(list(kinds)),
            "kinds": sorted({(kind.model, str(kind)) for kind in kinds.values() if kind.pk in used}),
            "chosen": chosen,
            "query": query,
            "older_url": f"?{urlencode(older)}" if older else "",
            "overview_url": self.list_url("overview"),
        }
        return self.page(request, "acts.html", _("What operators did"), context)

    def _entries(self, kinds: list[int], chosen: dict[str, str], models: dict[str, int]) -> QuerySet[LogEntry]:
        entries = _newest(kinds)
        if chosen["user"]:
            entries = entries.filter(user__username=chosen["user"])
        if chosen["kind"]:
            entries = entries.filter(content_type_id=models.get(chosen["kind"], 0))
        if chosen["key"]:
            entries = entries.filter(object_id=chosen["key"])
        if chosen["older_than"].isdecimal():
            entries = entries.filter(pk__lt=int(chosen["older_than"][:18]))
        return entries.select_related("user")

    def _users(self, kinds: list[int]) -> list[str]:
        names = _newest(kinds).order_by().values_list("user__username", flat=True).distinct()
        return sorted(filter(None, names[:MOST_USERS]))

    def _used(self, kinds: list[int]) -> set[int]:
        return set(_newest(kinds).order_by().values_list("content_type_id", flat=True).distinct())

    def _act(self, entry: LogEntry, kinds: dict[int, ContentType], now: datetime) -> dict[str, Any]:
        kind = kinds[entry.content_type_id or 0]
        return {
            "user": entry.user.get_username() if entry.user else "",
            "when": moment(entry.action_time, now if abs(now - entry.action_time) < timedelta(days=1) else None),
            "what": cut(entry.get_change_message(), 1_000),
            "kind": str(kind.name),
            "row": self._row(entry, kind),
        }

    def _row(self, entry: LogEntry, kind: ContentType) -> Any:
        if not entry.object_id:
            return ""  # many rows: the message says how many, and by which filter
        try:
            return link(self.url(f"{kind.model}_change", quote(entry.object_id)), code(entry.object_repr, 120))
        except NoReverseMatch:
            return code(entry.object_repr, 120)


def _newest(kinds: list[int]) -> QuerySet[LogEntry]:
    """Return the acts among the newest LOOKED_AT entries of the log."""
    newest = LogEntry.objects.order_by("-pk")
    floor = newest.values_list("pk", flat=True)[LOOKED_AT - 1 : LOOKED_AT].first()
    entries = newest.filter(content_type_id__in=kinds)
    return entries if floor is None else entries.filter(pk__gte=floor)
