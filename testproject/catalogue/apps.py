"""The configuration of the demo app."""

from django.apps import AppConfig


class CatalogueConfig(AppConfig):
    """An index of the source files in a folder, made by jobs."""

    name = "testproject.catalogue"
    verbose_name = "Catalogue of source files"
