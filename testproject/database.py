"""Turn a DATABASE_URL into a Django database setting, with the options that `manage.py check` recommends."""

from urllib.parse import unquote, urlsplit

SQLITE_OPTIONS = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def database_from_url(url: str) -> dict[str, object]:
    """Return the setting for `sqlite:///file`, `postgresql://user@host:port/name` or `mysql://user@host:port/name`."""
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
    setting: dict[str, object] = {
        "ENGINE": f"django.db.backends.{engines[parts.scheme]}",
        "NAME": parts.path[1:],
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
    }
    if engines[parts.scheme] == "mysql":
        setting["OPTIONS"] = {"charset": "utf8mb4"}
    return setting
