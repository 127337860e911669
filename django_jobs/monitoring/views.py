"""Views for probes and monitors. They show counts and names of queues to anybody: keep them off the public site.

A probe cannot log in, so none of them needs a user, whatever the site's middleware asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import health as probes

View = Callable[[HttpRequest], HttpResponse]
_LIMITS: dict[str, Callable[[Any], Any]] = {"max_wait": probes.seconds, "max_dead_letters": int, "min_workers": int}


def _open_to_probes(view: View) -> View:
    """Answer whoever reads, without a user, a transaction or a cache."""
    view = login_not_required(never_cache(require_safe(view)))
    for alias in connections:  # any of them may have ATOMIC_REQUESTS, and be away
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@_open_to_probes
def live(request: HttpRequest) -> HttpResponse:
    """Answer 200: this web process is alive. Reads no database."""
    return JsonResponse({"healthy": True})


@_open_to_probes
def ready(request: HttpRequest) -> HttpResponse:
    """Answer 200 when jobs can be submitted, else 503."""
    return _answer(probes.ready())


@_open_to_probes
def health(request: HttpRequest) -> HttpResponse:
    """Answer 200 when workers are alive and keep up, else 503. Thresholds may be in the query: `?max_wait=60&min_workers=2`."""
    limits: dict[str, Any] = {}
    for name, text in request.GET.items():
        if name not in _LIMITS:
            return JsonResponse({"problems": [f"unknown threshold; give {', '.join(_LIMITS)}"]}, status=400)
        try:
            limits[name] = _LIMITS[name](text)
        except ValueError:
            return JsonResponse({"problems": [f"{name} is a number"]}, status=400)
    return _answer(probes.health(probes.Thresholds(**limits)))


@_open_to_probes
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with the metrics in Prometheus' text format; 501 without prometheus-client."""
    try:
        from .metrics import CONTENT_TYPE, expose
    except ImportError:
        return HttpResponse("pip install 'django-durable-jobs[metrics]'\n", status=501, content_type="text/plain")
    return HttpResponse(expose(), content_type=CONTENT_TYPE)


def _answer(report: probes.Report) -> JsonResponse:
    return JsonResponse(report.as_dict(), status=200 if report.healthy else 503)
