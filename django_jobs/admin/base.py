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
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from . import paging, selection
from .databases import on_chosen_database
from .paging import EVERYTHING, SCOPE, EmptyChangeList, KeysetChangeList
from .search import Search
from .widgets import cut

M = TypeVar("M", bound=Model)
SHORT_SEARCH, LONGEST_SEARCH = 0.2, 15.0  # seconds, of the newest rows and of all of them


class ConsoleAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A read-only admin whose buttons call the moves of `lifecycle/`."""

    list_per_page = 50
    sortable_by = ()
    show_full_result_count = False
    list_display_links = None
    empty_text: Any = ""  # what a list says would be here
    show_facets = admin.ShowFacets.NEVER  # they count the whole table once for each choice

    class Media:
        css = {"all": ("django_jobs/console.css",)}
        js = ("django_jobs/console.js",)

    @property
    def urls(self) -> list[Any]:
        """The pages, each on the database that the user has chosen."""
        pages = super().urls
        for page in pages:
            page.callback = on_chosen_database(page.callback)
        return pages

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def search(self, request: HttpRequest, rows: QuerySet[M], search: Search) -> QuerySet[M]:
        """Keep the rows that a search finds: all of them by columns, and by content those among the newest rows."""
        request.console_refused = search.refused  # type: ignore[attr-defined]
        request.console_passes_over = search.passes_over  # type: ignore[attr-defined]
        if not search.fits:
            selection.note(request, search.lookups)
            return search.narrow(rows)
        selection.note(request, None)  # the keys that were found are the selection
        everything = request.GET.get(SCOPE) == EVERYTHING
        found = search.look(
            rows, most=None if everything else paging.WINDOW, seconds=LONGEST_SEARCH if everything else SHORT_SEARCH
        )
        request.console_look = found  # type: ignore[attr-defined]
        return rows.filter(pk__in=found.keys)

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

    def find(self, rows: QuerySet[M], key: str) -> M | None:
        """Return the row with a primary key as an address names it, or None."""
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
        """Render one of our own pages in the frame of the admin's lists.

        The template is given whatever Django's own list is given, because a theme's frame may use any of it.
        """
        request.current_app = self.admin_site.name
        changelist = EmptyChangeList.of(request, self)
        whole = {
            **self.admin_site.each_context(request),
            "module_name": str(self.opts.verbose_name_plural),
            "selection_note": "",
            "selection_note_all": "",
            "title": title,
            "subtitle": None,
            "is_popup": changelist.is_popup,
            "to_field": changelist.to_field,
            "cl": changelist,
            "media": self.media,
            "has_view_permission": True,
            "has_add_permission": self.has_add_permission(request),
            "has_change_permission": self.has_change_permission(request),
            "has_delete_permission": self.has_delete_permission(request),
            "opts": self.opts,
            "app_label": self.opts.app_label,
            "action_form": None,
            "actions_on_top": True,  # else the template of lists adds an inline style
            "actions_on_bottom": False,
            "actions_selection_counter": False,
            "preserved_filters": self.get_preserved_filters(request),
            **context,
        }
        return TemplateResponse(request, f"admin/django_jobs/{template}", whole)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row of a key; None for text that is no row's key, which PostgreSQL may refuse to look for."""
        return None if "\x00" in object_id else super().get_object(request, object_id, from_field)


class RowAdmin(ConsoleAdmin):
    """An admin with a page for each row, which Django's own view of a row renders: a theme's frame may use all it gives."""

    def whole_rows(self) -> QuerySet[Any]:
        """Return the rows with all that the page of one shows."""
        raise NotImplementedError

    def row_title(self, row: Any) -> str:
        """Return the title of a row's page."""
        raise NotImplementedError

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Return what the template of a row's page is given besides."""
        raise NotImplementedError

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().change_view(request, object_id, form_url, extra_context)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        return self.find(self.whole_rows(), object_id)

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        return self.not_found(request, object_id)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return []  # our template shows the row; a form of its fields would show what we mask

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        model_name = str(self.opts.model_name)
        shared = {
            "title": self.row_title(obj),
            "subtitle": None,
            "list_url": self.list_url(model_name),
            "history_url": self.url(f"{model_name}_history", quote(obj.pk)),
            "acts_url": f"{self.url('acts')}?{urlencode({'kind': model_name, 'key': str(obj.pk)})}",
        }
        whole = {**context, **shared, **self.row_context(request, obj)}
        return super().render_change_form(request, whole, add, change, form_url, obj)
