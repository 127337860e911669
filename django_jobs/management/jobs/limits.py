"""The verbs of limits: limits, with set and reset below it."""

from __future__ import annotations

from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.limits import KEEP, reset_limit, set_limit
from django_jobs.stats import LimitStats, limit_stats
from django_jobs.text import shown

from .output import Output
from .verbs import EACH, Verbs

NONE = "none"


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "limits",
        list_limits,
        "list limits: how many jobs run and have started under each, and how many wait",
        over=EACH,
    )
    below = Verbs(parser, dest="limits_verb", required=False)
    parser = below.add(
        "set",
        set_one,
        "set the numbers of a limit, in place of the code's until it is reset",
        "limits set queue:mail --concurrency 5",
        "limits set type:mail.send --rate 100/m --concurrency none",
        as_json=False,
    )
    parser.add_argument("name", metavar="NAME", help="as `jobs limits` lists it: type:…, queue:… or name:…")
    parser.add_argument("--concurrency", metavar="N|none", help="how many jobs may run at once")
    parser.add_argument(
        "--rate", metavar="N/s|m|h|d|none", help="how many jobs may start in a second, minute, hour or day"
    )
    parser = below.add(
        "reset", reset_one, "let the numbers hold again that the code says", "limits reset queue:mail", as_json=False
    )
    parser.add_argument("name", metavar="NAME")


def list_limits(options: dict[str, Any], out: Output) -> None:
    """Print each limit without a key, and each value of a key under which jobs run or wait."""
    found = limit_stats()
    if out.as_json:
        for one in found:
            out.json(_values(one))
    else:
        rows = [
            (
                one.name, one.key, one.concurrency, one.rate, one.set_at, one.running, one.started if one.rate else None,
                one.waiting, one.next_start_at,
            )
            for one in found
        ]  # fmt: skip
        out.table(("LIMIT", "KEY", "AT ONCE", "RATE", "SET SINCE", "RUNNING", "STARTED", "WAITING", "NEXT START"), rows)


def _values(one: LimitStats) -> dict[str, Any]:
    return {
        "name": one.name,
        "key": one.key,
        "concurrency": one.concurrency,
        "rate": one.rate,
        "running": one.running,
        "started": one.started,
        "waiting": one.waiting,
        "next_start_at": one.next_start_at,
        "set_at": one.set_at,
    }


def set_one(options: dict[str, Any], out: Output) -> None:
    """Set a limit."""
    concurrency, rate = options["concurrency"], options["rate"]
    if concurrency is None and rate is None:
        raise InvalidJob("give --concurrency, --rate or both")
    set_limit(
        options["name"],
        concurrency=KEEP if concurrency is None else _number(concurrency),
        rate=KEEP if rate is None else None if rate == NONE else rate,
    )
    words = [word for word in (concurrency and f"at once: {concurrency}", rate and f"rate: {rate}") if word is not None]
    out.state(options["name"], ", ".join(words))


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
