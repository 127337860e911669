"""Run `manage.py jobs` within the test's own process and transaction."""

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from django_jobs.models import Job


def jobs(*args: str) -> str:
    """Run `manage.py jobs args` and return what it prints."""
    out = io.StringIO()
    call_command("jobs", *args, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def json_lines(*args: str) -> list[dict[str, Any]]:
    """Run it with `--json` and return each line's value."""
    return [json.loads(line) for line in jobs(*args, "--json").splitlines()]


def refused(*args: str) -> tuple[int, list[str]]:
    """Return the exit code and the problems of a command that is refused, and see that it changed no job."""
    before = list(Job.objects.order_by("pk").values())
    with pytest.raises(CommandError) as error:
        jobs(*args)
    assert list(Job.objects.order_by("pk").values()) == before
    return error.value.returncode, str(error.value).splitlines()
