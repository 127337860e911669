"""Submit jobs with no worker running: one at a time, each safely stored before the next, and in bulk.

The references on the same table are the bare driver's INSERT, `unnest` and COPY, and the ORM's `create()`.
"""

import time
from typing import Any

from benchmarks import suite
from benchmarks.drain import ENTRIES
from benchmarks.peer import Peer
from benchmarks.suite import Case

WARM_UP = 50


def measure(peer: Peer, way: str, jobs: int) -> dict[str, Any]:
    """Return jobs submitted a second: `way` is single, bulk, or (bare only) orm or copy."""
    peer.prepare()
    if way == "bulk":
        peer.submit("tick", WARM_UP)
        started = time.monotonic()
        peer.submit("tick", jobs)
    elif way == "copy":
        started = time.monotonic()
        _copy(peer, jobs)
    else:
        submit = _create if way == "orm" else peer.submitter("tick")
        for number in range(WARM_UP):
            submit(number)
        started = time.monotonic()
        for number in range(jobs):
            submit(number)
    seconds = time.monotonic() - started
    expected = jobs if way == "copy" else jobs + WARM_UP
    if peer.remaining() != expected:
        raise RuntimeError(f"{peer.remaining()} jobs stored, {expected} expected")
    return {"jobs_per_second": jobs / seconds, "milliseconds_per_job": 1000 * seconds / jobs}


def _create(number: int) -> None:
    """Insert one row the way a site would: the ORM's `create()`."""
    from benchmarks.djangosite.models import BareJob

    BareJob.objects.create(job_type="tick", payload={"number": number})


def _copy(peer: Peer, jobs: int) -> None:
    """Insert rows with COPY, in one transaction (PostgreSQL)."""
    from benchmarks import stores
    from benchmarks.djangosite.models import new_id
    from benchmarks.peers.bare import COLUMNS

    now = time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime())
    row = ("tick", "default", "{}", 0, "pending", now, now, now, 3, 0, "{}", 0, 0, 0)
    statement = f"COPY bare_job ({COLUMNS}) FROM STDIN"
    with (
        stores.postgresql(peer.store.url) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        for _ in range(jobs):
            copy.write_row((new_id(), *row))


def main() -> None:
    options = suite.arguments(__doc__ or "", single=500, bulk=10_000)
    cases = [
        Case(peer, store, {"way": way, "jobs": options.single if way in ("single", "orm") else options.bulk})
        for way in ("single", "orm", "bulk", "copy")
        for store, peers in ENTRIES.items()
        for peer in peers
        if way in ("single", "bulk") or (peer == "bare" and (way == "orm" or store == "postgresql"))
    ]
    suite.run("submit", cases, options)


if __name__ == "__main__":
    main()
