"""Bar charts as SVG made on the server: classes for colours, a sentence for those who do not see them.

A bar says its numbers above the chart while it is pointed at or has the focus. Of a chart's bars the last one is a stop of the
Tab key; arrow keys go on from there (console.js), so that a page of charts is not hundreds of stops. Without the script all
numbers are in the table below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import get_current_timezone_name, localtime
from django.utils.translation import gettext as _

from .widgets import cut

WIDTH, HEIGHT, FOOT, HEAD = 420, 100, 16, 14


def bars_of(
    minutes: Mapping[datetime, tuple[int, int]], now: datetime, bars: int, width: timedelta
) -> list[tuple[datetime, int, int]]:
    """Sum counts by minute into `bars` bars of equal width that end with the present one: (start, good, bad)."""
    seconds = int(width.total_seconds())
    last = int(now.timestamp()) // seconds
    sums = {number: [0, 0] for number in range(last - bars + 1, last + 1)}
    for minute, (good, bad) in minutes.items():
        number = int(minute.timestamp()) // seconds
        if number in sums:
            sums[number][0] += good
            sums[number][1] += bad
    return [(datetime.fromtimestamp(n * seconds, tz=now.tzinfo), good, bad) for n, (good, bad) in sums.items()]


def chart(
    series: Sequence[tuple[datetime, int, int]], title: str, deploys: Sequence[tuple[datetime, str]] = ()
) -> SafeString:
    """Draw jobs that ended well, and on top of them those that ended badly; with a legend, and the numbers as a table.

    Args:
        deploys: when which release came; each that falls into the series gets a mark.
    """
    good, bad = sum(bar[1] for bar in series), sum(bar[2] for bar in series)
    top = max((bar[1] + bar[2] for bar in series), default=0)
    label = _("%(title)s: %(good)s completed, %(bad)s failed, at most %(top)s in one bar") % {
        "title": title, "good": number_format(good), "bad": number_format(bad), "top": number_format(top),
    }  # fmt: skip
    step = WIDTH / max(1, len(series))
    form = _form(series)
    last = max((index for index, bar in enumerate(series) if bar[1] + bar[2]), default=None)
    drawn = format_html_join(
        "", "{}", ((_bar(index * step, step, bar, top, form, index == last),) for index, bar in enumerate(series))
    )
    return format_html(
        '<figure class="jobs-figure"><svg class="jobs-chart" role="group" aria-label="{}" viewBox="0 0 {} {}"'
        ' xmlns="http://www.w3.org/2000/svg">{}<line x1="0" x2="{}" y1="{}" y2="{}"/>{}{}</svg>{}</figure>',
        label, WIDTH, HEIGHT, drawn, WIDTH, HEIGHT - FOOT, HEIGHT - FOOT, _labels(series, top, form),
        _marks(series, step, deploys), _legend(series, form, deploys),
    )  # fmt: skip


def _form(series: Sequence[tuple[datetime, int, int]]) -> str:
    """Return how to write the times of bars: as a day, or as a time of day, with its day where the bars span more than one."""
    width = series[1][0] - series[0][0] if len(series) > 1 else timedelta()
    if width >= timedelta(days=1):
        return "%m-%d"
    return "%m-%d %H:%M" if len(series) * width > timedelta(days=1) else "%H:%M"


def _marks(
    series: Sequence[tuple[datetime, int, int]], step: float, deploys: Sequence[tuple[datetime, str]]
) -> SafeString:
    """Draw a line where a release came."""
    drawn = []
    for at, release in _inside(series, deploys):
        index = max(number for number, (start, _good, _bad) in enumerate(series) if start <= at)
        drawn.append(
            (
                f"{index * step:.1f}",
                f"{index * step:.1f}",
                HEIGHT - FOOT,
                _("Release %(name)s") % {"name": cut(release, 64)},
            )
        )
    return format_html_join(
        "", '<g class="jobs-deploy"><line x1="{}" x2="{}" y1="0" y2="{}"/><title>{}</title></g>', drawn
    )


def _inside(
    series: Sequence[tuple[datetime, int, int]], deploys: Sequence[tuple[datetime, str]]
) -> list[tuple[datetime, str]]:
    return [(at, release) for at, release in deploys if series and at >= series[0][0]]


def _legend(
    series: Sequence[tuple[datetime, int, int]], form: str, deploys: Sequence[tuple[datetime, str]]
) -> SafeString:
    """Say what the colours are and whose time it is; the numbers, for those who do not point at bars, unfold."""
    has_good = any(good for _start, good, _bad in series)
    good_key = format_html('<span class="jobs-key">{}</span> ', _("completed")) if has_good else ""
    rows = format_html_join(
        "",
        '<tr><th scope="row">{}</th><td class="jobs-number">{}</td><td class="jobs-number">{}</td></tr>',
        (
            (f"{localtime(start):{form}}", number_format(good), number_format(bad))
            for start, good, bad in reversed(series)
            if good + bad
        ),
    )
    numbers = format_html(
        '<details class="jobs-numbers"><summary>{}</summary><table class="jobs-table"><thead><tr><th scope="col">{}</th>'
        '<th scope="col" class="jobs-number">{}</th><th scope="col" class="jobs-number">{}</th></tr></thead>'
        "<tbody>{}</tbody></table></details>",
        _("Numbers"), _("From"), _("completed"), _("failed"), rows,
    )  # fmt: skip
    releases = format_html_join(
        "",
        '<span class="jobs-key jobs-key-deploy">{} {}</span>',
        ((f"{localtime(at):{form}}", cut(release, 64)) for at, release in _inside(series, deploys)),
    )
    return format_html(
        '<figcaption>{}<span class="jobs-key jobs-key-bad">{}</span> {}<span class="jobs-quiet">{}</span>{}</figcaption>',
        good_key, _("failed"), releases, _("times in %(zone)s") % {"zone": get_current_timezone_name()},
        numbers if rows else "",
    )  # fmt: skip


def _bar(x: float, step: float, bar: tuple[datetime, int, int], top: int, form: str, is_last: bool) -> SafeString | str:
    start, good, bad = bar
    if not good + bad:
        return ""
    room = HEIGHT - FOOT - HEAD
    good_height = room * good / top
    bad_height = max(1.5, room * bad / top) if bad else 0
    base = HEIGHT - FOOT
    tip = _("%(time)s: %(good)s completed, %(bad)s failed") % {
        "time": f"{localtime(start):{form}}", "good": number_format(good), "bad": number_format(bad),
    }  # fmt: skip
    parts = []
    if good:
        parts.append(("", base - good_height, good_height))
    if bad:
        parts.append(("jobs-bar-bad", base - good_height - bad_height, bad_height))
    width = f"{max(0.5, step - 1):.1f}"
    rects = format_html_join(
        "",
        '<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>',
        ((kind, f"{x + 0.5:.1f}", f"{y:.1f}", width, f"{height:.1f}") for kind, y, height in parts),
    )
    return format_html(
        '<g class="jobs-column" role="img" aria-label="{}" tabindex="{}" data-at="{}">'
        '<rect class="jobs-reach" x="{}" y="0" width="{}" height="{}"/>{}<text class="jobs-tip" x="{}" y="10">{}</text></g>',
        tip, "0" if is_last else "-1", int(start.timestamp()),
        f"{x:.1f}", f"{step:.1f}", base, rects, WIDTH // 2, tip,
    )  # fmt: skip


def _labels(series: Sequence[tuple[datetime, int, int]], top: int, form: str) -> SafeString:
    """Draw the highest bar's value, and the first, middle and last time."""
    texts = [(0, 10, "start", number_format(top))] if top else []
    if series:
        y = HEIGHT - 4
        texts += [
            (0, y, "start", f"{localtime(series[0][0]):{form}}"),
            (WIDTH // 2, y, "middle", f"{localtime(series[len(series) // 2][0]):{form}}"),
            (WIDTH, y, "end", f"{localtime(series[-1][0]):{form}}"),
        ]
    return format_html_join("", '<text x="{}" y="{}" text-anchor="{}">{}</text>', texts)
