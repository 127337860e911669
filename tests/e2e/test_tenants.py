"""The hook for django-tenants as the guide prints it, with the real package: each job runs in its tenant's schema."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Database, create_database, drop_database, new_url
from tests.support.processes import ROOT, manage
from tests.support.sites import write_site

pytestmark = [
    pytest.mark.databases("postgresql"),
    pytest.mark.skipif(find_spec("django_tenants") is None, reason="wants django-tenants, as LEGS=tenants has"),
]

PROGRAM = """
import os, sys
from django.conf import settings
from testproject.database import database_from_url
SHARED_APPS = ["django_tenants", "customers", "django.contrib.contenttypes", "django.contrib.auth", "django_jobs"]
settings.configure(
    DATABASES={"default": {**database_from_url(os.environ["TENANTS_URL"]), "ENGINE": "django_tenants.postgresql_backend"}},
    DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    SHARED_APPS=SHARED_APPS,
    TENANT_APPS=["shop"],
    INSTALLED_APPS=[*SHARED_APPS, "shop"],
    TENANT_MODEL="customers.Client",
    TENANT_DOMAIN_MODEL="customers.Domain",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    DJANGO_JOBS={},
)
if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""
CUSTOMERS = """
from django_tenants.models import DomainMixin, TenantMixin

class Client(TenantMixin):
    auto_create_schema = True

class Domain(DomainMixin):
    pass
"""
SHOP = """
from django.db import models

class Line(models.Model):
    text = models.CharField(max_length=100)
"""
JOBS = """
from django.db import connection

from django_jobs import job

from .models import Line
from .tenancy import in_its_schema, report


@job("shop.write", takes_context=True, atomic=True)
@in_its_schema
def write(context, payload):
    Line.objects.create(text=payload["text"])
    if payload.get("fail"):
        raise ValueError("not here")
    return connection.schema_name


@job("shop.where", takes_context=True)
def where(context, payload):
    return connection.schema_name
"""
MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [migrations.CreateModel("Line", [
        ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
        ("text", models.CharField(max_length=100)),
    ])]
"""
CUSTOMERS_MIGRATION = """
import django.db.models.deletion
import django_tenants.postgresql_backend.base
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel("Client", [
            ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ("schema_name", models.CharField(max_length=63, unique=True, db_index=True)),
        ]),
        migrations.CreateModel("Domain", [
            ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ("domain", models.CharField(max_length=253, unique=True, db_index=True)),
            ("is_primary", models.BooleanField(default=True, db_index=True)),
            ("tenant", models.ForeignKey("customers.Client", models.CASCADE, related_name="domains")),
        ]),
    ]
"""
SUBMIT = """
from customers.models import Client
from django.db import transaction
from django_tenants.utils import schema_context
from django_jobs import submit
from shop.tenancy import submit_here

for name in ("a", "b"):
    Client(schema_name=name).save(verbosity=0)
for name in ("a", "b"):
    with schema_context(name):
        for number in range(20):
            submit_here("shop.write", {"text": f"{name}{number}"})
        submit_here("shop.write", {"text": "undone", "fail": True}, max_retries=0)
        try:
            with transaction.atomic():
                submit_here("shop.write", {"text": "rolled back"})
                raise KeyError
        except KeyError:
            pass
        submit("shop.where")
"""
LOOK = """
from django_tenants.utils import schema_context
from django_jobs.models import Job
from shop.models import Line

for name in ("a", "b"):
    with schema_context(name):
        expected = {f"{name}{number}" for number in range(20)}
        assert set(Line.objects.values_list("text", flat=True)) == expected
        assert Line.objects.count() == 20, "each once"
        written = Job.objects.filter(job_type="shop.write", status="completed", metadata__schema=name)
        assert [*written.values_list("result", flat=True)] == [name] * 20
assert Job.objects.count() == 44
assert Job.objects.filter(status="dead").count() == 2
assert {*Job.objects.filter(job_type="shop.where").values_list("result", flat=True)} == {"public"}
print("as it should be")
"""


@pytest.fixture
def url(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    url = new_url("postgresql", tmp_path, suffix="_tenants")
    with django_db_blocker.unblock():
        create_database(url)
    yield url
    with django_db_blocker.unblock():
        drop_database(url)


def test_each_job_runs_in_the_schema_of_its_tenant(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs/guide/several-databases.md").read_text()
    (tenancy,) = re.findall(r"```python\n# shop/tenancy\.py\n(.*?)```", guide, re.DOTALL)
    files = {
        "manage.py": PROGRAM,
        "customers/__init__.py": "",
        "customers/models.py": CUSTOMERS,
        "customers/migrations/__init__.py": "",
        "customers/migrations/0001_initial.py": CUSTOMERS_MIGRATION,
        "shop/models.py": SHOP,
        "shop/tenancy.py": tenancy,
        "shop/jobs.py": JOBS,
        "shop/migrations/__init__.py": "",
        "shop/migrations/0001_initial.py": MIGRATION,
    }
    for package in ("customers", "shop"):
        (tmp_path / package / "migrations").mkdir(parents=True)
    write_site(tmp_path, monkeypatch, files)
    monkeypatch.setenv("TENANTS_URL", url)
    program = [str(tmp_path / "manage.py")]
    for arguments in (
        ["migrate_schemas", "--shared", "--verbosity", "0"],
        ["shell", "-c", SUBMIT],
        ["runworkers", "--drain", "--threads", "4"],
        ["shell", "-c", LOOK],
    ):
        done = manage(*arguments, program=program, timeout=120)
        assert done.returncode == 0, f"{arguments[0]}: {done.stdout}\n{done.stderr}"
    assert "as it should be" in done.stdout
