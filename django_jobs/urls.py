"""URLs for probes and monitors: `path("jobs/", include("django_jobs.urls"))`."""

from django.urls import path

from django_jobs.monitoring import views

app_name = "django_jobs"
urlpatterns = [
    path("health/", views.health, name="health"),
    path("health/live", views.live, name="live"),
    path("health/ready", views.ready, name="ready"),
    path("metrics", views.metrics, name="metrics"),
]
