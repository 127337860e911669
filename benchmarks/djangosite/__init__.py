"""The small Django site that the Django queues and the bare table run in."""
