"""A site whose own program configures it: nothing in the environment names its settings."""

import os
from pathlib import Path

import pytest

from .processes import ROOT

_PROGRAM = """
import os, sys
from django.conf import settings
from testproject.database import database_from_url
{imports}
settings.configure(
    DATABASES={{"default": database_from_url(os.environ["DATABASE_URL"])}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_jobs", "shop"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    DJANGO_JOBS={options},
)
if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""


def site_program(options: str, imports: str = "") -> str:
    """Return the text of a program; `options` is the expression of its DJANGO_JOBS, and `imports` what that needs."""
    return _PROGRAM.format(options=options, imports=imports)


def write_site(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Write the files of a site with the app `shop`, and let the processes to come find it."""
    for name, text in {"shop/__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
