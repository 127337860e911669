"""System checks: `manage.py check` names what would cause trouble later, and how to correct it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.checks.security.base import (
    SECRET_KEY_INSECURE_PREFIX,
    SECRET_KEY_MIN_LENGTH,
    SECRET_KEY_MIN_UNIQUE_CHARACTERS,
)
from django.core.exceptions import ImproperlyConfigured
from django.db import router

from django_jobs.conf import NAME, parse, valid_settings
from django_jobs.db.connections import MOST_SHARED, jobs_alias, jobs_connection, use_database
from django_jobs.db.server import OLDEST, journal_mode, max_connections, missing_migrations, product_and_version
from django_jobs.handlers import encrypts_any, registry
from django_jobs.limit import Limit
from django_jobs.names import did_you_mean
from django_jobs.scheduling.spec import declared

SQLITE_OPTIONS = (
    '{"transaction_mode": "IMMEDIATE", "timeout": 20,'
    ' "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"}'
)
SQLITE_TIMEOUT = 10.0
POOL_DEFAULT = 4  # psycopg_pool's
BESIDE_THREADS = 2 + MOST_SHARED  # connections of a process besides one a thread: lease, listener, shared ones
SHORT_LEASE = 10.0
MOST_TYPES = 20
_IDS = {"shape": "django_jobs.E001", "key": "django_jobs.E002", "value": "django_jobs.E003"}


@register("django_jobs")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report every problem of the DJANGO_JOBS setting: E001 no dict, E002 unknown key, E003 wrong value."""
    _, problems = parse(getattr(settings, NAME, {}))
    return [Error(problem.message, hint=problem.hint, id=_IDS[problem.kind]) for problem in problems]


@register("django_jobs")
def check_use_tz(**kwargs: Any) -> list[CheckMessage]:
    """Report E004 when USE_TZ is off: a naive time is ambiguous one hour a year."""
    if settings.USE_TZ:
        return []
    hint = "Set USE_TZ = True; TIME_ZONE may be any zone."
    return [Error("django_jobs needs aware datetimes, and USE_TZ is False.", hint=hint, id="django_jobs.E004")]


@register("django_jobs")
def check_database_time_zone(**kwargs: Any) -> list[CheckMessage]:
    """Report E005 when the jobs' database keeps local times: its clock, which decides what is due, is read in UTC."""
    found: list[CheckMessage] = []
    for alias in _aliases():
        zone = settings.DATABASES[alias].get("TIME_ZONE")
        if zone not in (None, "UTC"):
            message = f"The jobs are in the database {alias!r}, which has TIME_ZONE {zone!r}; django_jobs needs UTC."
            hint = f"Remove TIME_ZONE from DATABASES[{alias!r}], or route django_jobs to another database."
            found.append(Error(message, hint=hint, id="django_jobs.E005"))
    return found


@register("django_jobs")
def check_router(**kwargs: Any) -> Iterator[CheckMessage]:
    """Report E007, E008, E014 for routers that split the tables, do not create them or name a database that is not among
    DATABASES; W008 for users elsewhere."""
    alias = jobs_alias()
    if alias not in _aliases():
        message = f"The routers send jobs to the database {alias!r}, which DJANGO_JOBS['DATABASES'] does not name."
        yield Error(message, hint="Name it there, or route django_jobs to one of those.", id="django_jobs.E014")
    models = list(apps.get_app_config("django_jobs").get_models())
    elsewhere = sorted({model.__name__ for model in models if router.db_for_write(model) != alias})
    if elsewhere:
        message = f"The jobs are in the database {alias!r}, but a router sends {', '.join(elsewhere)} to another one."
        yield Error(message, hint="Route all models of django_jobs to one database.", id="django_jobs.E007")
    for one in _aliases():
        if not all(router.allow_migrate_model(one, model) for model in models):
            message = f"The jobs are in the database {one!r}, but a router does not let their tables be made there."
            hint = f"Let allow_migrate({one!r}, 'django_jobs') return True or None."
            yield Error(message, hint=hint, id="django_jobs.E008")
    user_model = _user_model()
    if user_model is not None and router.db_for_write(user_model) != alias:
        message = (
            f"The jobs are in the database {alias!r} and the users in another one, but dead letters refer to users."
        )
        hint = "Route django_jobs to the database of the users; the admin needs that, and a submit joins their transactions."
        yield Warning(message, hint=hint, id="django_jobs.W008")


