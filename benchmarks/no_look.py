"""A worker whose settles do not look for dependents: `python -m benchmarks.no_look runworkers …`, for `graph.py`."""

import sys
from unittest import mock

import django
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    django.setup()
    with mock.patch("django_jobs.lifecycle.settle.wake_dependents", return_value={}):
        execute_from_command_line(["manage.py", *sys.argv[1:]])
