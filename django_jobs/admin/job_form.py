"""The form of a new job: fields from the signature of its type's handler."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import ADDITION
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from django_jobs.api import submit
from django_jobs.exceptions import JobsError
from django_jobs.handlers import Handler, registry
from django_jobs.names import MAX_QUEUE
from django_jobs.numbers import LONGEST_SECONDS
from django_jobs.shell import SHELL

from .forms import PayloadField, ValueField
from .operations import OperatingAdmin
from .widgets import cut

OPTIONS = ("queue", "priority", "delay", "unique_key")
MOST_SHOWN = 200
FIELDS: dict[str, Callable[..., forms.Field]] = {
    "str": lambda **given: forms.CharField(strip=False, widget=forms.TextInput(attrs={"size": 60}), **given),
    "int": forms.IntegerField,
    "float": forms.FloatField,
    "bool": lambda **given: forms.BooleanField(**{**given, "required": False}),
}


class JobForm(forms.Form):
    """The options of a job; the fields of its payload are added for each type."""

    queue = forms.CharField(
        label=gettext_lazy("Queue"),
        max_length=MAX_QUEUE,
        required=False,
        help_text=gettext_lazy("Empty: that of the job type."),
    )
    priority = forms.IntegerField(
        label=gettext_lazy("Priority"),
        min_value=1,
        max_value=10,
        required=False,
        help_text=gettext_lazy("1 to 10, higher runs first."),
    )
    delay = forms.FloatField(
        label=gettext_lazy("Delay"),
        min_value=0,
        max_value=LONGEST_SECONDS,
        required=False,
        help_text=gettext_lazy("Seconds before it may start. Empty: at once."),
    )
    unique_key = forms.CharField(
        label=gettext_lazy("Unique key"),
        max_length=200,
        required=False,
        help_text=gettext_lazy("While a live job holds this key, no other one is made."),
    )

    def __init__(self, handler: Handler, data: Any = None) -> None:
        super().__init__(data)
        # None of the keys, which may have any name, hides an option.
        self._names = {f"argument-{one.name}": one for one in _parameters(handler)}
        self.fields |= {name: _field(one) for name, one in self._names.items()}
        if handler.arguments is None:
            self.fields["payload"] = PayloadField(label=gettext_lazy("Payload"), required=False)
        elif handler.arguments.takes_any:
            self.fields["payload"] = PayloadField(label=gettext_lazy("Further keys"), required=False)

    def argument_fields(self) -> list[Any]:
        """Return the fields of the payload, as the handler names them."""
        return [self[name] for name in (*self._names, "payload") if name in self.fields]

    def payload(self) -> dict[str, Any]:
        """Return the payload of a valid form; a key that was left empty and has a default is left out."""
        given = {
            one.name: self.cleaned_data[name]
            for name, one in self._names.items()
            if one.default is Parameter.empty or self.cleaned_data[name] not in (None, "", one.default)
        }
        return {**self.cleaned_data.get("payload", {}), **given}

    def options(self) -> dict[str, Any]:
        """Return the options that were given."""
        return {name: self.cleaned_data[name] for name in OPTIONS if self.cleaned_data[name] not in (None, "")}


def _parameters(handler: Handler) -> list[Parameter]:
    return [] if handler.arguments is None else handler.arguments.by_name()


def _field(one: Parameter) -> forms.Field:
    """Return the field of an argument: by its annotation, else by its default, else any value of JSON."""
    has_default = one.default is not Parameter.empty
    kind = getattr(one.annotation, "__name__", one.annotation) if one.annotation is not Parameter.empty else None
    if kind is None and has_default:
        kind = type(one.default).__name__
    make = FIELDS.get(str(kind))
    shows = has_default and isinstance(one.default, str | int | float)
    return (make or ValueField)(
        label=one.name,
        required=not has_default,
        initial=one.default if shows and make else None,
        help_text="" if make else _('A value of JSON: 7, "text", true, [1, 2]'),
    )


class JobForms(OperatingAdmin):
    """The page that makes a job; part of the admin of jobs."""

    def get_urls(self) -> list[Any]:
        new = self.admin_site.admin_view(self.new_view)
        return [path("_types/<str:job_type>/new/", new, name="django_jobs_job_new"), *super().get_urls()]

    def may_make(self, request: HttpRequest, job_type: str) -> bool:
        """Say whether the user may make jobs of a type here. Commands of the shell are for those who have one."""
        return self.may(request, "add_job") and job_type != SHELL and registry.find(job_type) is not None

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def new_view(self, request: HttpRequest, job_type: str) -> HttpResponse:
        """Show the form of a new job of a type, or make it."""
        name = unquote(job_type)
        handler = registry.find(name)
        if handler is None or not self.may_make(request, name):
            raise PermissionDenied
        form = JobForm(handler, request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid() and (answer := self._make(request, name, form)) is not None:
            return answer
        context = {
            "form": form,
            "groups": [
                (_("Payload"), form.argument_fields()),
                (_("The job"), [form[one] for one in OPTIONS]),
            ],
            "back_url": self.url("job_type", job_type),
        }
        return self.page(request, "job_form.html", _("Make a job: %(name)s") % {"name": cut(name, 100)}, context)

    def _make(self, request: HttpRequest, job_type: str, form: JobForm) -> HttpResponse | None:
        """Submit the job and lead to its page; None when it was refused, which the form shows then."""
        try:
            job = submit(job_type, form.payload(), **form.options())
        except JobsError as error:
            form.add_error(None, cut(str(error), MOST_SHOWN))
            return None
        message = _("Made job %(id)s.") % {"id": job.pk}
        messages.success(request, message)
        self.write_log(request, [(job.pk, str(job))], message, flag=ADDITION)
        return HttpResponseRedirect(self.object_url("job", job.pk))