@register("django_jobs")
def check_user_model(**kwargs: Any) -> list[CheckMessage]:
    """Report E010 when the site has no users: dead letters refer to who replayed or acknowledged them."""
    if _user_model() is not None:
        return []
    message = f"django_jobs needs a user model, and AUTH_USER_MODEL {settings.AUTH_USER_MODEL!r} is not installed."
    hint = (
        "Add 'django.contrib.auth' and 'django.contrib.contenttypes' to INSTALLED_APPS, or the app of your user model."
    )
    return [Error(message, hint=hint, id="django_jobs.E010")]


@register("django_jobs")
def check_database_options(**kwargs: Any) -> Iterator[CheckMessage]:
    """Report E006, E011 for a database or a driver we have no statements for; W001, W002, W004, W005 for its options."""
    for alias in _aliases():
        with use_database(alias):
            yield from _check_options()


def _check_options() -> Iterator[CheckMessage]:
    connection: Any = jobs_connection()
    alias = connection.alias
    options = connection.settings_dict.get("OPTIONS") or {}
    if connection.vendor not in ("sqlite", "postgresql", "mysql"):
        message = f"The jobs are in the database {alias!r}, whose engine django_jobs cannot use: {connection.vendor}."
        hint = "Route django_jobs to PostgreSQL, MariaDB, MySQL or SQLite."
        yield Error(message, hint=hint, id="django_jobs.E006")
    if connection.vendor == "postgresql" and not _has_psycopg_3():
        message = "django_jobs needs psycopg 3, and Django uses psycopg2 here, for which it has no statements and no wake-ups."
        hint = "Install it: pip install 'django-durable-jobs[postgres]'; Django prefers it, psycopg2 may stay."
        yield Error(message, hint=hint, id="django_jobs.E011")
    name = connection.Database.__name__ if connection.vendor == "mysql" else ""
    if name not in ("", "MySQLdb"):
        message = (
            f"django_jobs needs mysqlclient, and {name} stands in for it: it has no sockets that workers could set up."
        )
        hint = "Install it: pip install 'django-durable-jobs[mysql]'; and let nothing install itself as MySQLdb."
        yield Error(message, hint=hint, id="django_jobs.E011")
    if connection.vendor == "sqlite":
        yield from _check_sqlite_options(options)
    else:
        yield from _check_server_options(options)


def _check_sqlite_options(options: dict[str, Any]) -> Iterator[CheckMessage]:
    alias = jobs_alias()
    if jobs_connection().is_in_memory_db():  # type: ignore[attr-defined]
        return
    hint = f"Set DATABASES[{alias!r}]['OPTIONS'] = {SQLITE_OPTIONS}."
    if str(options.get("transaction_mode") or "").upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        message = (
            "Transactions on SQLite take the write lock at their first write: one that has read before is refused at once"
            " (database is locked) while a worker writes."
        )
        yield Warning(message, hint=hint, id="django_jobs.W001")
    if options.get("timeout", 5.0) < SQLITE_TIMEOUT:
        message = f"SQLite waits {options.get('timeout', 5.0):g} s for the write lock; a busy queue may hold it longer."
        yield Warning(message, hint=hint, id="django_jobs.W002")


def _check_server_options(options: dict[str, Any]) -> Iterator[CheckMessage]:
    alias = jobs_alias()
    level = options.get("isolation_level")
    # psycopg's IsolationLevel.READ_COMMITTED is 2; None is PostgreSQL's default, and Django's on MariaDB and MySQL.
    if level is not None and level != 2 and str(level).lower().replace("_", " ") != "read committed":
        message = (
            f"The jobs are in the database {alias!r} with isolation_level {level!r}: submits may be refused and redone."
        )
        hint = "Use READ COMMITTED, or retry your transactions; workers use READ COMMITTED in any case."
        yield Warning(message, hint=hint, id="django_jobs.W004")
    pool = options.get("pool")
    if not pool:
        return
    given = pool if isinstance(pool, dict) else {}
    size = given.get("max_size") or given.get("min_size", POOL_DEFAULT)
    if size < _wanted_connections():
        message = f"A worker process holds up to {_wanted_connections()} connections, and the pool has {size}."
        hint = (
            f"Set DATABASES[{alias!r}]['OPTIONS']['pool'] = {{'max_size': {_wanted_connections()}}}, or lower THREADS."
        )
        yield Warning(message, hint=hint, id="django_jobs.W005")


