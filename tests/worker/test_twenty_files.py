"""One worker process over twenty SQLite files, such as one a tenant."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Job
from tests.support.databases import Database, new_url
from tests.support.effects.models import Effect
from tests.support.processes import manage
from tests.support.several import known_as, more_databases


@pytest.mark.slow
@pytest.mark.databases("sqlite")
def test_twenty_files_in_one_worker(database: Database, tmp_path: Path, django_db_blocker: Any) -> None:
    urls = {f"t{number}": f"sqlite:///{tmp_path}/t{number}.sqlite3" for number in range(20)}
    settings = {"DATABASES": ["default", *urls]}
    with django_db_blocker.unblock(), ExitStack() as stack:
        stack.enter_context(more_databases({"empty": new_url("sqlite", tmp_path)}))
        connections["empty"].close()  # what it wrote goes into the file
        for alias in urls:
            shutil.copy(connections["empty"].settings_dict["NAME"], tmp_path / f"{alias}.sqlite3")
        for alias, url in urls.items():
            stack.enter_context(known_as(alias, url))
        stack.enter_context(override_settings(DJANGO_JOBS=settings))
        for alias in urls:
            django_jobs.submit_many([NewJob("effects.record_here") for _ in range(5)], using=alias)
        done = manage(
            "runworkers", "--drain", "--threads", "3", settings=settings,
            env={"MORE_DATABASES": json.dumps(urls)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for alias in urls:
            assert not Job.objects.using(alias).exclude(status="completed").exists()
            assert set(Job.objects.using(alias).values_list("result", flat=True)) == {alias}
            assert Effect.objects.using(alias).count() == 5
