"""Hold the documentation to the code: blocks run, command lines parse, links lead somewhere, lists are complete."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.apps import apps
from django.core.management import get_commands, load_command_class
from django.db import connections

from django_jobs import conf, signals
from django_jobs.exceptions import InvalidJob
from django_jobs.models import JobStatus
from django_jobs.queue import JobQueue
from django_jobs.worker.local_process import stop_local_process
from tests.support.pages import (
    DOCS,
    ROOT,
    Block,
    anchors,
    blocks,
    code_words,
    command_lines,
    links,
    name_of,
    pages,
    prose,
    sources,
)

# Pages that show two systems side by side, or measurements: their Python is compiled, not run.
ONLY_COMPILED = {"docs/migrating.md", "docs/performance.md", "docs/reliability.md", "CHANGELOG.md"}
TUTORIAL = DOCS / "tutorial.md"
OTHERS_COMMANDS = {"db_worker", "prune_db_task_results", "qcluster", "qinfo", "qmonitor", "rqworker"}
WORDS_NOT_USED = re.compile(
    r"\b(purg(e|es|ed|ing)|zombies?|orphan(s|ed)?|fire[sd]?|defer(s|red)?|eta|countdown|trays?|keepers?|(?<!dead\s)letters?)\b",
    re.I,
)
# Names in the pages that are none of ours: files of the site that they build, addresses, permissions, ids of checks.
SITES_OWN = re.compile(r"(mysite|shop)/|(manage|jobs|tasks|conftest)\.py$|health/")
NO_MODULE = re.compile(r"django_jobs\.((add|change|delete|view)_\w+|(tasks\.)?[EWI]\d{3})$")
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
EVERY_PAGE = pytest.mark.parametrize("page", pages(), ids=name_of)


def run(site: Path, *command: str, timeout: float = 300) -> str:
    """Run a command in a site, with our package and no settings of the tests; return what it wrote."""
    dropped = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "DJANGO_JOBS_JSON")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONPATH"] = str(ROOT)
    environment["PATH"] = f"{site.parent / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        command, cwd=site, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)[:300]}\n{done.stdout}"
    return done.stdout


def write(site: Path, block: Block) -> None:
    """Write a block to the file that it names."""
    path = site / block.file
    path.parent.mkdir(exist_ok=True)
    text = (path.read_text() if block.is_appended else "") + block.text
    path.write_text(text)


def run_script(site: Path, text: str) -> str:
    """Run Python as `manage.py shell` would."""
    (site / "script.py").write_text(f"import django\ndjango.setup()\n{text}")
    return run(site, "env", "DJANGO_SETTINGS_MODULE=mysite.settings", "python", "script.py")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Follow the tutorial as printed, in an empty folder; return the site and all that was shown."""
    scratch = tmp_path_factory.mktemp("docs")
    (scratch / "bin").mkdir()
    (scratch / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (scratch / "bin/python").chmod(0o755)
    site = scratch / "site"
    site.mkdir()
    shown = []
    for block in blocks(TUTORIAL, "sh", "python"):
        if not block.is_run:
            continue
        if block.file:
            write(site, block)
        elif block.language == "python":
            shown.append(run_script(site, block.text))
        else:
            lines = [line for line in block.text.splitlines() if not line.endswith("# until Ctrl-C")]
            shown.append(run(site, "bash", "-ec", "\n".join(lines)))
    return site, "".join(shown)


@pytest.mark.slow
def test_the_tutorial_leads_where_it_says(tutorial: tuple[Path, str]) -> None:
    _, shown = tutorial
    assert 'result: {"receipt": 1}' in shown
    assert "attempt 3: failed" in shown
    assert "dead letter: retries exhausted" in shown
    assert "receipt-2 replayed" in shown
    assert "completed:      2" in shown
    assert "dead letters:   0" in shown


@pytest.mark.slow
@EVERY_PAGE
def test_the_python_of_each_page_runs_or_compiles(
    page: Path, tutorial: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = list(blocks(page, "python"))
    for block in found:
        for source in sources(block):
            compile(source, str(block), "exec", flags=TOP_LEVEL_AWAIT, dont_inherit=True)
    to_run = [block for block in found if block.is_run]
    if page == TUTORIAL or name_of(page) in ONLY_COMPILED or not to_run:
        return
    site = tmp_path_factory.mktemp("page") / "site"
    shutil.copytree(tutorial[0], site)
    shutil.copytree(tutorial[0].parent / "bin", site.parent / "bin")
    for block in to_run:
        if block.file:
            write(site, block)
    run(site, "python", "manage.py", "check")
    scripts = [block.text for block in to_run if not block.file]
    for script in (one for one in scripts if "settings.configure(" in one):
        run(tmp_path_factory.mktemp("script"), sys.executable, "-c", script)
    if script := "\n".join(one for one in scripts if "settings.configure(" not in one):
        run_script(site, script)


@EVERY_PAGE
def test_the_command_lines_of_each_page_are_understood(page: Path) -> None:
    for where, (name, *arguments) in command_lines(page):
        if name in OTHERS_COMMANDS:
            continue
        assert name in get_commands(), f"{where}: there is no command {name}"
        command: Any = load_command_class(get_commands()[name], name)
        try:
            with mock.patch.dict(connections.databases, other=connections.databases["default"]):
                command.create_parser("manage.py", name).parse_args(arguments)
        except (SystemExit, Exception) as error:
            raise AssertionError(f"{where}: {name} {arguments}: {error!r}") from error


@EVERY_PAGE
def test_the_links_of_each_page_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if fragment:
            assert fragment in anchors(there), f"{name_of(page)} links to {target}"


@EVERY_PAGE
def test_the_words_of_each_page_are_those_of_the_design(page: Path) -> None:
    text = " ".join(prose(page).split())  # "dead letter" may be on two lines
    assert not [found[0] for found in WORDS_NOT_USED.finditer(text)]


@EVERY_PAGE
def test_the_files_that_each_page_names_exist(page: Path) -> None:
    """Look below the repository, the package, and the folder of the page."""
    named = [word for word in code_words(page) if re.fullmatch(r"[\w./-]+(\.py|\.html|\.md|\.toml|\.yml|/)", word)]
    places = (ROOT, ROOT / "django_jobs", DOCS, page.parent)
    gone = [
        word for word in named if not SITES_OWN.match(word) and not any((place / word).exists() for place in places)
    ]
    assert gone == []


@EVERY_PAGE
def test_the_modules_that_each_page_names_exist(page: Path) -> None:
    named = re.findall(r"\bdjango_jobs(?:\.[A-Za-z_]\w*)+", page.read_text())
    assert [name for name in named if not NO_MODULE.match(name) and not is_ours(name)] == []


def is_ours(dotted: str) -> bool:
    """Return whether a dotted name is a module of the package, or a name in the source of one."""
    path, (_, *parts) = ROOT / "django_jobs", dotted.split(".")
    while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").exists()):
        path /= parts.pop(0)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return set(parts) <= set(re.findall(r"\w+", source.read_text()))


def test_the_names_on_the_architecture_page_are_in_the_source() -> None:
    source = {word for path in (ROOT / "django_jobs").rglob("*.py") for word in re.findall(r"\w+", path.read_text())}
    named = [word for word in code_words(DOCS / "architecture.md") if re.fullmatch(r"@?[A-Za-z_][\w.]*(\(.*\))?", word)]
    assert len(named) > 50
    assert [word for word in named if not set(re.findall(r"\w+", word.partition("(")[0])) <= source | {"py"}] == []


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/-]+\.md", (DOCS / "mkdocs.yml").read_text()))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there - named == set(), "add these to the navigation in docs/mkdocs.yml"
    assert named - there == set(), "these are in the navigation of docs/mkdocs.yml and are gone"


def rows(page: str) -> dict[str, list[str]]:
    """Return the tables of a page: each row's cells under the code word of its first cell."""
    lines = re.findall(r"^\| `([^`]+)`[^|]*\|(.*)\|$", (DOCS / page).read_text(), re.MULTILINE)
    return {word: [cell.strip() for cell in rest.split("|")] for word, rest in lines}


def test_the_settings_page_has_every_setting_with_its_default() -> None:
    told, defaults = rows("reference/settings.md"), conf.JobsSettings()
    for name in conf.JobsSettings.__dataclass_fields__:
        default = getattr(defaults, name)
        if isinstance(default, bool | int | float | None):
            assert told[name][0].strip("`") == repr(default), name
        else:
            assert name in told
    assert set(conf.QueueSettings.__dataclass_fields__) <= set(told)


def test_the_signals_page_has_every_signal() -> None:
    known = {name for name, value in vars(signals).items() if isinstance(value, signals.Signal)}
    assert known == {name for name in rows("reference/signals.md") if name in known or name.startswith("job_")}


def test_the_checks_page_has_every_check() -> None:
    ids = re.compile(r"django_jobs\.(?:tasks\.)?[EWI]\d{3}")
    known = {found for path in (ROOT / "django_jobs").rglob("*.py") for found in ids.findall(path.read_text())}
    assert known <= set(ids.findall((DOCS / "reference/checks.md").read_text()))


def test_the_permissions_page_has_every_permission_of_the_models() -> None:
    own = {code for model in apps.get_app_config("django_jobs").get_models() for code, _ in model._meta.permissions}
    assert own <= set(rows("reference/permissions.md"))


def test_the_command_line_page_has_every_verb_and_option() -> None:
    text = (DOCS / "reference/cli.md").read_text()
    jobs: Any = load_command_class("django_jobs", "jobs")
    runworkers: Any = load_command_class("django_jobs", "runworkers")
    (verbs,) = (one for one in jobs.create_parser("manage.py", "jobs")._actions if one.dest == "verb")
    for verb in verbs.choices:
        assert re.search(rf"\bjobs {verb}\b", text), verb
    ours = runworkers.create_parser("manage.py", "runworkers")._actions
    own = {"supervised", "isolated", "help", "version", "settings", "pythonpath", "traceback", "verbosity"}
    for action in ours:
        if action.dest not in own | {"no_color", "force_color", "skip_checks"}:
            assert action.option_strings[-1] in text, action.dest


def drawn_arrows() -> set[tuple[str, str]]:
    """Return the arrows of the state diagram."""
    (diagram,) = (block.text for block in blocks(DOCS / "reference/statuses.md", "mermaid"))
    return set(re.findall(r"^ *(\w+) --> (\w+)", diagram, re.MULTILINE))


@pytest.fixture
def queue(transactional_db: None) -> Iterator[JobQueue]:
    """Give a queue, and end the worker process inside this one that claims for it."""
    yield JobQueue("arrows")
    stop_local_process()


@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_the_state_diagram_has_the_arrows_of_the_code(queue: JobQueue) -> None:
    way = {"scheduled": ["scheduled"], "pending": []}
    way |= {status: ["running", status] for status in ("completed", "failed", "dead", "cancelled")}
    way["running"], way["scheduled"] = ["running"], ["running", "scheduled"]
    taken = set()
    for start, end in itertools.product(JobStatus.values, repeat=2):
        job_id = queue.enqueue("any.type")
        for step in way[start]:
            queue.update_status(job_id, step)
        assert queue.get_job(job_id).status == start
        try:
            queue.update_status(job_id, end)
        except InvalidJob:
            continue
        taken.add((start, end))
    by_dependency = {("pending", "failed"), ("scheduled", "failed")}
    assert drawn_arrows() - by_dependency == taken
