"""Dead letters: the list, the causes, the page of one, and what operators do with them."""

from __future__ import annotations

import json
from datetime import datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.timezone import localtime, make_aware
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy
from django.views.decorators.http import require_POST, require_safe

from django_jobs import stats
from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.acknowledge import acknowledge
from django_jobs.lifecycle.causes import note_cause
from django_jobs.lifecycle.operations import SLOWEST
from django_jobs.lifecycle.replay import replay_dead_letters, replay_edited
from django_jobs.masking import pretty, unmasked
from django_jobs.models import Cause, DeadLetter, JobStatus, OperationKind
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY
from django_jobs.payloads import Unreadable
from django_jobs.text import shown

from .base import RowAdmin
from .causes import DEAD_AGAIN, MOST_CAUSES, MOST_READ, find_causes, kept_of, place_in, read_history
from .charts import bars_of, chart
from .filters import AGES, DiedFilter, FingerprintFilter, OrderFilter, ReasonFilter, StateFilter, TypeFilter
from .operations import Act, OperatingAdmin, ReplayForm
from .paging import capped_count, count_text
from .search import Search
from .selection import note
from .widgets import (
    LONGEST_TEXT,
    SHORT,
    code,
    cut,
    dead_letter_badge,
    link,
    moment,
    status_badge,
    two_lines,
    with_detail,
)

HEAVY = ("error", "traceback", "note", "job__payload", "job__result", "job__error", "job__metadata")
LONGEST_MUTE = timedelta(days=366)
LONGEST_NOTE = 2_000
SPANS = (
    ("1h", gettext_lazy("1 hour")),
    ("24h", gettext_lazy("24 hours")),
    ("7d", gettext_lazy("7 days")),
    ("all", gettext_lazy("all")),
)


class NoteForm(forms.Form):
    """Options of an acknowledgement."""

    note = forms.CharField(
        label=gettext_lazy("Note"),
        max_length=LONGEST_NOTE,
        required=False,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text=gettext_lazy("Why nothing needs to be done; kept with the dead letter and in the history."),
    )


class CauseForm(forms.Form):
    """What operators keep of a cause."""

    note = forms.CharField(
        label=gettext_lazy("Note"),
        max_length=LONGEST_NOTE,
        required=False,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text=gettext_lazy("What is known of it, for whoever sees it next."),
    )
    muted_until = forms.DateField(
        label=gettext_lazy("Mute until"),
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        input_formats=["%Y-%m-%d"],
        help_text=gettext_lazy(
            "To the end of that day. Its dead letters are kept and stay open, but raise no alarm and no alert. Empty: not muted."
        ),
    )

    def clean_muted_until(self) -> datetime | None:
        day = self.cleaned_data["muted_until"]
        if day is None:
            return None
        today = localtime(database_now()).date()
        if not today <= day <= today + LONGEST_MUTE:
            raise forms.ValidationError(_("Give a day from today on, at most a year from now."))
        return make_aware(datetime.combine(day + timedelta(days=1), time()))


class DeadLetterActionForm(ActionForm):
    """The action bar, with the options of the two actions."""

    per_second = forms.CharField(
        label=gettext_lazy("Per second"),
        required=False,
        widget=forms.NumberInput(attrs={"min": SLOWEST, "step": "any", "class": "jobs-rate"}),
    )
    note = forms.CharField(
        label=gettext_lazy("Note"), required=False, widget=forms.TextInput(attrs={"class": "jobs-note"})
    )


REPLAY = Act(
    title=gettext_lazy("Replay dead letters"),
    kind=OperationKind.REPLAY_DEAD_LETTERS,
    keywords=("from_start",),
    permission="replay_deadletter",
    form=ReplayForm,
    run=lambda chunk: replay_dead_letters(chunk.ids, by=chunk.by, from_start=chunk.from_start),
    done=ngettext_lazy("Replayed %(count)s dead letter.", "Replayed %(count)s dead letters.", "number"),
    afterwards={"state": "replayed"},
    help=gettext_lazy("Each job runs again, with the retries of a new one."),
)
ACKNOWLEDGE = Act(
    title=gettext_lazy("Acknowledge dead letters"),
    kind=OperationKind.ACKNOWLEDGE,
    keywords=("note",),
    permission="acknowledge_deadletter",
    form=NoteForm,
    run=lambda chunk: acknowledge(chunk.ids, by=chunk.by, note=chunk.options.get("note") or ""),
    done=ngettext_lazy("Acknowledged %(count)s dead letter.", "Acknowledged %(count)s dead letters.", "number"),
    afterwards={"state": "acknowledged"},
    help=gettext_lazy("The dead letters are closed; their jobs stay as they are."),
)


