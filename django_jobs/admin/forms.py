"""Fields of our forms: values of JSON as text."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.utils.translation import gettext as _

from django_jobs.text import shown


class ValueField(forms.CharField):
    """Any value of JSON as text."""

    widget = forms.Textarea(attrs={"rows": 2, "class": "jobs-edit", "spellcheck": "false", "dir": "ltr"})

    def clean(self, value: Any) -> Any:
        return self.parsed(super().clean(value))

    def parsed(self, text: str) -> Any:
        """Return the value; None for no text."""
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(_("This is no JSON: %(error)s") % {"error": shown(str(error))}) from None


class PayloadField(ValueField):
    """A JSON object as text."""

    widget = forms.Textarea(attrs={"rows": 8, "class": "jobs-edit", "spellcheck": "false", "dir": "ltr"})

    def parsed(self, text: str) -> Any:
        found = super().parsed(text or "{}")
        if not isinstance(found, dict):
            raise forms.ValidationError(_("Give a JSON object, such as {}."))
        return found
