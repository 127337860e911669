"""Logs: what handlers log is written under the fence of their run, now and then while it goes on and in its settle."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from django_jobs.db.connections import jobs_alias
from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import transactional
from django_jobs.models import Job, JobLog, JobStatus
from django_jobs.run_log import RunLog

from .claim import ClaimedJob

LIVE_SECONDS = 1.0  # how old what a log on record lacks may get
RunKey = tuple[str, int]  # the job and the fence of a run

# The logs of this process's runs that are not settled yet. Empty where no log is kept: that is all that a settle looks at.
# By the alias of their database, besides.
open_logs: dict[tuple[str, str, int], RunLog] = {}
_watchers: list[Callable[[], None]] = []


def open_log(job: ClaimedJob, level: int) -> RunLog:
    """Return the log of a run that begins; it is on record once the run is settled, or `write_open` came by."""
    # Each earlier run that took the number before this one moved the fence twice, at its claim and at its end.
    is_first = job.fence == 1 + 2 * job.retry_count
    log = open_logs[jobs_alias(), job.id, job.fence] = RunLog(level, job.attempt, goes_on=not is_first)
    for wake in list(_watchers):
        wake()
    return log


def watch(wake: Callable[[], None]) -> Callable[[], None]:
    """Call `wake` whenever a log is opened in this process; return what ends that."""
    _watchers.append(wake)
    return lambda: _watchers.remove(wake) if wake in _watchers else None


def write(runs: Iterable[RunKey]) -> None:
    """Write what is not on record of the logs of runs, whose jobs the open transaction has locked or settled."""
    alias = jobs_alias()
    _write({run: open_logs[alias, *run] for run in runs if (alias, *run) in open_logs})


def close(runs: Iterable[RunKey]) -> None:
    """Let go of the logs of runs that are settled or lost: what is logged for them from now on is not kept."""
    alias = jobs_alias()
    for run in runs:
        log = open_logs.pop((alias, *run), None)
        if log is not None:
            log.is_open = False


def write_open() -> None:
    """Write what is not on record of runs of this database that began LIVE_SECONDS ago or earlier and still hold their jobs.

    A job whose row somebody else has locked is left for the next time.
    """
    before = time.monotonic() - LIVE_SECONDS
    here = {(job_id, fence): log for (alias, job_id, fence), log in list(open_logs.items()) if alias == jobs_alias()}
    due = {run: log for run, log in here.items() if log.opened <= before and not log.is_written}
    if due:
        for run, version in _write_held(due).items():
            due[run].written = version


@transactional
def _write_held(logs: Mapping[RunKey, RunLog]) -> dict[RunKey, int]:
    jobs = Job.objects.filter(pk__in=sorted({job_id for job_id, _ in logs}), status=JobStatus.RUNNING)
    held = jobs.order_by("pk").select_for_update(skip_locked=True).values_list("pk", "fence")
    return _write({run: logs[run] for run in held if run in logs})


def _write(logs: Mapping[RunKey, RunLog]) -> dict[RunKey, int]:
    """Write logs and return the version of each that is on record once the open transaction commits."""
    new = {run: log for run, log in logs.items() if not log.is_written}
    if not new:
        return {}
    _read_earlier({run: log for run, log in new.items() if log.needs_earlier})
    versions = {run: log.version for run, log in new.items()}  # before its text, which may be newer
    dialect().write_logs(sorted((run[0], log.number, log.text()) for run, log in new.items()))
    return versions


def _read_earlier(logs: Mapping[RunKey, RunLog]) -> None:
    if logs:
        texts = _texts([job_id for job_id, _ in logs])
        for (job_id, _), log in logs.items():
            log.go_on_from(texts.get((job_id, log.number), ""))


def _texts(ids: Collection[str]) -> dict[tuple[str, int], str]:
    found = JobLog.objects.filter(job_id__in=ids).values_list("job_id", "number", "text")
    return {(job_id, number): text for job_id, number, text in found}
