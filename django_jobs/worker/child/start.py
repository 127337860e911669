"""How children are started: by the program that started their parent, so that they come to the same settings by the same way.

A site may set Django up in its own manage.py, with settings.configure() or with django-configurations; `python -m django` knows
nothing of that.
"""

from __future__ import annotations

import os
import sys

PROGRAM = "manage.py"
# Keeps, while a child starts, the PYTHONPATH that its operator has set: the processes that handlers start are to see that one.
KEPT_PATH = "DJANGO_JOBS_PYTHONPATH"

_program: list[str] | None = None


def remember_program(argv: list[str]) -> None:
    """Note that a management command was started with `argv`: when that is this process's own command line, its program can start
    children, too."""
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
    """Return how this process was started: a module's name, or the path of a script, a directory or an archive."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is None:
        return [os.path.abspath(getattr(main, "__file__", None) or sys.argv[0])]
    if spec.name == "__main__":  # a directory or an archive
        return [os.path.abspath(sys.argv[0])]
    return ["-m", spec.name.removesuffix(".__main__")]


def environment() -> dict[str, str]:
    """Return the environment of a child: it imports from where this process does, wherever that was said."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, KEPT_PATH: os.environ.get("PYTHONPATH", "")}


def restore_environment() -> None:
    """In a child that has started: set PYTHONPATH back to what its operator has said."""
    kept = os.environ.pop(KEPT_PATH, None)
    if kept:
        os.environ["PYTHONPATH"] = kept
    elif kept is not None:
        os.environ.pop("PYTHONPATH", None)
