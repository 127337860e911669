"""What all pages of the console share: rows are read only, permissions of the app, addresses, the frame of a page."""

from __future__ import annotations

from typing import Any, TypeVar

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from .paging import KeysetChangeList
from .widgets import cut

M = TypeVar("M", bound=Model)


class ConsoleAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A read-only admin whose buttons call the moves of `lifecycle/`."""

    list_per_page = 50
    sortable_by = ()
    show_full_result_count = False
    list_display_links = None
    show_facets = admin.ShowFacets.NEVER  # they count the whole table once for each choice

    class Media:
        css = {"all": ("django_jobs/console.css",)}
        js = ("django_jobs/console.js",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def needs_window(self, changelist: Any) -> bool:
        """Return whether a search is limited to the newest rows, because no index serves it."""
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # jobs are submitted by code

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # what may be changed has an operation of its own

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # finished jobs are pruned by the workers

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may(request, f"view_{self.opts.model_name}")

    def may(self, request: HttpRequest, codename: str) -> bool:
        """Return whether the user holds one of the app's permissions."""
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def require(self, request: HttpRequest, codename: str) -> None:
        """Raise PermissionDenied unless the user holds one of the app's permissions."""
        if not self.may(request, codename):
            raise PermissionDenied

    def url(self, name: str, *args: Any) -> str:
        """Return the address of one of the app's pages by its URL name, which is without the app's label here."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{name}", args=args)

    def object_url(self, model_name: str, pk: str | int) -> str:
        """Return the address of a row's page."""
        return self.url(f"{model_name}_change", quote(pk))

    def list_url(self, model_name: str) -> str:
        """Return the address of a model's list."""
        return self.url(f"{model_name}_changelist")

    def find(self, rows: QuerySet[M], object_id: str) -> M | None:
        """Return the row that an address names, or None."""
        key = unquote(object_id)
        try:
            return rows.filter(pk=key).first() if "\x00" not in key else None
        except ValueError:  # not a key of this model
            return None

    def not_found(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Redirect to the list with a message that there is no such row: it may have been pruned."""
        text = _("There is no %(name)s %(key)s; it may have been pruned.")
        messages.warning(request, text % {"name": self.opts.verbose_name, "key": cut(unquote(object_id), 80)})
        return HttpResponseRedirect(self.list_url(str(self.opts.model_name)))

    def page(self, request: HttpRequest, template: str, title: object, context: dict[str, Any]) -> HttpResponse:
        """Render one of our own pages in the frame of the admin."""
        request.current_app = self.admin_site.name
        whole = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "cl": {"opts": self.opts},
            "actions_on_top": True,  # else the template of lists adds an inline style
            "media": self.media,
            "has_view_permission": True,
            **context,
        }
        return TemplateResponse(request, f"admin/django_jobs/{template}", whole)

    def row_page(
        self, request: HttpRequest, template: str, title: object, row: Any, context: dict[str, Any]
    ) -> HttpResponse:
        """Render our page of one row."""
        model_name = str(self.opts.model_name)
        shared = {
            "original": row,
            "object_id": row.pk,
            "change": True,
            "list_url": self.list_url(model_name),
            "history_url": self.url(f"{model_name}_history", quote(row.pk)),
        }
        return self.page(request, template, title, {**shared, **context})
