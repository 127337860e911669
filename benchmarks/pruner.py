"""Prune as the workers do, in their rhythm, until stopped: `python -m benchmarks.pruner`, for `growth.py`."""

import time

import django

if __name__ == "__main__":
    django.setup()
    from django_jobs.lifecycle.prune import prune_batch
    from django_jobs.worker.maintenance import PRUNE_BATCHES

    while True:
        for _ in range(PRUNE_BATCHES):
            prune_batch()
        time.sleep(1.0)
