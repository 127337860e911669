"""Dead letters: what ended badly and waits for an operator."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.helpers import ActionForm
from django.db.models import Q, QuerySet
from django.db.models.functions import Left, Lower
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from django_jobs.models import DeadLetter
from django_jobs.models.fields import DbNow

from . import operations
from .filters import DiedFilter, FingerprintFilter, LetterTypeFilter, StateFilter
from .letter_groups import LetterGroups
from .letter_page import LetterPage
from .widgets import SHORT, code, letter_badge, link, moment


class LetterActionForm(ActionForm):
    """The action bar, with what the two actions take."""

    per_second = forms.CharField(
        label=_("Per second"),
        required=False,
        widget=forms.NumberInput(attrs={"min": operations.SLOWEST, "step": "any", "class": "jobs-rate"}),
    )
    note = forms.CharField(label=_("Note"), required=False, widget=forms.TextInput(attrs={"class": "jobs-note"}))


@admin.register(DeadLetter)
class DeadLetterAdmin(LetterGroups, LetterPage):
    """The list of dead letters, and what operators do with them."""

    list_display = ("letter", "error_text", "job_text", "state")
    list_filter = (StateFilter, DiedFilter, "reason", LetterTypeFilter, FingerprintFilter)
    list_select_related = ("job",)
    search_fields = ("job__id", "job__job_type", "error")
    search_help_text = _("Search by job id, job type, fingerprint, or words of the error.")
    actions = ("replay_selected", "acknowledge_selected")
    action_form = LetterActionForm
    change_list_template = "admin/django_jobs/letter_list.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        """Return letters without their long texts."""
        rows = super().get_queryset(request).annotate(short_error=Left("error", SHORT * 2), asked_at=DbNow())
        return rows.defer("error", "traceback", "note", "job__payload", "job__result", "job__error", "job__metadata")  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look for a fingerprint or a job id first, then for words in the error and the job type."""
        term = search_term.strip()
        if not term:
            return queryset, False
        exact = queryset.filter(Q(fingerprint=term) | Q(job_id=term))
        if exact.exists():
            return exact, False
        low = queryset.alias(low_error=Lower("error"), low_type=Lower("job__job_type"))
        return low.filter(Q(low_error__contains=term.lower()) | Q(low_type__contains=term.lower())), False

    def needs_window(self, changelist: Any) -> bool:
        """Search the newest letters only, unless the open ones are meant: those have an index."""
        return bool(changelist.query) or "state" in changelist.params

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may replay dead letters."""
        return self.may(request, "replay_deadletter")

    def has_acknowledge_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may acknowledge dead letters."""
        return self.may(request, "acknowledge_deadletter")

    @admin.action(description=_("Replay"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Run the jobs of the letters again."""
        return self.operate(request, queryset, operations.REPLAY_LETTERS)

    @admin.action(description=_("Acknowledge"), permissions=["acknowledge"])
    def acknowledge_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Close the letters with a note."""
        return self.operate(request, queryset, operations.ACKNOWLEDGE_LETTERS)

    @admin.display(description=_("dead letter"))
    def letter(self, obj: Any) -> str:
        """Link to the letter's page, and show how long ago the job died."""
        page = link(self.object_url("deadletter", obj.pk), f"#{obj.pk}")
        return format_html('{}<br><span class="jobs-quiet">{}</span>', page, moment(obj.died_at, obj.asked_at))

    @admin.display(description=_("job"))
    def job_text(self, obj: Any) -> str:
        """Link to the job's page: type and id."""
        page = link(self.object_url("job", obj.job_id), code(obj.job.job_type, 80))
        return format_html('{}<br><span class="jobs-quiet">{}</span>', page, code(obj.job_id, 64))

    @admin.display(description=_("error"))
    def error_text(self, obj: Any) -> str:
        """Show the beginning of the error, and why the job was given up."""
        reason = code(obj.get_reason_display(), 40)
        return format_html('{}<br><span class="jobs-quiet">{}</span>', code(obj.short_error), reason)

    @admin.display(description=_("state"))
    def state(self, obj: Any) -> str:
        """Show whether somebody closed it."""
        return letter_badge(obj)
