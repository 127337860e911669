"""Build the wheel, install it into a new site far from the repository, and use it there: migrate, submit, run, admin.

JOBS_TEST_DIST names a folder with files that are built already.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = (
    ("3.11", "5.2"),
    ("3.12", "5.2"),
    ("3.12", "6.0"),
    ("3.12", "6.1"),
    ("3.13", "5.2"),
    ("3.13", "6.0"),
    ("3.13", "6.1"),
)  # Django 6.0 and later need Python 3.12
EXTRAS = "[postgres,tasks,metrics,tracing,encryption]"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "__pycache__", "*.sqlite3*", "build", "dist")
SETTINGS = """
INSTALLED_APPS += ["django_jobs", "shop"]
ALLOWED_HOSTS = ["testserver"]
STATIC_ROOT = BASE_DIR / "collected"
"""
JOBS = """
from django_jobs import job


@job("shop.add")
def add(payload):
    return payload["a"] + payload["b"]
"""
LOOK_AT_ADMIN = """
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
client = Client(raise_request_exception=True)
client.force_login(User.objects.create_superuser("boss"))
names = [name for name, model in apps.all_models["django_jobs"].items() if admin.site.is_registered(model)]
assert len(names) > 8, names
status = {name: client.get(f"/admin/django_jobs/{name}/").status_code for name in names}
status["index"] = client.get("/admin/").status_code
status["one job"] = client.get("/admin/django_jobs/job/sum-1/change/").status_code
print(status)
assert set(status.values()) == {200}, status
"""

pytestmark = pytest.mark.load


def build(scratch: Path) -> Path:
    """Build sdist and wheel from a copy of the tree and return their folder."""
    shutil.copytree(ROOT, scratch / "tree", ignore=LEFT_OUT, copy_function=shutil.copy)  # at another time each
    run(sys.executable, "-m", "venv", scratch / "venv")
    run(scratch / "venv/bin/pip", "install", "-q", "build")
    run(scratch / "venv/bin/python", "-m", "build", "--outdir", scratch / "dist", scratch / "tree")
    return scratch / "dist"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of sdist and wheel."""
    if given := os.environ.get("JOBS_TEST_DIST"):
        return Path(given)
    return build(tmp_path_factory.mktemp("build"))


def test_two_builds_are_the_same_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        folder = build(tmp_path / name)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) == 2
    assert files[0] == files[1]


def test_the_metadata_is_complete_and_names_the_extras(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["License-Expression"]) == ("django-durable-jobs", "MIT")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"postgres", "mysql", "tasks", "metrics", "tracing", "encryption"} <= set(metadata.get_all("Provides-Extra"))
    assert {f"Framework :: Django :: {django}" for _, django in PAIRS} <= set(metadata.get_all("Classifier"))
    assert {f"Programming Language :: Python :: {python}" for python, _ in PAIRS} <= set(metadata.get_all("Classifier"))
    assert metadata["License-File"] == "LICENSE"
    description = str(metadata.get_payload())
    assert "# django_jobs" in description
    assert "tutorial" in description
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", description) == [], "links that lead nowhere on a package index"


def package_files() -> set[str]:
    """Return the files of the package that a site needs."""
    files = (path for path in (ROOT / "django_jobs").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {"django_jobs/py.typed", "django_jobs/migrations/0001_initial.py"} < names
    assert any(name.endswith(".html") for name in names)
    assert any(name.endswith(".css") for name in names)
    for language in ("de", "es", "fr", "ja", "pt_BR", "zh_Hans"):
        assert f"django_jobs/locale/{language}/LC_MESSAGES/django.mo" in names


def test_the_source_distribution_has_every_file_of_the_package(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() | {"README.md", "CHANGELOG.md", "LICENSE"} <= names


@pytest.mark.parametrize("extras", ["", EXTRAS], ids=["alone", "with extras"])
@pytest.mark.parametrize(("python", "django"), PAIRS)
def test_the_wheel_works_in_a_new_site(built: Path, tmp_path: Path, python: str, django: str, extras: str) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    site.mkdir()
    run(interpreter(python), "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "-q", f"{wheel}{extras}", f"Django~={django}.0")
    here = tmp_path / "venv/bin/python"

    def manage(*arguments: str) -> str:
        return run(here, "-Werror", "manage.py", *arguments, cwd=site)

    run(here, "-m", "django", "startproject", "mysite", ".", cwd=site)
    manage("startapp", "shop")
    (site / "shop/jobs.py").write_text(JOBS)
    with (site / "mysite/settings.py").open("a") as settings:
        settings.write(SETTINGS)
    assert str(tmp_path / "venv") in manage("shell", "-c", "import django_jobs; print(django_jobs.__file__)")
    if extras:
        manage("shell", "-c", "import psycopg, opentelemetry.trace; from django_jobs.metrics import JobsCollector")
        with (site / "mysite/settings.py").open("a") as settings:
            settings.write('DJANGO_JOBS = {"ENCRYPT": True}\n')
    manage("migrate", "-v0")
    assert "No changes detected" in manage("makemigrations", "--check", "--dry-run")
    manage("jobs", "enqueue", "shop.add", "--payload", '{"a": 2, "b": 3}', "--id", "sum-1")
    manage("runworkers", "--drain")
    assert "result: 5" in manage("jobs", "show", "sum-1")
    assert "'one job': 200" in manage("shell", "-c", LOOK_AT_ADMIN)
    manage("collectstatic", "--noinput", "-v0")
    assert (site / "collected/django_jobs/console.css").is_file()


def interpreter(version: str) -> str:
    """Return the path of a Python of this version; an AssertionError when the machine has none."""
    name = f"python{version}"
    pyenv = shutil.which("pyenv")
    versions = subprocess.check_output([pyenv, "versions", "--bare"], text=True).split() if pyenv else []
    found = subprocess.run(
        [name, "-c", "import ensurepip, sys; print(sys.executable)"],
        env={**os.environ, "PYENV_VERSION": ":".join(versions)}, capture_output=True, text=True,
    ) if shutil.which(name) else None  # fmt: skip
    assert found is not None, f"{name} is missing"
    assert found.returncode == 0, f"{name} is missing: {found.stderr}"
    return found.stdout.strip()


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command to its end with nothing of ours in its environment; return what it wrote to stdout."""
    ours = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "DJANGO_JOBS_JSON", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout
