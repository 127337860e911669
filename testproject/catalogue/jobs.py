"""The jobs of the catalogue: a scan begins a batch of one measurement for each file, with a report at its end.

A large file is measured in steps: after a crash or a deploy its job goes on behind what it has read already.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Count, Sum
from django.utils import timezone

from django_jobs import Fail, NewJob, batch, job, schedule

from .models import Scan, SourceFile
from .text import encoding_of, hash_of, lines_of, measure_text

ROWS_AT_ONCE = 500
LARGE = 256 * 1024  # bytes


@job("catalogue.scan", atomic=True, takes_context=True)
def scan(context: Any, folder: str) -> dict[str, Any]:
    """Write a row for each file of a folder and begin the batch, all in the transaction of this job."""
    if not Path(folder).is_dir():
        raise Fail(f"{folder} is not a folder")
    made = Scan.objects.create(job_id=context.job_id, folder=folder, started_at=timezone.now())
    paths = sorted(_files_below(Path(folder)))
    SourceFile.objects.bulk_create((SourceFile(scan=made, path=path) for path in paths), batch_size=ROWS_AT_ONCE)
    # At the end, however it comes: files that cannot be read are what the report is there to count.
    last = NewJob("catalogue.report", {"scan_id": made.pk})
    with batch(f"scan of {folder}"[:200], metadata={"scan": made.pk}, on_finish=last) as files:
        files.submit_many(NewJob(_measured_by(folder, path), {"scan_id": made.pk, "path": path}) for path in paths)
    return {"scan": made.pk, "files": len(paths), "batch": files.pk}


@job("catalogue.measure", base_delay=0.2, max_retries=2)
def measure(scan_id: int, path: str) -> dict[str, Any]:
    """Read one file and write what it measures; doing it twice does no harm. What is no text raises, and is retried."""
    file = SourceFile.objects.select_related("scan").get(scan=scan_id, path=path)
    found = asdict(measure_text(Path(file.scan.folder, file.path)))
    _write(file.pk, found)
    return found


@job("catalogue.measure_large", takes_context=True, base_delay=0.2, max_retries=2)
def measure_large(context: Any, scan_id: int, path: str) -> dict[str, Any]:
    """Measure a large file, a step each time that all of it is read; the row and the last record are one transaction."""
    file = SourceFile.objects.select_related("scan").get(scan=scan_id, path=path)
    where = Path(file.scan.folder, file.path)
    found = context.step("hash", hash_of, where)
    encoding = context.step("encoding", encoding_of, where)
    found |= {"encoding": encoding, "lines": context.step("lines", lines_of, where, encoding)}
    context.step("write", _write, file.pk, found, atomic=True)
    return found  # type: ignore[no-any-return]


def _measured_by(folder: str, path: str) -> str:
    """Return the job type for a file; one that has gone meanwhile is as good as small."""
    try:
        is_large = Path(folder, path).stat().st_size >= LARGE
    except OSError:
        is_large = False
    return "catalogue.measure_large" if is_large else "catalogue.measure"


def _write(pk: int, found: dict[str, Any]) -> None:
    SourceFile.objects.filter(pk=pk).update(**found, measured_at=timezone.now())


@job("catalogue.report")
def report(scan_id: int) -> dict[str, Any]:
    """Sum up the files of a scan, those that could not be read included."""
    files = SourceFile.objects.filter(scan=scan_id)
    sums = files.aggregate(files=Count("pk"), measured=Count("measured_at"), lines=Sum("lines"), bytes=Sum("size"))
    found = {key: value or 0 for key, value in sums.items()}
    Scan.objects.filter(pk=scan_id).update(report=found)
    return found


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of plain files; hidden folders and compiled Python are nobody's source."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for path in (Path(where, name) for name in names):
            if path.is_file() and not path.is_symlink():  # reading a pipe would never end
                # A name that is not UTF-8 cannot be stored; escaped it names no file, and its job says so.
                yield os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")


@job("catalogue.rescan")
def rescan() -> dict[str, Any]:
    """Scan the folder of the last scan once more, if there is one."""
    last = Scan.objects.first()
    return {"scan": scan.submit({"folder": last.folder}).pk if last else None}


@job("catalogue.changes")
def changes() -> dict[str, Any]:
    """Count the files that were changed or removed since the last scan."""
    last = Scan.objects.first()
    found = {"changed": 0, "removed": 0}
    for path in last.files.values_list("path", flat=True) if last else ():
        try:
            modified = Path(last.folder, path).stat().st_mtime
        except OSError:
            found["removed"] += 1
        else:
            found["changed"] += modified > last.started_at.timestamp()
    return found


def declare_schedules() -> None:
    """Declare what the site does by itself: a scan each night, and every ten minutes a count of what has changed."""
    schedule("catalogue.nightly", "catalogue.rescan", cron="0 3 * * *", timezone="Europe/Berlin", overlap="skip")
    schedule("catalogue.changes", "catalogue.changes", every=timedelta(minutes=10), catch_up="skip", overlap="skip")


if settings.CATALOGUE_SCHEDULES:
    declare_schedules()
