"""A replica that refuses to be read, behind the primary/replica router of Django's documentation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections
from django.test import override_settings


class PrimaryReplicaRouter:
    """The router of Django's documentation, for our models: users and sessions are none of our business."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "django_jobs" else None

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True


@contextmanager
def unreadable_replica() -> Iterator[None]:
    """Route reads to a database that refuses them all."""
    connections.settings["replica"] = {**connections.settings["default"], "ENGINE": "django.db.backends.dummy"}
    try:
        with override_settings(DATABASE_ROUTERS=[f"{__name__}.PrimaryReplicaRouter"]):
            yield
    finally:
        del connections.settings["replica"]
