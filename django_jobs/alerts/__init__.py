"""Alerts: what is to be told, whether it was, and how it is sent. Any process may look; see `lifecycle.alerts` for who tells."""
