"""The library's public home: queues, managers, schedules and workers as objects, over the same rows as everything else."""

from django_jobs.library.manager import EventHandler, JobQueueManager
from django_jobs.library.queue import JobQueue
from django_jobs.library.scheduler import Scheduler
from django_jobs.models import Job, JobStatus
from django_jobs.worker.thread import Worker, WorkerPool

__all__ = ["EventHandler", "Job", "JobQueue", "JobQueueManager", "JobStatus", "Scheduler", "Worker", "WorkerPool"]
