"""The catalogue in the admin."""

from django.contrib import admin
from django.http import HttpRequest

from .models import Scan, SourceFile


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows what the jobs have written; nobody writes it by hand."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Scan)
class ScanAdmin(ReadOnlyAdmin):
    """Scans, the newest first."""

    list_display = ("folder", "started_at", "report")


@admin.register(SourceFile)
class SourceFileAdmin(ReadOnlyAdmin):
    """Files with what they measure; those without an encoding could not be read as text."""

    list_display = ("path", "encoding", "lines", "size", "measured_at", "scan")
    list_filter = ("encoding", "scan")
    list_select_related = ("scan",)
    search_fields = ("path", "sha256")
    show_full_result_count = False
