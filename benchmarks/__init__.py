"""Benchmarks: django_jobs side by side with its peers and with the databases' own limits."""
