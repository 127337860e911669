"""Staff users with the rights a test gives them, and browsers-without-a-browser that are logged in."""

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

VIEW = ("view_job", "view_deadletter", "view_queue", "view_workerprocess", "view_schedule", "view_batch", "view_alert")


def staff(*codenames: str, name: str = "ada") -> User:
    """Return a staff user who may view everything of ours and has these permissions besides."""
    user = User.objects.create_user(name, password="secret", is_staff=True)
    wanted = {*VIEW, *codenames}
    permissions = Permission.objects.filter(content_type__app_label="django_jobs", codename__in=wanted)
    assert {permission.codename for permission in permissions} == wanted, "each permission exists"
    user.user_permissions.set(permissions)
    return user


def browse(user: User, **options: Any) -> Client:
    """Return a client that is logged in."""
    client = Client(**options)
    client.force_login(user)
    return client


def operator(**options: Any) -> Client:
    """Return the client of a user who may do everything."""
    return browse(User.objects.create_superuser("operator", password="secret"), **options)