@admin.register(DeadLetter)
class DeadLetterAdmin(RowAdmin, OperatingAdmin):
    """The pages of dead letters."""

    list_display = ("dead_letter", "state", "job_text")
    list_filter = (StateFilter, DiedFilter, ReasonFilter, TypeFilter, OrderFilter, FingerprintFilter)
    list_select_related = ("job",)
    search_fields = ("job__id", "job_type", "error")
    search_help_text = gettext_lazy(
        "Words of an id, fingerprint, type, error or payload, or what stands under a key: account:7, metadata.tenant:a,"
        " error:Timeout, type:shop.settle, after:2026-11-01."
    )
    empty_text = gettext_lazy("Jobs that ended badly and wait for an operator would be here; none does.")
    actions = ("replay_selected", "acknowledge_selected")
    action_form = DeadLetterActionForm
    change_list_template = "admin/django_jobs/dead_letter_list.html"
    change_form_template = "admin/django_jobs/dead_letter_page.html"

    def get_urls(self) -> list[Any]:
        causes = self.admin_site.admin_view(self.causes_view)
        cause = self.admin_site.admin_view(self.cause_view)
        noted = self.admin_site.admin_view(self.note_view)
        edited = self.admin_site.admin_view(self.replay_edited_view)
        return [
            path("causes/", causes, name="django_jobs_deadletter_causes"),
            path("causes/<str:fingerprint>/", cause, name="django_jobs_deadletter_cause"),
            path("causes/<str:fingerprint>/note/", noted, name="django_jobs_deadletter_note"),
            path("<path:object_id>/replay-edited/", edited, name="django_jobs_deadletter_replay_edited"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        rows = super().get_queryset(request).annotate(short_error=Left("error", SHORT * 2), read_at=DbNow())
        rows = rows.annotate(is_muted=_is_muted())
        return rows.defer(*HEAVY)  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for a fingerprint or a job id first, then for what stands in the error, the type and the job's values."""
        term = search_term.strip()
        if not term:
            return queryset, False
        exact = queryset.filter(Q(fingerprint=term) | Q(job_id=term))
        if exact.exists():
            note(request, None)
            return exact, False
        search = Search(text=term, may_see=self.may(request, "view_payload"), prefix="job__")
        return self.search(request, queryset, search), False

    def needs_window(self, changelist: Any) -> bool:
        # Only the open ones have an index, and none has the job type.
        return bool(changelist.query) or not changelist.params.keys().isdisjoint({"state", "job_type"})

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self.may(request, REPLAY.permission)

    def has_acknowledge_permission(self, request: HttpRequest) -> bool:
        return self.may(request, ACKNOWLEDGE.permission)

    @admin.action(description=gettext_lazy("Replay"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, REPLAY)

    @admin.action(description=gettext_lazy("Acknowledge"), permissions=["acknowledge"])
    def acknowledge_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, ACKNOWLEDGE)

    @admin.display(description=gettext_lazy("dead letter"))
    def dead_letter(self, obj: Any) -> str:
        """Show the number and the job type, and below the error."""
        name = format_html("#{} {}", str(obj.pk), code(obj.job.job_type, 80))
        error = code(obj.short_error) if obj.short_error else obj.get_reason_display()
        return with_detail(link(self.object_url("deadletter", obj.pk), name), error)

    @admin.display(description=gettext_lazy("state"))
    def state(self, obj: Any) -> str:
        return two_lines(dead_letter_badge(obj), moment(obj.died_at, obj.read_at))

    @admin.display(description=gettext_lazy("job"))
    def job_text(self, obj: Any) -> str:
        """Show what has become of the job."""
        return two_lines(status_badge(obj.job), link(self.object_url("job", obj.job_id), code(obj.job_id, 64)))

    @method_decorator(require_safe)
    def causes_view(self, request: HttpRequest) -> HttpResponse:
        """Show the causes of the open dead letters of a span of time, the largest first."""
        self.require(request, "view_deadletter")
        span = request.GET.get("age", "24h")
        span = span if span in dict(SPANS) else "24h"
        now = database_now()
        causes = find_causes(now - AGES[span] if span in AGES else None, {} if span == "all" else {"age": span})
        context = {
            "spans": SPANS,
            "span": span,
            "now": now,
            "causes": causes[:MOST_CAUSES],
            "has_more": len(causes) > MOST_CAUSES,
            "total": sum(cause.count for cause in causes),
            "list_url": self.list_url("deadletter"),
            "may_replay": self.has_replay_permission(request),
            "may_acknowledge": self.has_acknowledge_permission(request),
        }
        return self.page(request, "causes.html", _("Dead letters by cause"), context)

    @method_decorator(require_safe)
    def cause_view(self, request: HttpRequest, fingerprint: str) -> HttpResponse:
        """Show the history of one cause: since when, how often, what replays came to, what the jobs have in common."""
        self.require(request, "view_deadletter")
        return self._cause_page(request, unquote(fingerprint), None)

    @method_decorator(require_POST)
    def note_view(self, request: HttpRequest, fingerprint: str) -> HttpResponse:
        """Keep a note about a cause, and mute it: POST `note` and `muted_until`."""
        self.require(request, ACKNOWLEDGE.permission)
        key, form = unquote(fingerprint), CauseForm(request.POST)
        if not DeadLetter.objects.filter(fingerprint=key.replace("\x00", "")).exclude(fingerprint="").exists():
            messages.warning(request, _("There is no dead letter with this cause; they may have been pruned."))
            return HttpResponseRedirect(self.url("deadletter_causes"))
        if not form.is_valid():
            return self._cause_page(request, key, form)
        note_cause(key, **form.cleaned_data, by=request.user)
        message = _("Kept what was noted of the cause.")
        messages.success(request, message)
        told = [message, *(f"{name}: {value}." for name, value in form.cleaned_data.items() if value)]
        self.write_log(request, [(key, key)], " ".join(told), Cause)
        return HttpResponseRedirect(self.url("deadletter_cause", quote(key)))

    def _cause_page(self, request: HttpRequest, key: str, form: CauseForm | None) -> HttpResponse:
        history = read_history(key) if key and "\x00" not in key else None
        if history is None:
            messages.warning(request, _("There is no dead letter with this cause; they may have been pruned."))
            return HttpResponseRedirect(self.url("deadletter_causes"))
        now = database_now()
        newest = history.newest[0]
        may_see = self.may(request, "view_payload")
        deploys = stats.deploys(now - timedelta(days=2))
        kept: Any = kept_of([key]).first()
        if form is None and self.has_acknowledge_permission(request):
            form = CauseForm(initial=_as_typed(kept))
        context = {
            "kept": kept,
            "form": form,
            "note_url": self.url("deadletter_note", quote(key)),
            "history": history,
            "count": count_text(history.count, MOST_READ - 1),
            "now": now,
            "newest": newest,
            "newest_url": self.object_url("deadletter", newest.pk),
            "type_url": self.url("job_type", quote(newest.job.job_type)),
            "place": place_in(newest.traceback),
            "error": cut(newest.error, 2_000),
            "chart": chart(bars_of(history.ended, now, 48, timedelta(hours=1)), _("Deaths in the last 48 hours"), deploys),
            "replays": [(replay, _outcomes_text(replay.outcomes)) for replay in history.replays],
            "samples": [
                (self.object_url("job", one.job_id), one.job_id, pretty(one.job.payload)) for one in history.newest
            ] if may_see else [],
            "may_see": may_see,
            "may_replay": self.has_replay_permission(request) and history.open > 0,
            "may_acknowledge": self.has_acknowledge_permission(request) and history.open > 0,
            "query": urlencode({"fingerprint": key}),
            "list_url": self.list_url("deadletter"),
            "causes_url": self.url("deadletter_causes"),
        }  # fmt: skip
        return self.page(request, "cause_page.html", cut(newest.job.job_type, 100), context)

    def whole_rows(self) -> QuerySet[Any]:
        return DeadLetter.objects.select_related("job", "acknowledged_by", "replayed_by").annotate(is_muted=_is_muted())

    def row_title(self, row: Any) -> str:
        return _("Dead letter")

    @method_decorator(require_POST)
    def replay_edited_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Replay a dead letter's job with the posted payload; masks that it still contains keep the values they hide."""
        self.require(request, "view_payload")
        self.require(request, REPLAY.permission)
        dead_letter = self.find(self.whole_rows(), unquote(object_id))
        if dead_letter is None:
            return self.not_found(request, object_id)
        if not dead_letter.is_open:
            raise PermissionDenied
        posted = request.POST.get("payload", "")
        try:
            payload = unmasked(json.loads(posted), dead_letter.job.payload)
            replay_edited(dead_letter.job_id, payload, by=request.user)
        except (JobsError, ValueError, RecursionError) as error:
            messages.error(request, _("The payload was refused: %(error)s") % {"error": shown(str(error))})
            request.method = "GET"  # the page is shown again; a POST to Django's view would be an edit of the row
            return self.change_view(request, object_id, extra_context={"is_refused": True, "posted": posted})
        message = _("Replayed 1 dead letter with an edited payload.")
        messages.success(request, message)
        self.write_log(request, [(str(dead_letter.pk), str(dead_letter))], message)
        return HttpResponseRedirect(self.object_url("deadletter", dead_letter.pk))

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        dead_letter: DeadLetter = row
        may_see = self.may(request, "view_payload")
        may_replay = self.has_replay_permission(request) and dead_letter.is_open
        alike = DeadLetter.objects.open().filter(fingerprint=dead_letter.fingerprint).exclude(pk=dead_letter.pk)
        return {
            "dead_letter": dead_letter,
            "job": dead_letter.job,
            "state": dead_letter_badge(dead_letter),
            "status": status_badge(dead_letter.job),
            "now": database_now(),
            "error": cut(dead_letter.error, LONGEST_TEXT),
            "traceback": cut(dead_letter.traceback, LONGEST_TEXT),
            "job_url": self.object_url("job", dead_letter.job_id),
            "alike": count_text(capped_count(alike)) if dead_letter.fingerprint else "",
            "may_replay": may_replay,
            "has_steps": dead_letter.job.steps.exists(),
            "may_acknowledge": self.has_acknowledge_permission(request) and dead_letter.is_open,
            "may_see": may_see,
            "may_edit": may_see
            and may_replay
            and dead_letter.job.status in ENDED_BADLY
            and not isinstance(dead_letter.job.payload, Unreadable),
            "payload": pretty(dead_letter.job.payload) if may_see else "",
            "cause_url": self.url("deadletter_cause", quote(dead_letter.fingerprint))
            if dead_letter.fingerprint
            else "",
            "edited_url": self.url("deadletter_replay_edited", dead_letter.pk),
        }


def _is_muted() -> Exists:
    return Exists(Cause.objects.muted().filter(pk=OuterRef("fingerprint")))


def _as_typed(kept: Any) -> dict[str, Any]:
    """Return what the form of a cause begins with."""
    if kept is None:
        return {}
    last = localtime(kept.muted_until) - timedelta(days=1) if kept.muted else None
    return {"note": kept.note[:LONGEST_NOTE], "muted_until": last and last.date()}


def _outcomes_text(outcomes: dict[str, int]) -> str:
    """Return in words what became of replayed jobs: `15 dead again, 3 completed`."""
    labels = {**dict(JobStatus.choices), DEAD_AGAIN: _("died again")}
    return ", ".join(
        f"{number_format(count)} {labels.get(outcome, outcome)}" for outcome, count in sorted(outcomes.items())
    )
