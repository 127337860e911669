"""Prometheus metrics (extra `metrics`): the public home of `enable`, `expose` and the collector in `monitoring/`."""

from django_jobs.monitoring.metrics import CONTENT_TYPE, JobsCollector, disable, enable, expose

__all__ = ["CONTENT_TYPE", "JobsCollector", "disable", "enable", "expose"]
