"""What operators do with waiting, running and finished jobs: each act says what it moves, what it asks and what it tells."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.delete import delete_finished, discard
from django_jobs.lifecycle.events import emit
from django_jobs.lifecycle.moved import Moved
from django_jobs.lifecycle.promote import run_now
from django_jobs.lifecycle.replay import replay
from django_jobs.models import JobStep, OperationKind, StepKind
from django_jobs.models.job import LIVE
from django_jobs.names import MAX_QUEUE

from .operations import Act, Chunk, ReplayForm

ANY_STATUS = {"status": ""}  # the filter that still shows jobs whose status an operation changed


class ChangeForm(forms.Form):
    """What can be changed on waiting jobs."""

    priority = forms.IntegerField(
        label=gettext_lazy("Priority"),
        min_value=1,
        max_value=10,
        required=False,
        help_text=gettext_lazy("1 to 10, higher runs first."),
    )
    queue = forms.CharField(label=gettext_lazy("Queue"), max_length=MAX_QUEUE, required=False)

    def clean(self) -> dict[str, object]:
        cleaned: dict[str, object] = super().clean() or {}
        if not self.errors and cleaned.get("priority") is None and not cleaned.get("queue"):
            raise forms.ValidationError(_("Give a priority, a queue, or both."))
        return cleaned


REPLAY = Act(
    title=gettext_lazy("Replay jobs"),
    kind=OperationKind.REPLAY,
    keywords=("from_start",),
    permission="replay_deadletter",
    form=ReplayForm,
    run=lambda chunk: replay(chunk.ids, by=chunk.by, from_start=chunk.from_start),
    done=ngettext_lazy("Replayed %(count)s job.", "Replayed %(count)s jobs.", "number"),
    afterwards=ANY_STATUS,
    help=gettext_lazy("Dead, failed and cancelled jobs run again, and their open dead letters are closed."),
)
RUN_NOW = Act(
    title=gettext_lazy("Run jobs now"),
    kind=OperationKind.RUN_NOW,
    permission="replay_deadletter",
    run=lambda chunk: run_now(chunk.ids),
    done=ngettext_lazy("%(count)s job may run now.", "%(count)s jobs may run now.", "number"),
    afterwards=ANY_STATUS,
    help=gettext_lazy("Scheduled jobs, and those that wait for their next retry, start as soon as a worker is free."),
)
CANCEL = Act(
    title=gettext_lazy("Cancel jobs"),
    kind=OperationKind.CANCEL,
    permission="cancel_job",
    run=lambda chunk: cancel(chunk.ids),
    done=ngettext_lazy(
        "Cancelled %(count)s job, or asked its worker to.",
        "Cancelled %(count)s jobs, or asked their workers to.",
        "number",
    ),
    afterwards=ANY_STATUS,
    needs_confirmation=True,
    help=gettext_lazy(
        "Waiting jobs are cancelled at once. Running ones are asked to stop: a handler that never looks for the request"
        " runs to its end. Jobs that depend on them fail, unless they run anyway."
    ),
)
CHANGE = Act(
    title=gettext_lazy("Change priority or queue"),
    kind=OperationKind.CHANGE,
    keywords=("priority", "queue"),
    permission="change_job",
    form=ChangeForm,
    run=lambda chunk: change(
        chunk.ids, priority=chunk.options.get("priority"), queue=chunk.options.get("queue") or None
    ),
    done=ngettext_lazy("Changed %(count)s job.", "Changed %(count)s jobs.", "number"),
    needs_confirmation=True,
    help=gettext_lazy("Jobs that wait are changed; those that run or are finished stay as they are."),
)


DELETE = Act(
    title=gettext_lazy("Delete finished jobs"),
    kind=OperationKind.DELETE,
    permission="delete_job",
    is_final=True,
    run=lambda chunk: delete_finished(chunk.ids),
    done=ngettext_lazy("Deleted %(count)s job.", "Deleted %(count)s jobs.", "number"),
    needs_confirmation=True,
    help=gettext_lazy(
        "Finished jobs are deleted with all that is on record of them. Those with an open dead letter, those that a live job"
        " depends on and members of a batch that goes on stay."
    ),
)
DISCARD = Act(
    title=gettext_lazy("Discard waiting jobs"),
    kind=OperationKind.DISCARD,
    permission="discard_job",
    is_final=True,
    run=lambda chunk: discard(chunk.ids),
    done=ngettext_lazy("Discarded %(count)s job.", "Discarded %(count)s jobs.", "number"),
    needs_confirmation=True,
    help=gettext_lazy(
        "Waiting jobs are cancelled and deleted: they never run, and nothing is left of them. Jobs that depend on them fail,"
        " unless they run anyway."
    ),
)


class EventForm(forms.Form):
    """What an event tells."""

    payload = forms.JSONField(
        label=gettext_lazy("Payload"),
        required=False,
        help_text=gettext_lazy("A JSON object, which every job gets that waits for the event. Empty: {}."),
    )


def _send_events(chunk: Chunk) -> Moved:
    """Emit what jobs wait for; an event that several wait for is emitted once."""
    waits = JobStep.objects.filter(job_id__in=chunk.ids, kind=StepKind.EVENT, ended_at=None, job__status__in=LIVE)
    found = list(waits.order_by("job_id"))
    for name, key in dict.fromkeys((str(wait.event_name), wait.event_key) for wait in found):
        emit(name, key=key, payload=chunk.options.get("payload"))
    return Moved.of(chunk.ids, {}, sorted({wait.job_id for wait in found}), "")


SEND_EVENT = Act(
    title=gettext_lazy("Send the events that jobs wait for"),
    permission="send_event",
    form=EventForm,
    run=_send_events,
    done=ngettext_lazy("Sent what %(count)s job waited for.", "Sent what %(count)s jobs waited for.", "number"),
    needs_confirmation=True,
    help=gettext_lazy("An event is for everybody: all jobs that wait for it go on, and later ones get it, too."),
)
