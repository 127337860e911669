"""URLs of the test project: the admin, where the queue is operated."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
