"""How a verb is declared: its parser, its help with examples, its function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.management.base import CommandParser, DjangoHelpFormatter
from django.db import connections

from .output import Output

# Over which of the site's DATABASES a verb without --database goes: each of them, that of a submit, or the routers' (None).
EACH, SUBMIT = "each", "submit"
Verb = Callable[[dict[str, Any], Output], None]


@dataclass(frozen=True)
class Named:
    """The rows that a verb names: the option that holds their keys, and which of these a database has."""

    option: str
    model: str
    column: str = "pk"

    def keys(self, options: dict[str, Any]) -> list[str]:
        """Return the keys that the options give."""
        given = options[self.option]
        return list(given) if isinstance(given, list) else [given]

    def known(self, keys: list[str]) -> set[str]:
        """Return those that this database has."""
        rows = apps.get_model("django_jobs", self.model)._default_manager
        return set(rows.filter(**{f"{self.column}__in": keys}).values_list(self.column, flat=True))

    def narrowed(self, options: dict[str, Any], keys: list[str]) -> dict[str, Any]:
        """Return the options with these keys alone."""
        return {**options, self.option: keys if isinstance(options[self.option], list) else keys[0]}


Over = Named | str
JOB, JOBS = Named("job_id", "Job"), Named("job_ids", "Job")


class HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


class Verbs:
    """The verbs below one parser."""

    def __init__(self, parser: CommandParser, *, dest: str = "verb", required: bool = True) -> None:
        self._dest = dest
        self._verbs = parser.add_subparsers(dest=dest, required=required, metavar=dest.upper())

    def add(
        self,
        name: str,
        function: Verb | None,
        summary: str,
        *examples: str,
        as_json: bool = True,
        asks: bool = False,
        over: Over | None = None,
    ) -> CommandParser:
        """Add a verb and return its parser.

        Args:
            function: what the verb runs; None when it only has verbs below it.
            examples: command lines, without `manage.py jobs`.
            as_json: whether it takes `--json`.
            asks: whether it takes `--yes`.
            over: the databases of a verb without `--database`, where the site names several: EACH, SUBMIT, or what finds the rows
                that it names; the routers' by default.
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
            parser.set_defaults(function=function, over=over)
            parser.add_argument("--database", choices=list(connections), help="the database alias of the jobs")
            if as_json:
                parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON Lines")
            if asks:
                parser.add_argument("--yes", action="store_true", help="do not ask")
        return parser
