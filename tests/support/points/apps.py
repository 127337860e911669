"""The app's entry: points are armed once all apps are loaded."""

from django.apps import AppConfig

from . import arm


class PointsConfig(AppConfig):
    """Arms the point that the environment names."""

    name = "tests.support.points"

    def ready(self) -> None:
        """Change the function."""
        arm()
