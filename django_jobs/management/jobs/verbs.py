"""How a verb is declared: its parser, its help with examples, its function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandParser, DjangoHelpFormatter
from django.db import connections

from .output import Output

Verb = Callable[[dict[str, Any], Output], None]


class HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


class Verbs:
    """The verbs below one parser."""

    def __init__(self, parser: CommandParser, *, dest: str = "verb", required: bool = True) -> None:
        self._dest = dest
        self._verbs = parser.add_subparsers(dest=dest, required=required, metavar=dest.upper())

    def add(
        self, name: str, function: Verb | None, summary: str, *examples: str, as_json: bool = True, asks: bool = False
    ) -> CommandParser:
        """Add a verb and return its parser.

        Args:
            function: what the verb runs; None when it only has verbs below it.
            examples: command lines, without `manage.py jobs`.
            as_json: whether it takes `--json`.
            asks: whether it takes `--yes`.
        """
        lines = [f"  manage.py jobs {example}" for example in examples]
        parser: CommandParser = self._verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="\n".join(["examples:", *lines]) if lines else None,
            formatter_class=HelpFormatter,
        )
        if function is not None:
            parser.set_defaults(function=function)
            parser.add_argument("--database", choices=list(connections), help="the database alias of the jobs")
            if as_json:
                parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON Lines")
            if asks:
                parser.add_argument("--yes", action="store_true", help="do not ask")
        return parser
