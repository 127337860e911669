"""The demo site: what its jobs make of a folder, and `manage.py demo` from an empty database to the report."""

import os
import re
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from hashlib import sha256
from http.cookiejar import CookieJar
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener, urlopen

import pytest

from django_jobs import Fail, testing
from django_jobs.models import Batch, DeadLetter, Job, WorkerProcess
from testproject.catalogue import jobs
from testproject.catalogue.models import Scan, SourceFile
from testproject.catalogue.text import NotText, measure_text
from tests.support.invariants import check_drained
from tests.support.ports import free_port
from tests.support.processes import manage, spawn
from tests.support.waiting import dump_rows, wait_until

TEXTS = {
    "README.txt": b"one\ntwo\nthree",
    "empty.txt": b"",
    "app/models.py": b"# -*- coding: latin-1 -*-\nname = '\xe4'\n",
    "app/marked.py": b"\xef\xbb\xbfx = 1\n",
    "app/deep/page.html": "<p>Grüße</p>\n".encode(),
    "wide.txt": "three\nlines\nhere\n".encode("utf-16"),
}
LINES = 3 + 0 + 2 + 1 + 1 + 3
NOT_TEXTS = {
    "image.png": b"\x89PNG\r\n\x1a\n\0\0",
    "app/old.txt": "schön\n".encode("latin-1"),
    "app/zeros.bin": bytes(64),
}
NOT_SOURCE = {"app/__pycache__/models.pyc": b"\0", ".git/HEAD": b"ref\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with readable files, unreadable ones, and some that no scan should see."""
    for path, content in {**TEXTS, **NOT_TEXTS, **NOT_SOURCE}.items():
        (tmp_path / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / path).write_bytes(content)
    os.mkfifo(tmp_path / "code" / "pipe")
    (tmp_path / "code" / "link.txt").symlink_to("README.txt")
    return tmp_path / "code"


# --- text


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\nb", 2), (b"a\r\nb\r\n", 2), (b"a\rb\r", 2)]
)
def test_lines_are_counted_as_an_editor_numbers_them(tmp_path: Path, content: bytes, lines: int) -> None:
    (tmp_path / "file").write_bytes(content)
    assert measure_text(tmp_path / "file").lines == lines


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.txt", b"plain", "utf-8"),
        ("a.txt", b"\xef\xbb\xbfmarked", "utf-8-sig"),
        ("a.txt", "x".encode("utf-16"), "utf-16"),
        ("a.txt", "x".encode("utf-32"), "utf-32"),
        ("a.py", b"#!/usr/bin/python\n# coding: latin-1\nname = '\xe4'\n", "iso-8859-1"),
        ("a.py", b"\xef\xbb\xbfx = 1\n", "utf-8-sig"),
        ("a.py", b"x = 1\n", "utf-8"),
    ],
)
def test_a_file_says_its_encoding_by_a_mark_or_a_cookie(
    tmp_path: Path, name: str, content: bytes, encoding: str
) -> None:
    (tmp_path / name).write_bytes(content)
    measured = measure_text(tmp_path / name)
    assert (measured.encoding, measured.size) == (encoding, len(content))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", b"# coding: latin-1\n\xe4", UnicodeDecodeError),  # a cookie is Python's
        ("a.py", b"name = '\xe4'\n", SyntaxError),
        ("a.py", b"# coding: martian\n", SyntaxError),
        ("a.py", b"x = 1\ny = 2\nz = '\xe4'\n", UnicodeDecodeError),
        ("a.mo", b"\xde\x12\x04\x95\0\0\0\0", UnicodeDecodeError),
        ("a.bin", b"line\n\0\0", NotText),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, error: type[Exception]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        measure_text(tmp_path / name)


# --- jobs, called as plain functions


def scan(folder: Path) -> dict[str, Any]:
    return jobs.scan(SimpleNamespace(job_id="the-scan"), str(folder))


@pytest.mark.django_db
def test_a_scan_is_a_batch_of_one_measurement_for_each_plain_file_with_a_report_at_its_end(folder: Path) -> None:
    result = scan(folder)
    found = {*TEXTS, *NOT_TEXTS}
    assert set(SourceFile.objects.values_list("path", flat=True)) == found
    measurements = Job.objects.filter(job_type="catalogue.measure")
    assert {job.payload["path"] for job in measurements} == found
    batch = Batch.objects.get()
    assert set(batch.jobs) == set(measurements)
    assert not Job.objects.filter(job_type="catalogue.report").exists(), "it comes with the end of the batch"
    assert batch.callbacks["on_finish"]["job_type"] == "catalogue.report"
    made = Scan.objects.get()
    assert (made.job_id, made.folder) == ("the-scan", str(folder))
    assert result == {"scan": made.pk, "files": len(found), "batch": batch.pk}