@register("django_jobs")
def check_time_zone_data(**kwargs: Any) -> list[CheckMessage]:
    """Report W011 when this host cannot find the ticks of declared schedules; other hosts can."""
    names = [spec.name for spec in declared() if not spec.timing.is_known_here]
    if not names:
        return []
    message = f"This host has no time zone data, which declared schedules need: {', '.join(names[:MOST_TYPES])}."
    hint = "Install tzdata: pip install tzdata, or the system's package. Schedules in UTC need none."
    return [Warning(message, hint=hint, id="django_jobs.W011")]


@register("django_jobs")
def check_limits(**kwargs: Any) -> Iterator[CheckMessage]:
    """Report E012 for limits of one name that say different things, E013 for one that a type and a queue share."""
    queues = {name: queue.limit for name, queue in valid_settings().QUEUES.items() if queue.limit and queue.limit.name}
    types = {handler.job_type: handler.limit for handler in registry if handler.limit and handler.limit.name}
    for name in sorted({limit.name or "" for limit in (*queues.values(), *types.values())}):
        of_types = {job_type: limit for job_type, limit in types.items() if limit.name == name}
        of_queues = {queue: limit for queue, limit in queues.items() if limit.name == name}
        if len({_numbers(limit) for limit in (*of_types.values(), *of_queues.values())}) > 1:
            message = f"The limits named {name!r} say different numbers: {_owners({**of_types, **of_queues})}."
            hint = "Limits of one name are one limit: give them one number, or names of their own."
            yield Error(message, hint=hint, id="django_jobs.E012")
        if of_types and of_queues:
            message = f"The limit {name!r} is that of types ({_owners(of_types)}) and of queues ({_owners(of_queues)})."
            hint = "A job counts once for its type and once for its queue: give the two different names."
            yield Error(message, hint=hint, id="django_jobs.E013")


@register("django_jobs")
def check_bulk_handlers(**kwargs: Any) -> Iterator[CheckMessage]:
    """Report W012 for bulk handlers whose lists can never be as long as they say, because a limit lets fewer jobs run."""
    for handler in registry:
        most = handler.limit.concurrency if handler.limit else None
        if handler.bulk is not None and most is not None and most < handler.bulk:
            message = (
                f"{handler.job_type!r} has bulk={handler.bulk}, and its limit lets {most} of its jobs run at once."
            )
            hint = (
                "A limit counts jobs and not calls: raise its concurrency to as many jobs as are to run, or lower bulk."
            )
            yield Warning(message, hint=hint, id="django_jobs.W012")


def _owners(limits: Mapping[str, Limit]) -> str:
    return ", ".join(f"{owner} {_words(limit)}" for owner, limit in sorted(limits.items())[:MOST_TYPES])


def _numbers(limit: Limit) -> tuple[object, ...]:
    return limit.concurrency, limit.parsed_rate


def _words(limit: Limit) -> str:
    return " and ".join(str(number) for number in (limit.concurrency, limit.rate) if number is not None)


@register("django_jobs")
def check_lease(**kwargs: Any) -> list[CheckMessage]:
    """Report W007 for a lease so short that a healthy process may miss it."""
    seconds = valid_settings().LEASE_SECONDS
    if seconds >= SHORT_LEASE:
        return []
    message = (
        f"LEASE_SECONDS is {seconds:g}: a worker that cannot reach the database for that long, with a heartbeat"
        f" every {seconds / 4:g} s, gives its jobs up and exits."
    )
    return [Warning(message, hint="Use 30 to 60 seconds in production.", id="django_jobs.W007")]


@register("django_jobs", Tags.security)
def check_shell_jobs(**kwargs: Any) -> list[CheckMessage]:
    """Report W009 when everybody who may submit a job may run any command."""
    if not valid_settings().SHELL_JOBS or settings.DEBUG:
        return []
    message = "SHELL_JOBS is on: whoever may submit a job may run any command as the worker's user."
    hint = "Set it to False, or silence this check when only trusted people can submit jobs."
    return [Warning(message, hint=hint, id="django_jobs.W009")]


