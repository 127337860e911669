"""Capture: the records of `logging` that come from a handler, whatever their logger, go to the log of its run as well.

A handler is known by its context, which its steps, coroutines and the threads of `sync_to_async` share. A handler of `logging`
on the root logger would miss loggers that do not propagate, and records below the root logger's level, which are not even
made. So two methods of `logging.Logger` ask for the log of the context, from the first run on that keeps one.
"""

from __future__ import annotations

import logging
import threading
import time
from contextvars import ContextVar
from typing import Any

from django.core.signals import setting_changed

from django_jobs.conf import NAME, valid_settings
from django_jobs.exceptions import TimedOut
from django_jobs.handlers import Handler
from django_jobs.lifecycle.logs import open_log
from django_jobs.run_log import RunLog

from .run import Run

_log: ContextVar[RunLog | None] = ContextVar("django_jobs_log", default=None)
_lock = threading.Lock()
_listens = False
_was_enabled_for = logging.Logger.isEnabledFor
_was_call_handlers = logging.Logger.callHandlers

site_level: int | None = None  # LOG_LEVEL, for the run of every job to look at


def _read_site_level(*, setting: str = NAME, **kwargs: Any) -> None:
    global site_level
    if setting == NAME:
        site_level = valid_settings().LOG_LEVEL


setting_changed.connect(_read_site_level, dispatch_uid="django_jobs.capture")
_read_site_level()


def begin(run: Run, handler: Handler) -> None:
    """Keep what is logged in the current context from now on, from the handler's level up, else from the site's."""
    level = handler.log_level if handler.log_level is not None else site_level
    if level is None:
        return
    if run.log is None:
        _listen()
        run.log = open_log(run.job, level)
    _log.set(run.log)


def _listen() -> None:
    global _listens, _was_enabled_for, _was_call_handlers
    with _lock:
        if not _listens:
            _listens = True
            # As they are now: other libraries may have wrapped them too.
            _was_enabled_for = logging.Logger.isEnabledFor
            _was_call_handlers = logging.Logger.callHandlers
            logging.Logger.isEnabledFor = _is_enabled_for  # type: ignore[method-assign, assignment]
            logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign, assignment]


def _is_enabled_for(logger: logging.Logger, level: int) -> bool:
    """Say whether a record is wanted: by the logger itself, or by the log of this context."""
    if _was_enabled_for(logger, level):
        return True
    log = _log.get()
    if log is None or level < log.level or logger.disabled or logger.manager.disable >= level:
        return False
    return _has_roots_level(logger)


def _has_roots_level(logger: logging.Logger) -> bool:
    """Say whether the site has set no level for a logger, so that the root logger's would hold."""
    at: logging.Logger | None = logger
    while at is not None and at.parent is not None:
        if at.level:
            return False
        at = at.parent
    return True


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Keep a record in the log of this context, and give it to the site's handlers if it would have come to them anyway."""
    log = _log.get()
    if log is None:
        _was_call_handlers(logger, record)
        return
    if record.levelno >= log.level:
        log.add(_line(record))
    if _was_enabled_for(logger, record.levelno):
        _was_call_handlers(logger, record)


class _Formatter(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


_formatter = _Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def _line(record: logging.LogRecord) -> str:
    """Return a record as text; one that cannot be formatted says so and breaks nothing, as everywhere in `logging`."""
    kept, record.exc_text = record.exc_text, None  # else the site's own formatters would take our text of the exception
    try:
        return _formatter.format(record)
    except TimedOut:  # sent into this thread meanwhile, and meant for the handler
        raise
    except Exception as error:
        return f"{record.levelname} {record.name}: a record of {record.pathname}:{record.lineno} cannot be formatted: {error!r}"
    finally:
        record.exc_text = kept