@pytest.mark.django_db
def test_a_scan_of_an_empty_folder_still_submits_its_report(tmp_path: Path) -> None:
    assert scan(tmp_path)["files"] == 0
    report = Job.objects.get()
    assert (report.job_type, report.pending_dependencies) == ("catalogue.report", 0)


@pytest.mark.django_db
def test_a_scan_of_what_is_no_folder_is_not_tried_again(folder: Path) -> None:
    with pytest.raises(Fail, match=r"README\.txt is not a folder"):
        scan(folder / "README.txt")
    assert not Scan.objects.exists()


@pytest.mark.django_db
def test_the_report_counts_what_was_measured_however_often_and_what_was_not(folder: Path) -> None:
    made = scan(folder)["scan"]
    for path in (*TEXTS, "README.txt"):
        jobs.measure(made, path)
    report = jobs.report(made)
    size = sum(len(content) for content in TEXTS.values())
    assert report == {"files": len(TEXTS) + len(NOT_TEXTS), "measured": len(TEXTS), "lines": LINES, "bytes": size}
    assert Scan.objects.get().report == report


@pytest.mark.django_db
def test_a_large_file_is_measured_in_steps_that_a_crash_does_not_repeat(tmp_path: Path) -> None:
    content = b"line\n" * (jobs.LARGE // 5 + 1)
    (tmp_path / "large.txt").write_bytes(content)
    (tmp_path / "small.txt").write_bytes(content[: jobs.LARGE - 1])
    made = scan(tmp_path)["scan"]
    large = Job.objects.get(payload__path="large.txt")
    assert large.job_type == "catalogue.measure_large"
    with testing.crash_after("hash"):
        testing.run_due(job_type="catalogue.measure_large")
    (tmp_path / "large.txt").write_bytes(content + b"one more, which is not hashed again")
    testing.drain()
    large.refresh_from_db()
    assert (large.status, large.crash_count) == ("completed", 0)
    assert [*large.steps.values_list("name", flat=True)] == ["hash", "encoding", "lines", "write"]
    file = SourceFile.objects.get(scan=made, path="large.txt")
    assert (file.size, file.sha256) == (len(content), sha256(content).hexdigest())
    assert Scan.objects.get().report["measured"] == 2


@pytest.mark.django_db
def test_a_file_that_is_no_text_stays_unmeasured(folder: Path) -> None:
    made = scan(folder)["scan"]
    with pytest.raises(UnicodeDecodeError):
        jobs.measure(made, "image.png")
    assert SourceFile.objects.get(path="image.png").measured_at is None


# --- the command, as a process of its own


def demo(*args: str) -> str:
    ended = manage("demo", *args, timeout=300)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}\n{dump_rows()}"
    assert ended.stderr == ""
    return ended.stdout


def figure(report: str, name: str) -> int:
    """Return the figure in the report's line of that name."""
    found = re.search(rf"^\s*{re.escape(name)}\s+([\d,]+)(\s|$)", report, re.MULTILINE)
    assert found, f"no line {name!r} in\n{report}"
    return int(found[1].replace(",", ""))


def assert_reports(report: str) -> None:
    """Check a report against what the fixture has put into the folder."""
    expected = {
        "files": len(TEXTS) + len(NOT_TEXTS),
        "read as text": len(TEXTS),
        "lines": LINES,
        "bytes": sum(len(content) for content in TEXTS.values()),
        "jobs": len(TEXTS) + len(NOT_TEXTS) + 2,
        "completed": len(TEXTS) + 2,
        "dead": len(NOT_TEXTS),
        "retries": 2 * len(NOT_TEXTS),
        "dead letters": len(NOT_TEXTS),
    }
    assert {name: figure(report, name) for name in expected} == expected


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_the_demo_reports_what_the_folder_holds_again_and_again(folder: Path) -> None:
    for scans in (1, 2):
        assert_reports(demo(str(folder)))
        assert Scan.objects.count() == scans
    for scan in Scan.objects.all():
        measured = dict(scan.files.exclude(measured_at=None).values_list("path", "sha256"))
        assert measured == {path: sha256(content).hexdigest() for path, content in TEXTS.items()}
    dead_letters = DeadLetter.objects.open().filter(reason="retries exhausted")
    assert Counter(dead_letter.job.payload["path"] for dead_letter in dead_letters) == dict.fromkeys(NOT_TEXTS, 2)
    assert not WorkerProcess.objects.exists(), "it stopped its workers in order"
    check_drained()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_dead_letter_that_is_replayed_after_the_file_was_mended_completes(folder: Path) -> None:
    demo(str(folder))
    (folder / "app/old.txt").write_text("schön\n", encoding="utf-8")
    (dead_letter,) = [each for each in DeadLetter.objects.open() if each.job.payload["path"] == "app/old.txt"]
    dead_letter.replay()
    ended = manage("runworkers", "--drain")
    assert ended.returncode == 0, ended.stderr
    dead_letter.job.refresh_from_db()
    assert dead_letter.job.status == "completed", dump_rows()
    assert SourceFile.objects.get(path="app/old.txt").encoding == "utf-8"
    assert DeadLetter.objects.open().count() == len(NOT_TEXTS) - 1
    assert Job.objects.filter(job_type="catalogue.report", status="completed").count() == 2, "the batch ended once more"
    assert Scan.objects.get().report["measured"] == len(TEXTS) + 1


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_folder_without_files_is_reported_too(tmp_path: Path) -> None:
    report = demo(str(tmp_path))
    assert (figure(report, "files"), figure(report, "completed"), figure(report, "dead letters")) == (0, 2, 0)


