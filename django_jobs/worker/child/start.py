"""How children are started: by the program that started their parent, so that they come to the same settings by the same way.

A site may set Django up in its own manage.py, with settings.configure() or with django-configurations; `python -m django` knows
nothing of that.
"""

from __future__ import annotations

import os
import sys

PROGRAM = "manage.py"
# Holds the PYTHONPATH that the operator has set while a child starts; the processes that its handlers start are to have that one.
KEPT_PATH = "DJANGO_JOBS_PYTHONPATH"

_program: list[str] | None = None


def remember_program(argv: list[str]) -> None:
    """Note that `runworkers` was called with `argv`: if that is the command line of this process, its program starts children."""
    global _program
    if argv[:2] == sys.argv[:2]:
        _program = _this_program()


def command(*arguments: str) -> list[str]:
    """Return the command line that runs a management command with these arguments as a child of this process."""
    flags = [f"-W{option}" for option in sys.warnoptions]
    flags += [f"-X{key}" if value is True else f"-X{key}={value}" for key, value in sys._xoptions.items()]
    # A manage.py may choose settings without asking the environment; this option has the last word.
    settings = os.environ.get("DJANGO_SETTINGS_MODULE")
    chosen = ["--settings", settings] if settings else []
    return [sys.executable, *flags, *(_program or _likely_program()), *arguments, *chosen]


def _likely_program() -> list[str]:
    """Return the program for a child of a process that is no `runworkers`: its manage.py, else Django's own."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return _this_program() if script and os.path.basename(script) == PROGRAM else ["-m", "django"]


def _this_program() -> list[str]:
    """Return how this process was started: a module's name, or the real path of a script, a directory or an archive."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return ["-m", spec.name.removesuffix(".__main__")]
    # As `sys.path` has it: a path by way of the working directory, or of a link, may lead elsewhere or nowhere later on.
    return [os.path.realpath(sys.argv[0] if spec is not None else main.__file__ or sys.argv[0])]


def environment() -> dict[str, str]:
    """Return the environment of a child, which is to import from where this process does."""
    # What is no path (an editable install's hook) would be looked for in the working directory, which may be gone.
    entries = [
        os.path.abspath(entry) for entry in sys.path if entry and (os.path.isabs(entry) or os.path.exists(entry))
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries), KEPT_PATH: os.environ.get("PYTHONPATH", "")}


def restore_environment() -> None:
    """Set PYTHONPATH back to what the operator has set, in a child that has started."""
    kept = os.environ.pop(KEPT_PATH, None)
    if kept:
        os.environ["PYTHONPATH"] = kept
    elif kept is not None:
        os.environ.pop("PYTHONPATH", None)