@register("django_jobs", Tags.security)
def check_encryption(**kwargs: Any) -> Iterator[CheckMessage]:
    """Report E015 when payloads are to be encrypted and nothing here can do it, W013 when the key can be guessed."""
    settings_problems = parse(getattr(settings, NAME, {}))[1]
    if settings_problems or not encrypts_any():
        return
    if find_spec("cryptography") is None:
        message = "Payloads and results are to be stored encrypted, and the package cryptography is not installed."
        yield Error(message, hint="Install it: pip install 'django-durable-jobs[encryption]'.", id="django_jobs.E015")
    if not settings.DEBUG and any(map(_is_weak, (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))):
        message = "Payloads and results are stored encrypted, with a secret key that can be guessed."
        hint = (
            "Give SECRET_KEY at least 50 characters from a random generator, and let the old key be in"
            " SECRET_KEY_FALLBACKS until `manage.py jobs encrypt` has been run."
        )
        yield Warning(message, hint=hint, id="django_jobs.W013")


def _is_weak(key: str | bytes) -> bool:
    """Whether Django's own check of secret keys would warn of one."""
    prefix = SECRET_KEY_INSECURE_PREFIX
    text = key if isinstance(key, str) else key.decode("latin-1")
    return (
        len(set(text)) < SECRET_KEY_MIN_UNIQUE_CHARACTERS
        or len(text) < SECRET_KEY_MIN_LENGTH
        or text.startswith(prefix)
    )


@register("django_jobs", Tags.database)
def check_database(databases: Sequence[str] | None = None, **kwargs: Any) -> Iterator[CheckMessage]:
    """Ask the jobs' database itself (`check --database`, `migrate`): E009 too old, W003 no WAL, W006 connections, W010 types."""
    for alias in _aliases():
        if alias in (databases or ()):
            with use_database(alias):
                yield from _check_server()


def _check_server() -> Iterator[CheckMessage]:
    alias = jobs_alias()
    product, version = product_and_version()
    name, oldest = OLDEST.get(product, (product, ()))
    if version < oldest:
        message = f"The database {alias!r} is {name} {_dotted(version)}; django_jobs needs {_dotted(oldest)}."
        yield Error(message, hint=f"Upgrade {name}.", id="django_jobs.E009")
        return
    if product == "sqlite" and journal_mode() not in ("wal", "memory"):
        message = "The SQLite database is not in WAL mode: readers and workers block each other."
        hint = f"Set DATABASES[{alias!r}]['OPTIONS'] = {SQLITE_OPTIONS}."
        yield Warning(message, hint=hint, id="django_jobs.W003")
    most = max_connections()
    if most is not None and most < _wanted_connections():
        message = f"One worker process holds up to {_wanted_connections()} connections, and the server takes {most}."
        yield Warning(message, hint="Raise the server's max_connections, or lower THREADS.", id="django_jobs.W006")
    if not parse(getattr(settings, NAME, {}))[1]:  # else the check of the settings says what is wrong
        yield from _check_job_types()


def _check_job_types() -> Iterator[CheckMessage]:
    """Report W010 for types that live jobs or enabled schedules have and this code does not know."""
    if missing_migrations():
        return
    known = registry.job_types()
    from django_jobs.models import Job, Schedule  # this module is imported before the apps are loaded

    live = Job.objects.live().order_by().values_list("job_type", flat=True).distinct()
    enabled = Schedule.objects.not_declared_elsewhere().filter(enabled=True)
    scheduled = enabled.order_by().values_list("job_type", flat=True).distinct()
    for what, types in (("Unfinished jobs have", live), ("An enabled schedule has", scheduled)):
        for job_type in sorted(set(types) - set(known))[:MOST_TYPES]:
            message = f"{what} the type {job_type!r}, which has no handler.{did_you_mean(job_type, known)}"
            hint = "Register a handler of this name in a jobs.py, or cancel the jobs; a worker makes them FAILED."
            yield Warning(message, hint=hint, id="django_jobs.W010")


def _aliases() -> tuple[str, ...]:
    """Return the aliases that may hold jobs."""
    return valid_settings().DATABASES or (jobs_alias(),)


def _user_model() -> Any:
    """Return the site's user model, or None when AUTH_USER_MODEL names none."""
    try:
        return get_user_model()
    except ImproperlyConfigured:
        return None


def _has_psycopg_3() -> bool:
    """Say whether Django talks to PostgreSQL by psycopg 3, which it prefers, or by psycopg2."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


def _wanted_connections() -> int:
    return valid_settings().THREADS + BESIDE_THREADS


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)