@pytest.mark.slow
def test_the_demo_makes_the_sqlite_file_it_is_given(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a new file, 100%25 #1.sqlite3"
    report = demo(str(folder), "--threads", "2", "--database-file", str(file))
    assert_reports(report)
    with closing(sqlite3.connect(file)) as connection:
        statuses = connection.execute("SELECT status, COUNT(*) FROM django_jobs_job GROUP BY status").fetchall()
    assert dict(statuses) == {"completed": len(TEXTS) + 2, "dead": len(NOT_TEXTS)}
    assert f"demo --serve --database-file '{file}'" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["no-such-folder"], 1, "no-such-folder is not a folder"),
        (["--threads", "0"], 2, "give an integer from 1 to 1000"),
        (["--serve", "http"], 2, "give an integer from 1 to 65535"),
    ],
)
def test_a_demo_of_what_cannot_be_says_so_and_makes_no_file(
    tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    ended = manage("demo", *args, "--database-file", str(tmp_path / "file"))
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "file").exists()


@pytest.mark.slow
@pytest.mark.databases("sqlite")
@pytest.mark.django_db(transaction=True)
def test_serve_opens_the_admin_for_its_user_and_runs_what_is_replayed(folder: Path) -> None:
    port = free_port()
    with spawn("demo", str(folder), "--serve", str(port)) as server:
        wait_until(lambda: "Quit the server" in server.output(), 60, "the server")
        page = log_in(f"http://127.0.0.1:{port}/admin/login/?next=/admin/catalogue/sourcefile/", "demo", "demo")
        assert "app/deep/page.html" in page
        (folder / "app/old.txt").write_text("mended\n")
        (dead_letter,) = [each for each in DeadLetter.objects.open() if each.job.payload["path"] == "app/old.txt"]
        dead_letter.replay()
        wait_until(lambda: Job.objects.get(pk=dead_letter.job_id).status == "completed", what="the replayed job")
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert not WorkerProcess.objects.exists(), "it stopped its workers in order"


@pytest.mark.slow
@pytest.mark.databases("sqlite")
@pytest.mark.django_db(transaction=True)
def test_after_a_demo_a_plain_runserver_shows_the_admin_with_its_styles_to_its_user(folder: Path) -> None:
    assert_reports(demo(str(folder)))
    port = free_port()
    with spawn("runserver", str(port), "--noreload") as server:
        wait_until(lambda: "Quit the server" in server.output(), 60, "the server")
        page = log_in(f"http://127.0.0.1:{port}/admin/login/?next=/admin/django_jobs/job/", "demo", "demo")
        styles = {*re.findall(r'href="(/static/[^"]+\.css)"', page)}
        assert {"/static/admin/css/base.css", "/static/django_jobs/console.css"} <= styles
        for address in styles:
            with urlopen(f"http://127.0.0.1:{port}{address}", timeout=60) as answer:
                assert answer.headers["Content-Type"].startswith("text/css")


def log_in(url: str, username: str, password: str) -> str:
    """Send the login form of a page as a browser does, and return the page that follows."""
    jar = CookieJar()
    browser = build_opener(HTTPCookieProcessor(jar))
    browser.open(url, timeout=60).close()
    (token,) = [cookie.value for cookie in jar if cookie.name == "csrftoken"]
    form = urlencode({"username": username, "password": password, "csrfmiddlewaretoken": token}).encode()
    with browser.open(url, form, timeout=60) as answer:
        return answer.read().decode()
