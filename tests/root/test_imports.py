"""The modules below the models can be imported before the apps are loaded, as settings and `jobs.py` files do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = (
    "arguments", "checks", "conf", "exceptions", "handlers", "ids", "names", "numbers", "payloads", "retry", "rules",
    "scheduling.cron", "scheduling.spec", "signals", "submission", "text",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_imported_before_django_is_set_up(module: str) -> None:
    code = f"import django_jobs.{module}, django.apps; assert not django.apps.apps.ready"
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
