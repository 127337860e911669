"""The page of one dead letter: what happened, and the buttons that mend it."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.translation import gettext as _

from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.edit import replay_edited
from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import DeadLetter
from django_jobs.models.job import ENDED_BADLY
from django_jobs.text import shown

from .masking import pretty, unmasked
from .operate import OperatingAdmin
from .paging import capped_count, count_text
from .widgets import cut, letter_badge, status_badge

LONGEST_TEXT = 50_000


class LetterPage(OperatingAdmin):
    """The page of one letter, and the replay with another payload."""

    def get_urls(self) -> list[Any]:
        """Add the address of the replay with an edited payload."""
        view = self.admin_site.admin_view(self.replay_edited_view)
        edited = path("<path:object_id>/replay-edited/", view, name="django_jobs_deadletter_replay_edited")
        return [edited, *super().get_urls()]

    def find_letter(self, object_id: str) -> DeadLetter | None:
        """Return the letter with its job, or None."""
        try:
            return DeadLetter.objects.select_related("job", "acknowledged_by", "replayed_by").get(pk=unquote(object_id))
        except (DeadLetter.DoesNotExist, ValueError):
            return None

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one letter."""
        self.require(request, "view_deadletter")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        letter = self.find_letter(object_id)
        if letter is None:
            return self.not_found(request, object_id)
        return self._letter_page(request, letter)

    def _letter_page(self, request: HttpRequest, letter: DeadLetter, payload: str | None = None) -> HttpResponse:
        may_see = self.may(request, "view_payload")
        may_replay = self.may(request, "replay_deadletter")
        alike = DeadLetter.objects.open().filter(fingerprint=letter.fingerprint).exclude(pk=letter.pk)
        context: dict[str, Any] = {
            "original": letter,
            "object_id": letter.pk,
            "change": True,
            "letter": letter,
            "job": letter.job,
            "state": letter_badge(letter),
            "status": status_badge(letter.job),
            "now": database_now(),
            "error": cut(letter.error, LONGEST_TEXT),
            "traceback": cut(letter.traceback, LONGEST_TEXT),
            "job_url": self.object_url("job", letter.job_id),
            "list_url": self.list_url("deadletter"),
            "alike": count_text(capped_count(alike)) if letter.fingerprint else "",
            "may_replay": may_replay and letter.is_open,
            "may_acknowledge": self.may(request, "acknowledge_deadletter") and letter.is_open,
            "may_see": may_see,
            "may_edit": may_see and may_replay and letter.is_open and letter.job.status in ENDED_BADLY,
            "payload": (payload if payload is not None else pretty(letter.job.payload)) if may_see else "",
            "edited_url": self._edited_url(letter),
            "history_url": reverse(f"{self.admin_site.name}:django_jobs_deadletter_history", args=(letter.pk,)),
        }
        return self.page(request, "admin/django_jobs/letter_page.html", _("Dead letter"), context)

    def _edited_url(self, letter: DeadLetter) -> str:
        return reverse(f"{self.admin_site.name}:django_jobs_deadletter_replay_edited", args=(letter.pk,))

    def replay_edited_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Replay a letter's job with the payload that was typed in; masks left in it keep the values they hide."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self.require(request, "view_payload")
        self.require(request, "replay_deadletter")
        letter = self.find_letter(object_id)
        if letter is None:
            return self.not_found(request, object_id)
        if not letter.is_open:
            raise PermissionDenied
        typed = request.POST.get("payload", "")
        try:
            payload = unmasked(json.loads(typed), letter.job.payload)
            replay_edited(letter.job_id, payload, by=request.user)
        except (JobsError, ValueError, RecursionError) as error:
            messages.error(request, _("The payload was refused: %(error)s") % {"error": shown(str(error))})
            return self._letter_page(request, letter, typed)
        message = _("Replayed 1 dead letter with an edited payload.")
        messages.success(request, message)
        self.write_log(request, [(str(letter.pk), str(letter))], message)
        return HttpResponseRedirect(self.object_url("deadletter", letter.pk))
