"""URLs of the test project: the admin, where the queue is operated, and its styles, which a plain `runserver` serves too."""

from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
    # `runserver` itself does so with DEBUG only.
    path(f"{settings.STATIC_URL.lstrip('/')}<path:path>", serve, {"insecure": True}),
]
