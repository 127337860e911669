"""The operations: what each is called, who may do it, what it asks for, and the move that does it."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from django_jobs.lifecycle import bulk, edit
from django_jobs.names import MAX_QUEUE

from .operate import Operation

SLOWEST, FASTEST = 0.01, 10_000


class RateForm(forms.Form):
    """Options of a replay."""

    per_second = forms.FloatField(
        label=_("At most per second"),
        min_value=SLOWEST,
        max_value=FASTEST,
        required=False,
        help_text=_("Spread the jobs over time so that they do not overrun what failed. Empty: all at once."),
    )


class NoteForm(forms.Form):
    """Options of an acknowledgement."""

    note = forms.CharField(
        label=_("Note"),
        max_length=2_000,
        required=False,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text=_("Why nothing needs to be done; kept with the letter and in the history."),
    )


class ChangeForm(forms.Form):
    """What can be changed on waiting jobs."""

    priority = forms.IntegerField(
        label=_("Priority"), min_value=1, max_value=10, required=False, help_text=_("1 to 10, higher runs first.")
    )
    queue = forms.CharField(label=_("Queue"), max_length=MAX_QUEUE, required=False)

    def clean(self) -> dict[str, object]:
        """Require at least one change."""
        cleaned: dict[str, object] = super().clean() or {}
        if not self.errors and cleaned.get("priority") is None and not cleaned.get("queue"):
            raise forms.ValidationError(_("Give a priority, a queue, or both."))
        return cleaned


REPLAY_LETTERS = Operation(
    title=_("Replay dead letters"),
    permission="replay_deadletter",
    form=RateForm,
    run=lambda ids, order: bulk.replay_letters(ids, by=order.by, delays=order.delays(len(ids))),
    done=ngettext_lazy("Replayed %(count)s dead letter.", "Replayed %(count)s dead letters.", "number"),
    help=_("Each job runs again from the start, with the retries of a new one."),
)
ACKNOWLEDGE_LETTERS = Operation(
    title=_("Acknowledge dead letters"),
    permission="acknowledge_deadletter",
    form=NoteForm,
    run=lambda ids, order: bulk.acknowledge_many(ids, by=order.by, note=order.options.get("note") or ""),
    done=ngettext_lazy("Acknowledged %(count)s dead letter.", "Acknowledged %(count)s dead letters.", "number"),
    help=_("The letters are closed; their jobs stay as they are."),
)
REPLAY_JOBS = Operation(
    title=_("Replay jobs"),
    permission="replay_deadletter",
    form=RateForm,
    run=lambda ids, order: bulk.replay_many(ids, by=order.by, delays=order.delays(len(ids))),
    done=ngettext_lazy("Replayed %(count)s job.", "Replayed %(count)s jobs.", "number"),
    help=_("Dead, failed and cancelled jobs run again from the start, and their open dead letters are closed."),
)
RUN_JOBS_NOW = Operation(
    title=_("Run jobs now"),
    permission="replay_deadletter",
    run=lambda ids, order: bulk.run_many_now(ids),
    done=ngettext_lazy("%(count)s job may run now.", "%(count)s jobs may run now.", "number"),
    help=_("Scheduled jobs, and those that wait for their next retry, start as soon as a worker is free."),
)
CANCEL_JOBS = Operation(
    title=_("Cancel jobs"),
    permission="cancel_job",
    run=lambda ids, order: bulk.cancel_many(ids),
    done=ngettext_lazy(
        "Cancelled %(count)s job, or asked its worker to.",
        "Cancelled %(count)s jobs, or asked their workers to.",
        "number",
    ),
    asks=True,
    help=_(
        "Waiting jobs are cancelled at once. Running ones are asked to stop: a handler that never looks for the request"
        " runs to its end. Jobs that depend on them fail, unless they run anyway."
    ),
)
CHANGE_JOBS = Operation(
    title=_("Change priority or queue"),
    permission="change_job",
    form=ChangeForm,
    run=lambda ids, order: edit.change_many(
        ids, priority=order.options.get("priority"), queue=order.options.get("queue") or None
    ),
    done=ngettext_lazy("Changed %(count)s job.", "Changed %(count)s jobs.", "number"),
    asks=True,
    help=_("Jobs that wait are changed; those that run or are finished stay as they are."),
)
