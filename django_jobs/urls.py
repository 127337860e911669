"""URLs for probes and monitors: `path("jobs/", include("django_jobs.urls"))`."""

from django.urls import path

from django_jobs.monitoring import views

app_name = "django_jobs"
_VIEWS = {"health": views.health, "health/live": views.live, "health/ready": views.ready, "metrics": views.metrics}
# With and without the final slash: a probe follows no redirect, and whoever writes one guesses.
urlpatterns = [
    path(f"{address}{slash}", view, name=address.removeprefix("health/"))
    for slash in ("/", "")
    for address, view in _VIEWS.items()
]
