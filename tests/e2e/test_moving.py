"""The page on moving a site, followed command by command between two databases."""

import re
from pathlib import Path

import pytest

from django_jobs.lifecycle.queues import pause
from django_jobs.models import Schedule
from django_jobs.queue import Scheduler
from django_jobs.scheduling.ticks import run_schedule_now
from tests.support.pages import DOCS
from tests.support.processes import ROOT, manage
from tests.support.transfers import exported, make_mixed_jobs

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = """
from tests.settings import *
from testproject.database import database_from_url
DATABASES["other"] = database_from_url({url!r})
"""


@pytest.mark.slow
def test_the_steps_of_the_page_lead_from_one_database_to_another(tmp_path: Path) -> None:
    text = (DOCS / "guide/moving.md").read_text()
    steps = text[text.index("## The steps") : text.index("`cmp` is silent")]
    lines = re.findall(r"^python manage\.py ((?:jobs|migrate) .*)$", steps, re.MULTILINE)
    (tmp_path / "moving.py").write_text(SETTINGS.format(url=f"sqlite:///{tmp_path}/other.sqlite3"))
    env = {"DJANGO_SETTINGS_MODULE": "moving", "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    make_mixed_jobs(800)
    pause("mail")
    Scheduler().schedule_interval("poll", "effects.record", 3600, overlap="skip")
    run_schedule_now("poll")
    Schedule.objects.filter(name="poll").update(enabled=False, next_run_at=None)
    said = []
    for line in lines:
        done = manage(*(str(tmp_path / word) if word.endswith(".jsonl") else word for word in line.split()), env=env)
        assert done.returncode == 0, (line, done.stderr)
        said.append(done.stdout)
    assert (tmp_path / "jobs.jsonl").read_bytes() == (tmp_path / "moved.jsonl").read_bytes() == exported()
    assert any(text.startswith("801 jobs, 1 queue and 1 schedule imported") for text in said)
