"""Turn a DATABASE_URL into a Django database setting, with the options that `manage.py check` recommends."""

from urllib.parse import parse_qsl, unquote, urlsplit

SQLITE_OPTIONS = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def database_from_url(url: str) -> dict[str, object]:
    """Return the setting for `sqlite:///file`, `postgresql://user@host:port/name` or `mysql://user@host:port/name`.

    As in libpq, there may be several hosts with their ports, separated by commas, and options of the driver in a query:
    `postgresql://user@one:5432,two:5432/name?target_session_attrs=read-write`.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(parts.path[1:]),
            "OPTIONS": dict(SQLITE_OPTIONS),
        }
    engines = {"postgresql": "postgresql", "postgres": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
    if parts.scheme not in engines:
        raise ValueError(f"DATABASE_URL: unknown scheme {parts.scheme!r}; use sqlite, postgresql or mysql")
    hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    setting: dict[str, object] = {
        "ENGINE": f"django.db.backends.{engines[parts.scheme]}",
        "NAME": parts.path[1:],
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": ",".join(host.hostname or "" for host in hosts),
        "PORT": ",".join(str(host.port or "") for host in hosts),
        "OPTIONS": dict(parse_qsl(parts.query)),
    }
    if engines[parts.scheme] == "mysql":
        setting["OPTIONS"] = {"charset": "utf8mb4"}
    return setting
