"""Export and import of what is encrypted: it goes out as it is stored, and comes in where a key reads it."""

from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings

import django_jobs
from django_jobs import NewJob
from django_jobs.encryption import as_stored
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.encrypt import encrypt_stored
from django_jobs.models import Job, JobStep, Schedule
from django_jobs.queue import JobQueue
from django_jobs.testing import make_job
from django_jobs.transfer.exporting import export_dicts
from django_jobs.transfer.importing import import_dicts
from tests.support.transfers import delete_all, exported, imported
from tests.support.workflows import add_step

pytestmark = pytest.mark.django_db
SECRET = "rosebud-and-nothing-else"
NEW_KEY = "a-new-key-of-the-site-that-nobody-can-guess-0123456789-abcdef"
ENCRYPTED: Any = override_settings(DJANGO_JOBS={"ENCRYPT": True})


def make_all() -> None:
    """Write a job with a result, one of a batch with a callback, a step's result and a schedule, all encrypted."""
    with ENCRYPTED:
        make_job("t.echo", {"word": SECRET}, status="completed", result=[SECRET])
        make_job("t.echo", {"word": SECRET}, status="dead")
        with django_jobs.batch("import", on_finish=NewJob("effects.record", {"word": SECRET})) as batch:
            batch.submit_many([NewJob("effects.record", {"word": SECRET})])
        Schedule.objects.create(
            name="s", job_type="t.echo", payload={"word": SECRET}, kind="interval", interval_seconds=60
        )
        add_step(make_job("t.work"), "one", result=SECRET)
        Job.objects.filter(job_type="t.work").update(fence=1)  # it has run once
        encrypt_stored()  # the step, which was written as it is


def test_an_export_holds_what_is_encrypted_as_it_is_stored() -> None:
    make_all()
    data = exported()
    assert SECRET.encode() not in data
    assert data.count(b'{"$encrypted":"') == 8
    assert SECRET not in str(export_dicts(Job.objects.all()))
    assert SECRET in str([job.to_dict() for job in Job.objects.all()])
    assert Job.from_dict(export_dicts(Job.objects.filter(status="completed"))[0]).result == [SECRET]


def test_it_comes_in_as_it_went_out() -> None:
    make_all()
    data = exported()
    delete_all()
    Schedule.objects.all().delete()
    assert imported(data).written == 4
    assert exported() == data
    assert (imported(data).written, imported(data).known, imported(data).schedules_known) == (0, 4, 1)
    assert {job.payload.get("word") for job in Job.objects.all()} == {SECRET, None}
    assert JobStep.objects.get().result == SECRET


def test_what_is_here_under_another_key_is_known() -> None:
    with ENCRYPTED:
        make_job("t.echo", {"word": SECRET}, status="completed", result=[SECRET])
        Schedule.objects.create(
            name="s", job_type="t.echo", payload={"word": SECRET}, kind="interval", interval_seconds=60
        )
    data = exported()
    with override_settings(SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        assert encrypt_stored().changed == 2
        assert exported() != data
        done = imported(data)
        assert (done.written, done.known, done.schedules_known) == (0, 1, 1)


def test_what_no_key_reads_is_exported_and_refused_by_an_import() -> None:
    make_all()
    data = exported()
    with override_settings(SECRET_KEY=NEW_KEY):
        assert exported() == data
        delete_all()
        with pytest.raises(InvalidJob, match="payload: it is encrypted, and no key of this site reads it"):
            imported(data)
    assert not Job.objects.exists()


def test_what_comes_in_plain_for_an_encrypted_type_is_encrypted() -> None:
    job = make_job("t.echo", {"word": SECRET}, status="completed", result=[SECRET])
    add_step(make_job("t.work"), "one", result=SECRET)
    data, plain = exported(), job.to_dict()
    delete_all()
    with ENCRYPTED:
        imported(data)
        import_dicts([{**plain, "job_id": "other"}])
        assert SECRET.encode() not in exported()
        assert Job.objects.get(pk="other").result == [SECRET]


def test_only_an_import_takes_tokens() -> None:
    make_all()
    (data,) = export_dicts(Job.objects.filter(status="completed"))
    with pytest.raises(InvalidJob, match="is that of what is encrypted"):
        JobQueue("default").enqueue("t.echo", data["payload"])
    delete_all()
    JobQueue("default").import_jobs([data])
    with as_stored():
        assert Job.objects.get().payload == data["payload"]
