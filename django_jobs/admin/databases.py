"""Which of the site's databases the console shows: `?database=A`, which the session keeps; and the counts of all of them.

A form carries the database of its page, so that it acts there also when another tab has chosen another one since.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseRedirectBase
from django.template.response import SimpleTemplateResponse
from django.utils.html import format_html
from django.utils.http import urlencode

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_connection, use_database, usual_alias
from django_jobs.models import DeadLetter, Job, WorkerProcess

from .paging import capped_count, count_text

View = Callable[..., HttpResponse]
ASKED = "database"  # in an address
KEPT = "django_jobs_database"  # in the session, and in forms
CSRF_FIELD = b'<input type="hidden" name="csrfmiddlewaretoken"'


def on_chosen_database(view: View) -> View:
    """Let a view work on the database that was chosen, where the site names several."""

    @wraps(view)
    def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        databases = get_settings().DATABASES
        if databases is None:
            return view(request, *args, **kwargs)
        chosen = _chosen(request, databases)
        with use_database(chosen):
            response = view(request, *args, **kwargs)
        if isinstance(response, HttpResponseRedirectBase) and request.session.get(KEPT, usual_alias()) != chosen:
            _keep_database(response, chosen)  # it acted on that of its form
        if isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
            response.context_data = {**(response.context_data or {}), "console_databases": _choices(databases, chosen)}
            _render_on(response, chosen)
        return response

    return run


def _chosen(request: HttpRequest, databases: tuple[str, ...]) -> str:
    """Return the database of a form, of the address or of the session; keep that of the address, and take it out of there."""
    asked = request.GET.get(ASKED)
    if asked is not None:  # a list would take it for a filter
        query = request.GET.copy()
        del query[ASKED]
        request.GET = query  # type: ignore[assignment]
        if asked in databases and request.user.is_staff:  # nobody else is given a session
            request.session[KEPT] = asked
    usual = usual_alias()
    for name in (request.POST.get(KEPT), asked, request.session.get(KEPT), usual):
        if name in databases:
            return str(name)
    return databases[0]


def _keep_database(response: HttpResponseRedirectBase, chosen: str) -> None:
    """Let a page of this site that follows show the same database."""
    scheme, host, path, query, fragment = urlsplit(response.url)
    if not host:
        parameters = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name != ASKED]
        query = urlencode([*parameters, (ASKED, chosen)])
        response["Location"] = urlunsplit((scheme, host, path, query, fragment))


def _choices(databases: tuple[str, ...], chosen: str) -> list[dict[str, Any]]:
    return [{"name": name, "url": f"?{urlencode({ASKED: name})}", "is_chosen": name == chosen} for name in databases]


def _render_on(response: SimpleTemplateResponse, chosen: str) -> None:
    """Let a response be rendered on a database, and its forms name that."""
    render = response.render

    def render_there() -> Any:
        with use_database(chosen):
            return render()

    def name_it(rendered: HttpResponse) -> None:
        field = format_html('<input type="hidden" name="{}" value="{}">', KEPT, chosen)
        rendered.content = rendered.content.replace(CSRF_FIELD, field.encode() + CSRF_FIELD)

    response.render = render_there  # type: ignore[method-assign]
    response.add_post_render_callback(name_it)


def database_table() -> list[dict[str, Any]]:
    """Return the counts of each database; none where the site names none. One that cannot be used has no counts."""
    return [_row(database) for database in get_settings().DATABASES or ()]


def _row(database: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": database, "url": f"?{urlencode({ASKED: database})}", "can_be_used": True}
    with use_database(database):
        try:
            row |= {
                "ready": count_text(capped_count(Job.objects.ready())),
                "running": count_text(capped_count(Job.objects.filter(status="running"))),
                "dead_letters": count_text(capped_count(DeadLetter.objects.open())),
                "workers": WorkerProcess.objects.alive().count(),
            }
        except DatabaseError:
            row["can_be_used"] = False
            if not jobs_connection().in_atomic_block:
                jobs_connection().close()
    return row
