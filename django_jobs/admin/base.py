"""What all pages of the console share: no form adds, edits or deletes a row; rights are asked by their names."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from .paging import KeysetChangeList
from .widgets import cut


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

    def needs_window(self, changelist: Any) -> bool:
        """Say whether a search is for the newest rows only, because no index serves it."""
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        """Page by key, not by number."""
        return KeysetChangeList

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: jobs are submitted by code."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: what may be changed has an operation of its own."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: finished jobs are pruned by the workers."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow what the view permission of the model allows."""
        return self.may(request, f"view_{self.opts.model_name}")

    def may(self, request: HttpRequest, codename: str) -> bool:
        """Say whether the user holds one of the app's permissions."""
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def require(self, request: HttpRequest, codename: str) -> None:
        """Raise PermissionDenied unless the user holds one of the app's permissions."""
        if not self.may(request, codename):
            raise PermissionDenied

    def object_url(self, model_name: str, pk: str | int) -> str:
        """Return the address of a row's page."""
        name = f"{self.admin_site.name}:{self.opts.app_label}_{model_name}_change"
        return reverse(name, args=(quote(pk),))

    def list_url(self, model_name: str) -> str:
        """Return the address of a model's list."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{model_name}_changelist")

    def not_found(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go back to the list and say that there is no such row: it may have been pruned."""
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
        return TemplateResponse(request, template, whole)
