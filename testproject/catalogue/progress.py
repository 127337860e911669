"""How far a scan is, read from the database, and how that is shown in a terminal and in a report."""

from collections import Counter
from dataclasses import dataclass
from textwrap import shorten

from django.db.models import Sum

from django_jobs.models import Batch, DeadLetter, Job, JobStatus

from .models import Scan

BAR_WIDTH = 30
ENDED = {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.DEAD, JobStatus.CANCELLED}
DEAD_LETTERS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The jobs of one scan by status; `is_over` once its report, the last of them, has ended."""

    jobs: Counter[str]
    retries: int
    is_over: bool

    @property
    def total(self) -> int:
        """How many jobs there are."""
        return self.jobs.total()

    @property
    def ended(self) -> int:
        """How many of them have ended, well or badly."""
        return sum(self.jobs[status] for status in ENDED)

    def line(self, seconds: float) -> str:
        """Return a progress bar with numbers."""
        filled = BAR_WIDTH * self.ended // self.total
        return (
            f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {self.ended:,} of {self.total:,} jobs,"
            f" {self.jobs[JobStatus.SCHEDULED]:,} to be retried, {self.jobs[JobStatus.DEAD]:,} dead,"
            f" {self.ended / max(seconds, 0.001):,.0f} jobs/s"
        )


def read_progress(scan_job: Job) -> Progress:
    """Return how far the scan is that this job started."""
    scan_job.refresh_from_db()
    first: Counter[str] = Counter([scan_job.status])
    if scan_job.status != JobStatus.COMPLETED:
        return Progress(jobs=first, retries=scan_job.retry_count, is_over=scan_job.status in ENDED)
    files = Batch.objects.get(pk=scan_job.result["batch"])
    # It is there when the batch has finished; until then it is counted as one that waits.
    report = Job.objects.filter(job_type="catalogue.report", batch=files).first() if files.is_finished else None
    last = JobStatus.PENDING if report is None else report.status
    retries = scan_job.retry_count + (report.retry_count if report else 0)
    retries += files.jobs.aggregate(retries=Sum("retry_count"))["retries"] or 0
    return Progress(jobs=first + Counter([last]) + Counter(files.progress), retries=retries, is_over=last in ENDED)


def report_lines(scan: Scan, scan_job: Job, progress: Progress, seconds: float) -> list[str]:
    """Return the report of a scan that is over: its files, its jobs, its dead letters."""
    dead_letters = DeadLetter.objects.open().filter(job__membership__batch=scan_job.result["batch"])
    examples = dead_letters.select_related("job").order_by("job__payload", "pk")[:DEAD_LETTERS_SHOWN]
    found = scan.report or {}
    numbers = {
        "files": found.get("files", 0),
        "  read as text": found.get("measured", 0),
        "  lines": found.get("lines", 0),
        "  bytes": found.get("bytes", 0),
        "jobs": progress.total,
        **{f"  {status}": progress.jobs[status] for status in JobStatus if progress.jobs[status]},
        "retries": progress.retries,
        "dead letters": dead_letters.count(),
    }
    return [
        *(f"{name:<16}{number:>14,}" for name, number in numbers.items()),
        *(f"  {dead.job.payload.get('path')}: {shorten(dead.error, 90)}" for dead in examples),
        f"{'jobs/s':<16}{progress.total / seconds:>14,.0f}  ({seconds:.1f} s; with the retries"
        f" {progress.total + progress.retries:,} attempts)",
    ]
