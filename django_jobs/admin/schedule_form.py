"""The form of a schedule: make one, or change one that was made at run time, with a look at its next ticks first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.handlers import registry
from django_jobs.masking import pretty, unmasked
from django_jobs.models import Schedule
from django_jobs.scheduling.store import save_schedule
from django_jobs.shell import SHELL
from django_jobs.text import shown

from .forms import PayloadField
from .operations import OperatingAdmin
from .widgets import cut

PREVIEWED = 10
TIMING = ("kind", "cron", "timezone", "interval_seconds", "run_at")
JOB = ("queue", "priority", "max_retries", "timeout_seconds")
MISSED = ("catch_up", "grace_seconds", "overlap", "jitter_seconds", "enabled")


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """The columns that people choose; the model's own check names every problem."""

    payload = PayloadField(label=gettext_lazy("Payload"), required=False)

    class Meta:
        model = Schedule
        fields = ("name", "job_type", *TIMING, *JOB, *MISSED)
        widgets = {
            "job_type": forms.TextInput(attrs={"list": "jobs-types", "size": 40}),
            "name": forms.TextInput(attrs={"size": 40}),
            "timezone": forms.TextInput(attrs={"size": 24}),
            "cron": forms.TextInput(attrs={"size": 24, "dir": "ltr"}),
            "run_at": forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S"),
        }
        help_texts = {
            "kind": gettext_lazy("once: give “run at”; interval: the seconds; cron: the expression and its time zone."),
            "cron": gettext_lazy("Minute, hour, day, month, weekday: 30 2 * * MON-FRI is 2:30 from Monday to Friday."),
            "timezone": gettext_lazy("Such as Europe/Berlin: the cron expression is read in it."),
            "queue": gettext_lazy("Empty: that of the job type."),
            "grace_seconds": gettext_lazy("With “catch up: none”: how late a tick may still be made."),
            "jitter_seconds": gettext_lazy("Spreads the starts of the jobs over so many seconds."),
        }

    def __init__(self, *args: Any, may_see: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._before = self.instance.payload
        if may_see:
            self.fields["payload"].initial = pretty(self._before)
        else:
            del self.fields["payload"]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if "payload" in cleaned:
            # The model's check, which comes next, looks at what will be stored.
            self.instance.payload = cleaned["payload"] = unmasked(cleaned["payload"], self._before)
        return cleaned


class ScheduleForms(OperatingAdmin):
    """The pages that make and change schedules; part of the admin of schedules."""

    def get_urls(self) -> list[Any]:
        edit = self.admin_site.admin_view(self.edit_view)
        return [path("<path:object_id>/edit/", edit, name="django_jobs_schedule_edit"), *super().get_urls()]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "add_schedule")

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Show the form of a new schedule; preview or write it."""
        self.require(request, "add_schedule")
        return self._form_view(request, Schedule(), _("Make a schedule"))

    def edit_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the form of a schedule that was made at run time; preview or write it."""
        self.require(request, "change_schedule")
        row = self.find(Schedule.objects.all(), unquote(object_id))
        if row is None:
            return self.not_found(request, object_id)
        if row.declared:
            raise PermissionDenied  # the next migrate would write what the code says
        return self._form_view(request, row, _("Change schedule %(name)s") % {"name": cut(row.name, 64)})

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def _form_view(self, request: HttpRequest, row: Schedule, title: str) -> HttpResponse:
        may_see, had = self.may(request, "view_payload"), row.job_type
        form = ScheduleForm(request.POST or None, instance=row, may_see=may_see)
        ticks: list[datetime] = []
        is_valid = request.method == "POST" and form.is_valid()
        if SHELL in (had, row.job_type):
            raise PermissionDenied  # as of jobs: commands of the shell are for those who have one
        if is_valid:
            if "preview" not in request.POST:
                if (answer := self._write(request, form)) is not None:
                    return answer
            else:
                timing = row.checked(registry).timing
                ticks = timing.upcoming(timing.first(database_now()), PREVIEWED)
        context = {
            "form": form,
            "groups": [
                (_("What"), [form[name] for name in ("name", "job_type", "payload") if name in form.fields]),
                (_("When"), [form[name] for name in TIMING]),
                (_("The job"), [form[name] for name in JOB]),
                (_("Missed and overlapping ticks"), [form[name] for name in MISSED]),
            ],
            "job_types": registry.job_types(),
            "previewed": "preview" in request.POST and form.is_bound and form.is_valid(),
            "ticks": ticks,
            "zone": get_current_timezone_name(),
            "description": self.description(row),
            "back_url": self.object_url("schedule", row.pk) if row.pk else self.list_url("schedule"),
        }
        return self.page(request, "schedule_form.html", title, context)

    def description(self, row: Schedule) -> str:
        """Return in words when a schedule ticks."""
        raise NotImplementedError

    def _write(self, request: HttpRequest, form: ScheduleForm) -> HttpResponse | None:
        """Write the row and lead to its page; None when it was refused, which the form shows then."""
        row, is_new = form.instance, form.instance.pk is None
        try:
            save_schedule(row)
        except (JobsError, IntegrityError) as error:
            form.add_error(None, shown(str(error)))
            return None
        text = _("Made schedule %(name)s.") if is_new else _("Changed schedule %(name)s: %(fields)s.")
        message = text % {"name": row.name, "fields": ", ".join(form.changed_data)}
        messages.success(request, message)
        self.write_log(request, [(str(row.pk), str(row))], message)
        return HttpResponseRedirect(self.object_url("schedule", row.pk))
