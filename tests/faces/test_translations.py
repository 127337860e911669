"""Translations: every string of the admin and the models is German in German, by the catalogue that is shipped."""

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils import translation
from django.utils.translation.template import templatize

from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import operator

PACKAGE = Path(__file__).resolve().parents[2] / "django_jobs"
LOCALE = PACKAGE / "locale"
CALLS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy"}
PLACES = re.compile(r"%\((\w+)\)s")


def strings(source: str) -> Iterator[str]:
    """Yield the first string of each call for a translation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            text = node.args[0]
            assert isinstance(text, ast.Constant), ast.unparse(node)
            yield text.value


def used() -> set[str]:
    """Return all strings that the code and the templates ask for."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        found.update(strings(path.read_text()))
    for path in PACKAGE.rglob("*.html"):
        # What makemessages reads: calls for translations, and X for all else.
        calls = re.findall(r"\b_?n?gettext\(.*?\)(?= |$|X|\n)", templatize(path.read_text()), re.DOTALL)
        for call in calls:
            found.update(strings(call.removeprefix("_n")))
    return found


def read_po(path: Path) -> dict[str, str]:
    """Return the translation (the singular one) of each string of a .po file."""
    entries: dict[str, str] = {}
    for block in path.read_text().split("\n\n"):
        parts: dict[str, str] = {}
        keyword = ""
        for line in block.splitlines():
            if match := re.match(r"(msg\w+(?:\[\d\])?) (.*)", line):
                keyword, line = match.groups()
            if keyword and line.startswith('"'):
                parts[keyword] = parts.get(keyword, "") + ast.literal_eval(line)
        entries[parts["msgid"]] = parts.get("msgstr", parts.get("msgstr[0]", ""))
    return entries


def compiled() -> dict[str | tuple[str, int], str]:
    with (LOCALE / "de/LC_MESSAGES/django.mo").open("rb") as file:
        return gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined,no-any-return]


def singular(catalogue: dict[str | tuple[str, int], str], text: str) -> str | None:
    return catalogue.get(text, catalogue.get((text, 0)))


def test_every_string_is_in_the_german_catalogue_and_no_other() -> None:
    german = read_po(LOCALE / "de/LC_MESSAGES/django.po")
    assert used() == german.keys() - {""}, "run makemessages as docs/CONTRIBUTING.md says"
    assert [text for text, translated in german.items() if not translated] == []
    assert read_po(LOCALE / "en/LC_MESSAGES/django.po").keys() == german.keys()


def test_the_compiled_catalogue_is_that_of_the_source() -> None:
    catalogue = compiled()
    german = read_po(LOCALE / "de/LC_MESSAGES/django.po")
    assert {text: singular(catalogue, text) for text in german} == german


def test_a_translation_has_the_places_of_its_string() -> None:
    wrong = [text for text, translated in read_po(LOCALE / "de/LC_MESSAGES/django.po").items()
             if set(PLACES.findall(text)) != set(PLACES.findall(translated))]  # fmt: skip
    assert wrong == []


@pytest.mark.django_db
def test_the_pages_of_the_admin_are_german_in_german() -> None:
    dead_letter = DeadLetterFactory()
    JobFactory(queue="mail")
    client = operator()
    with translation.override("de"):
        overview = client.get("/admin/django_jobs/overview/").content.decode()
        job = client.get(f"/admin/django_jobs/job/{dead_letter.job_id}/change/").content.decode()
        dead_letters = client.get("/admin/django_jobs/deadletter/").content.decode()
    for text in ("Übersicht", "Hintergrundjobs", "Letzte Stunde", "Warteschlangen", "lebende Worker-Prozesse"):
        assert text in overview
    for text in ("Nutzdaten", "Zeitleiste", "tot"):
        assert text in job
    assert "Quittieren" in dead_letters
    english = {"Overview", "Last hour", "Queues", "Payload", "Timeline", "Acknowledge"}
    assert [text for text in english if f">{text}<" in overview + job + dead_letters] == []
