"""Settings of the tests: those of the test project, with an app whose jobs leave effects that tests can count."""

from testproject.settings import *  # noqa: F403
from testproject.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.support.effects"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # users made by the hundred need no slow hash
