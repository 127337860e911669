"""The parts of `django_jobs.backends`: tasks with our options, the handlers that run them, and their results.

Nothing here but `results` imports a model at its top: backends and tasks are made while apps are still being loaded.
"""
