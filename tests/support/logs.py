"""How workers under test write their log."""

import logging


class WithoutHandlersErrors(logging.Formatter):
    """Leaves out the tracebacks of handlers that failed, so that any traceback in what a worker wrote is one of ours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback unless `monitoring/logs.py` wrote the record."""
        return record.getMessage() if record.module == "logs" else super().format(record)
