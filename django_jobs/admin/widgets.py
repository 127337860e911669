"""Small pieces of escaped HTML: badges, times, cut text. Whatever comes from a row is hostile text."""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Any

from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

SHORT = 120
LONGEST_TEXT = 50_000  # of an error or a traceback on a page
NOTHING = "-"
BADGES = frozenset(
    {"pending", "scheduled", "running", "completed", "failed", "dead", "cancelled"}
    | {"open", "acknowledged", "replayed", "paused", "active", "alive", "late", "stopping", "enabled", "disabled"}
)
MINUTE, HOUR, DAY = 60, 3600, 86_400


def badge(kind: str, label: Any) -> SafeString:
    """Show a state as a coloured word; the colour repeats what the word says."""
    known = kind if kind in BADGES else "unknown"
    return format_html('<span class="jobs-badge jobs-{}">{}</span>', known, cut(str(label), 40))


def cut(text: str | None, limit: int = SHORT) -> str:
    """Return text of at most `limit` characters."""
    text = text or ""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def code(text: str | None, limit: int = SHORT) -> SafeString:
    """Show a name or an error, cut, in a box of its own direction so that right-to-left marks disturb nothing else."""
    return format_html('<bdi class="jobs-code">{}</bdi>', cut(text, limit))


def two_lines(first: Any, second: Any) -> SafeString:
    """Show a cell of a list: the important line above a quiet one."""
    return format_html('{}<br><span class="jobs-quiet">{}</span>', first, second)


def with_detail(first: Any, detail: Any) -> SafeString:
    """Show a cell of a list with a line of its own below for what may be long; without a detail as it is."""
    return format_html('{}<div class="jobs-detail">{}</div>', first, detail) if detail else format_html("{}", first)


def link(url: str, text: Any) -> SafeString:
    """Link to one of our pages."""
    return format_html('<a href="{}">{}</a>', url, text)


def dict_of(value: Any) -> dict[str, Any]:
    """Return a JSON object of a column; an empty one for another value, which only a hand can have written."""
    return value if isinstance(value, dict) else {}


def duration(seconds: float | None) -> str:
    """Return a span of time as text in two units at most: `340 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `6 d 3 h`."""
    if seconds is None:
        return NOTHING
    if not isfinite(seconds):  # PostgreSQL and SQLite take such a number from a hand
        return str(seconds)
    seconds = max(0.0, seconds)
    if seconds < 1:
        return _("%(number)s ms") % {"number": round(seconds * 1000)}
    if seconds < MINUTE:
        return _("%(number)s s") % {"number": number_format(seconds, 1) if seconds < 10 else round(seconds)}
    minutes, hours, days = int(seconds // MINUTE), int(seconds // HOUR), int(seconds // DAY)
    if seconds < HOUR:
        units = (_("%(number)s min"), minutes, _("%(number)s s"), int(seconds % MINUTE))
    elif seconds < DAY:
        units = (_("%(number)s h"), hours, _("%(number)s min"), minutes % 60)
    else:
        units = (_("%(number)s d"), days, _("%(number)s h"), hours % 24)
    large, many, small, few = units
    return f"{large % {'number': many}} {small % {'number': few}}" if few else large % {"number": many}


def ago(seconds: float) -> str:
    """Return as text how long ago something was, or in how long it will be."""
    if seconds < 0:
        return _("in %(span)s") % {"span": duration(-seconds)}
    return _("%(span)s ago") % {"span": duration(seconds)}


def moment(when: datetime | None, now: datetime | None = None) -> SafeString | str:
    """Show a time in the site's time zone; with `now`, how long ago it was, and the time as a tooltip."""
    if when is None:
        return NOTHING
    exact = date_format(localtime(when), "DATETIME_FORMAT") + f" ({localtime(when):%H:%M:%S})"
    if now is None:
        return format_html('<time datetime="{}">{}</time>', when.isoformat(), f"{localtime(when):%Y-%m-%d %H:%M:%S}")
    text = ago((now - when).total_seconds())
    return format_html('<time datetime="{}" title="{}">{}</time>', when.isoformat(), exact, text)


def progress_bar(fraction: float | None, message: str) -> SafeString | str:
    """Show how far a job is."""
    if fraction is None:
        return ""
    percent = max(0, min(100, round(fraction * 100)))
    return format_html(
        '<progress class="jobs-progress" max="100" value="{0}" aria-label="{1}">{0} %</progress> {0} % <bdi>{2}</bdi>',
        percent,
        _("Progress"),
        cut(message, 200),
    )


def dead_letter_badge(dead_letter: Any) -> SafeString:
    """Show the state of a dead letter."""
    if dead_letter.replayed_at:
        return badge("replayed", _("replayed"))
    if dead_letter.acknowledged_at:
        return badge("acknowledged", _("acknowledged"))
    if getattr(dead_letter, "is_muted", False):
        return badge("stopping", _("open, muted"))
    return badge("open", _("open"))


def status_badge(job: Any) -> SafeString:
    """Show the status of a job, and of a running one whether it was asked to stop."""
    if job.status == "running" and job.cancel_requested_at:
        return badge("stopping", _("running, asked to stop"))
    return badge(job.status, job.get_status_display())
