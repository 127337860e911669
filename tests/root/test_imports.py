"""The modules below the models can be imported before the apps are loaded, as settings and `jobs.py` files do."""

import os
import subprocess
import sys
from pathlib import Path

MODULES = (
    "arguments", "checks", "conf", "exceptions", "handlers", "ids", "names", "numbers", "payloads", "retry", "rules",
    "scheduling.cron", "scheduling.spec", "signals", "submission", "text",
)  # fmt: skip


# Each in a child of one interpreter that has imported Django and nothing of ours: none may lean on what another one has imported.
CODE = """
import os, sys, django.apps, django.core.checks, django.db.models, zoneinfo
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        __import__("django_jobs." + module)
        assert not django.apps.apps.ready, module
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("django_jobs." + module)
"""


def test_each_module_can_be_imported_before_django_is_set_up() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *MODULES], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
