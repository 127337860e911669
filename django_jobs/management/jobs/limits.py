"""The verbs of limits: limits, with set and reset below it."""

from __future__ import annotations

from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.limits import reset_limit, set_limit
from django_jobs.stats import LimitStats, limit_stats
from django_jobs.text import shown

from .output import Output
from .verbs import EACH, Verbs

NONE = "none"


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add("limits", list_limits, "list limits: how many jobs run under each, and how many wait", over=EACH)
    below = Verbs(parser, dest="limits_verb", required=False)
    parser = below.add(
        "set",
        set_one,
        "set the number of a limit, in place of the code's until it is reset",
        "limits set queue:mail --concurrency 5",
        "limits set type:mail.send --concurrency none",
        as_json=False,
    )
    parser.add_argument("name", metavar="NAME", help="as `jobs limits` lists it: type:…, queue:… or name:…")
    parser.add_argument("--concurrency", required=True, metavar="N|none", help="how many jobs may run at once")
    parser = below.add(
        "reset", reset_one, "let the number hold again that the code says", "limits reset queue:mail", as_json=False
    )
    parser.add_argument("name", metavar="NAME")


def list_limits(options: dict[str, Any], out: Output) -> None:
    """Print each limit without a key, and each value of a key under which jobs run or wait."""
    found = limit_stats()
    if out.as_json:
        for one in found:
            out.json(_values(one))
    else:
        rows = [(one.name, one.key, one.concurrency, one.set_at, one.running, one.waiting) for one in found]
        out.table(("LIMIT", "KEY", "AT ONCE", "SET SINCE", "RUNNING", "WAITING"), rows)


def _values(one: LimitStats) -> dict[str, Any]:
    return {
        "name": one.name,
        "key": one.key,
        "concurrency": one.concurrency,
        "running": one.running,
        "waiting": one.waiting,
        "set_at": one.set_at,
    }


def set_one(options: dict[str, Any], out: Output) -> None:
    """Set a limit."""
    concurrency = _number(options["concurrency"])
    set_limit(options["name"], concurrency=concurrency)
    out.state(options["name"], f"at most {concurrency} at once" if concurrency else "no limit")


def reset_one(options: dict[str, Any], out: Output) -> None:
    """Reset a limit."""
    reset_limit(options["name"])
    out.state(options["name"], "reset")


def _number(text: str) -> int | None:
    if text == NONE:
        return None
    if not text.isdecimal() or not text.isascii():
        raise InvalidJob(f"--concurrency {shown(text)}: give a number of jobs, or none")
    return int(text)
