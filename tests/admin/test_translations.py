"""Translations: every string of the admin and the models is there in each language, by the catalogues that are shipped."""

import ast
import gettext
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.utils import translation
from django.utils.translation.template import templatize

from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import operator

PACKAGE = Path(__file__).resolve().parents[2] / "django_jobs"
LOCALE = PACKAGE / "locale"
CALLS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy"}
LANGUAGES = ("de", "es", "fr", "ja", "pt_BR", "zh_Hans")
EACH = pytest.mark.parametrize("language", LANGUAGES)
PLACES = re.compile(r"%\((\w+)\)s")


def strings(source: str) -> Iterator[str]:
    """Yield the first string of each call for a translation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            text = node.args[0]
            assert isinstance(text, ast.Constant), ast.unparse(node)
            yield text.value


@cache  # as each language asks
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


def catalogue(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES/django.po"


@cache
def read_po(path: Path) -> dict[str, list[str]]:
    """Return the translations of each string of a .po file: one, or one for each plural form."""
    entries: dict[str, list[str]] = {}
    for block in path.read_text().split("\n\n"):
        parts: dict[str, str] = {}
        keyword = ""
        for line in block.splitlines():
            if match := re.match(r"(msg\w+(?:\[\d\])?) (.*)", line):
                keyword, line = match.groups()
            if keyword and line.startswith('"'):
                parts[keyword] = parts.get(keyword, "") + ast.literal_eval(line)
        entries[parts["msgid"]] = [text for name, text in parts.items() if name.startswith("msgstr")]
    return entries


def test_every_language_that_is_there_is_tested() -> None:
    assert {path.name for path in LOCALE.iterdir()} == {*LANGUAGES, "en"}
    assert read_po(catalogue("en")).keys() == read_po(catalogue("de")).keys()


@EACH
def test_every_string_is_in_each_catalogue_and_no_other(language: str) -> None:
    translations = read_po(catalogue(language))
    assert used() == translations.keys() - {""}, "run makemessages as docs/CONTRIBUTING.md says"
    assert [text for text, forms in translations.items() if not all(forms)] == []
    assert "fuzzy" not in catalogue(language).read_text()


@EACH
def test_the_compiled_catalogue_is_that_of_the_source(language: str) -> None:
    with catalogue(language).with_suffix(".mo").open("rb") as file:
        compiled: Any = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    for text, forms in read_po(catalogue(language)).items():
        found = [compiled.get((text, number)) for number in range(len(forms))] if (text, 0) in compiled else None
        assert (found or [compiled[text]]) == forms


@EACH
def test_a_translation_has_the_places_of_its_string(language: str) -> None:
    wrong = {
        form
        for text, forms in read_po(catalogue(language)).items()
        for form in forms
        if sorted(PLACES.findall(text)) != sorted(PLACES.findall(form))
    }
    assert wrong == set()


@EACH
def test_plural_forms_hold(language: str) -> None:
    """Each plural has the forms that the header promises, and every number from 0 to 200 chooses one of them."""
    translations = read_po(catalogue(language))
    (count, rule) = re.findall(r"nplurals=(\d); plural=(.*);", translations[""][0])[0]
    choose = gettext.c2py(rule)  # type: ignore[attr-defined]
    assert {choose(number) for number in range(201)} == set(range(int(count)))
    plurals = {text: forms for text, forms in translations.items() if text in counted()}
    assert len(plurals) > 10
    assert {text for text, forms in plurals.items() if len(forms) != int(count)} == set()
    assert {text for text, forms in translations.items() if len(forms) > 1} <= plurals.keys()


@cache
def counted() -> set[str]:
    """Return the strings that have a plural."""
    return set(re.findall(r'^msgid "(.*)"\nmsgid_plural ', catalogue("en").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("language", "one", "many"),
    [
        ("de", "1 Thread", "5 Threads"),
        ("es", "1 hilo", "5 hilos"),
        ("fr", "1 thread", "5 threads"),
        ("ja", "スレッド 1", "スレッド 5"),
        ("pt-br", "1 thread", "5 threads"),
        ("zh-hans", "1 个线程", "5 个线程"),
    ],
)
def test_one_and_many_are_told_apart_where_the_language_does(language: str, one: str, many: str) -> None:
    with translation.override(language):
        told = [
            translation.ngettext("%(count)s thread", "%(count)s threads", number) % {"count": number}
            for number in (1, 5)
        ]
    assert told == [one, many]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("es", ("Resumen", "Colas", "Carga útil")),
        ("fr", ("Vue d", "Files", "Données")),
        ("ja", ("概要", "キュー", "ペイロード")),
        ("pt-br", ("Visão geral", "Filas", "Payload")),
        ("zh-hans", ("总览", "队列", "载荷")),
    ],
)
def test_the_pages_of_the_admin_are_in_each_language(language: str, words: tuple[str, ...]) -> None:
    dead_letter = DeadLetterFactory()
    JobFactory(queue="mail")
    client = operator()
    with translation.override(language):
        pages = [
            client.get(f"/admin/django_jobs/{page}").content.decode()
            for page in ("overview/", f"job/{dead_letter.job_id}/change/", "deadletter/", "schedule/", "workerprocess/")
        ]
    for word in words:
        assert any(word in page for page in pages), word
    assert [word for word in ("Overview", "Queues", "Timeline") for page in pages if f">{word}<" in page] == []


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
