"""House rules that a reader relies on: what may import what, who writes a status or speaks SQL, how files look."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "django_jobs"
ROOMS = {
    "words": (
        "conf", "exceptions", "signals", "handlers", "retry", "payloads", "cron", "compat", "ids", "names",
        "jsontext", "newjob", "schedules", "text", "validation", "values",
    ),
    "nouns": ("models",),
    "moves": ("lifecycle",),
    "loops": ("worker",),
    "faces": (
        "api", "queue", "admin", "backends", "management", "testing", "checks", "health", "metrics", "tracing", "views", "urls",
        "apps", "logs", "manager", "scheduler", "shell", "transfer", "taskapi", "templatetags", "__init__",
    ),
}  # fmt: skip
FLOOR = {module: floor for floor, modules in enumerate(ROOMS.values()) for module in modules}
DOORS = "models.doors"  # `job.cancel()`: the one module that may reach up, to lifecycle/, inside its functions
MOST_LINES = 300
UNUSED_PROSE = re.compile(
    r"\b(purg(e|es|ed|ing)|zombies?|orphan(s|ed)?|fire[sd]?|defer(s|red)?|eta|countdown)\b", re.IGNORECASE
)
UNUSED_WORDS = re.compile(r"purge|zombie|orphan|defer|countdown|(?:^|_)eta(?:_|$)", re.IGNORECASE)
CALLS_WITH_COLUMNS = {"update", "aupdate", "create", "acreate", "get_or_create", "update_or_create"}
SQL_CALLS = {"cursor", "raw", "execute", "executemany", "select_for_update", "callproc"}


def sources() -> list[Path]:
    """Return the package's own Python files; migrations are written by Django."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]


# --- the checkers: each takes a module's dotted name below django_jobs and its text, and says what is wrong with it


def upward_imports(module: str, text: str) -> Iterator[str]:
    """Complain about imports of a room above the module's own, wherever in the file they stand."""
    here = FLOOR.get(module.split(".")[0])
    if here is None:
        yield f"{module} belongs to no room; give it one in ROOMS"
        return
    tree = ast.parse(text)
    typing_only = {inner for node in ast.walk(tree) if _is_type_checking(node) for inner in _body(node)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    through_a_door = {inner for node in functions for inner in ast.walk(node)} if module == DOORS else set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        reach = FLOOR["lifecycle"] if node in through_a_door else here
        for target in _imported(module, node):
            there = FLOOR.get(target)
            if there is None:
                yield f"line {node.lineno}: {target} belongs to no room; give it one in ROOMS"
            elif there > reach:
                yield f"line {node.lineno}: {module} (room {here}) imports {target} (room {there})"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _body(node: ast.If) -> Iterator[ast.AST]:
    for statement in node.body:
        yield from ast.walk(statement)


def _imported(module: str, node: ast.AST) -> list[str]:
    """Return the top-level names of django_jobs that an import statement reaches for."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        return [_top(name.removeprefix("django_jobs.")) for name in names if name.startswith("django_jobs.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        parent = ["django_jobs", *module.split(".")][: -node.level]
        source = ".".join([*parent, *([node.module] if node.module else [])])
    else:
        source = node.module or ""
    if source == "django_jobs":
        return [alias.name if alias.name in FLOOR else "__init__" for alias in node.names]
    return [_top(source.removeprefix("django_jobs."))] if source.startswith("django_jobs.") else []


def _top(name: str) -> str:
    return name.split(".")[0]


def words_with_a_database(module: str, text: str) -> Iterator[str]:
    """Complain about a module of words that reaches for Django's database layer."""
    if FLOOR.get(module.split(".")[0]) != 0:
        return
    for node in ast.walk(ast.parse(text)):
        source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if any(f"{source}.{name}.".lstrip(".").startswith("django.db.") for name in names):
            yield f"line {node.lineno}: {module} is a word and imports django.db"


def status_writes(module: str, text: str) -> Iterator[str]:
    """Complain about a status that is assigned or updated outside of lifecycle/."""
    if module.startswith("lifecycle"):
        return
    for node in ast.walk(ast.parse(text)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        flat = [part for target in targets for part in getattr(target, "elts", [target])]
        if any(isinstance(target, ast.Attribute) and target.attr == "status" for target in flat):
            yield f"line {node.lineno}: a status is assigned"
        if (
            isinstance(node, ast.Call)
            and _called(node) in {*CALLS_WITH_COLUMNS, "bulk_update", "setattr"}
            and _names_status(node)
        ):
            yield f"line {node.lineno}: a status is updated"


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _names_status(node: ast.Call) -> bool:
    if _called(node) in CALLS_WITH_COLUMNS:
        return any(keyword.arg == "status" for keyword in node.keywords)
    return any(isinstance(part, ast.Constant) and part.value == "status" for part in ast.walk(node))


def sql_and_locks(module: str, text: str) -> Iterator[str]:
    """Complain about raw SQL, cursors and row locks outside of lifecycle/."""
    if module.startswith("lifecycle"):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SQL_CALLS:
            yield f"line {node.lineno}: .{node.func.attr}() outside of lifecycle/"
        if isinstance(node, ast.Name) and node.id == "RawSQL":
            yield f"line {node.lineno}: RawSQL outside of lifecycle/"


def long_files(module: str, text: str) -> Iterator[str]:
    """Complain about a file that nobody reads in one go."""
    if (lines := len(text.splitlines())) > MOST_LINES:
        yield f"{module} has {lines} lines; at most {MOST_LINES}"


def missing_docstrings(module: str, text: str) -> Iterator[str]:
    """Complain about a file that does not begin by saying what it is for; an empty one is for nothing."""
    if text.strip() and ast.get_docstring(ast.parse(text)) is None:
        yield f"{module} does not begin with a docstring"


def prints(module: str, text: str) -> Iterator[str]:
    """Complain about print(): a library logs, a command writes to its own stdout."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print()"


def unused_words(module: str, text: str) -> Iterator[str]:
    """Complain about identifiers made of the words that we replaced by one word each."""
    for node in ast.walk(ast.parse(text)):
        for name in _identifiers(node):
            allowed = module == "backends" and name == "supports_defer"  # the word of Django's task backends
            if UNUSED_WORDS.search(name) and not allowed:
                yield f"line {getattr(node, 'lineno', 0)}: {name} is not one of our words"


def unused_prose(module: str, text: str) -> Iterator[str]:
    """Complain about such words in comments, docstrings and messages."""
    for number, line in enumerate(text.splitlines(), 1):
        if (found := UNUSED_PROSE.search(line)) and not re.search(r"\.defer\(|supports_defer|get_deferred", line):
            yield f"line {number}: {found[0]} is not one of our words"


def _identifiers(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            return [name] if _is_ours(node) else []
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
    return []


def _is_ours(node: ast.AST) -> bool:
    """Say whether we chose the name: an attribute that is only read or called may be Django's (`QuerySet.defer`)."""
    return not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Store)


CHECKERS = [
    upward_imports, words_with_a_database, status_writes, sql_and_locks,
    long_files, missing_docstrings, prints, unused_words, unused_prose,
]  # fmt: skip
Checker = Callable[[str, str], Iterator[str]]


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_the_package_keeps_the_rule(checker: Checker) -> None:
    assert sources(), "there is something to check"
    broken = []
    for path in sources():
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        broken += [
            f"{path.relative_to(PACKAGE.parent)}: {complaint}" for complaint in checker(module, path.read_text())
        ]
    assert not broken, "\n".join(broken)


BAD = [
    (upward_imports, "retry", "from django_jobs.models import Job"),
    (upward_imports, "retry", "def f():\n    import django_jobs.lifecycle.claim"),
    (upward_imports, "retry", "from . import queue"),
    (upward_imports, "retry", "from .worker.thread import Worker"),
    (upward_imports, "models.job", "from ..lifecycle import claim"),
    (upward_imports, "models.__init__", "from ..lifecycle import claim"),
    (upward_imports, "models.doors", "from ..lifecycle import claim"),
    (upward_imports, "models.doors", "def f():\n    from ..worker import thread"),
    (upward_imports, "lifecycle.sql.base", "from ...worker import thread"),
    (upward_imports, "worker.thread", "from django_jobs import submit"),
    (upward_imports, "worker.thread", "import django_jobs.queue as q"),
    (upward_imports, "retry", "if TYPE_CHECKING:\n    pass\nelse:\n    from .models import Job"),
    (upward_imports, "cellar", "x = 1"),
    (upward_imports, "queue", "from .cellar import x"),
    (words_with_a_database, "payloads", "from django.db import models"),
    (words_with_a_database, "payloads", "from django.db.models import Q"),
    (words_with_a_database, "payloads", "def f():\n    import django.db"),
    (words_with_a_database, "payloads", "from django import db"),
    (status_writes, "queue", "job.status = 'dead'"),
    (status_writes, "queue", "job.status: str = 'dead'"),
    (status_writes, "queue", "a, job.status = 1, 'dead'"),
    (status_writes, "queue", "Job.objects.filter(pk=1).update(status='dead')"),
    (status_writes, "queue", "await Job.objects.acreate(status='dead')"),
    (status_writes, "queue", "Job.objects.bulk_update(jobs, ['status'])"),
    (status_writes, "queue", "setattr(job, 'status', 'dead')"),
    (sql_and_locks, "worker.thread", "with connection.cursor() as c: pass"),
    (sql_and_locks, "worker.thread", "c.execute('SELECT 1')"),
    (sql_and_locks, "admin.jobs", "Job.objects.raw('SELECT 1')"),
    (sql_and_locks, "queue", "Job.objects.select_for_update()"),
    (sql_and_locks, "queue", "qs.annotate(x=RawSQL('1', []))"),
    (long_files, "queue", "\n" * 301),
    (missing_docstrings, "queue", "import os\n'''late'''"),
    (prints, "worker.thread", "def f():\n    print('here')"),
    (unused_prose, "queue", '"""It never fires."""'),
    (unused_prose, "queue", "x = 1  # an orphan"),
    (unused_words, "queue", "def purge_jobs(): pass"),
    (unused_words, "queue", "class ZombieReaper: pass"),
    (unused_words, "queue", "def f(eta): pass"),
    (unused_words, "queue", "self.job_eta = 1"),
    (unused_words, "queue", "countdown = 3"),
    (unused_words, "queue", "supports_defer = True"),
]


@pytest.mark.parametrize(("checker", "module", "text"), BAD)
def test_a_checker_sees_what_it_is_for(checker: Checker, module: str, text: str) -> None:
    assert list(checker(module, text))


GOOD = [
    (
        upward_imports,
        "lifecycle.claim",
        "from ..models import Job\nfrom .sql import base\nfrom django_jobs.ids import new_id",
    ),
    (upward_imports, "models.__init__", "from .job import Job"),
    (upward_imports, "models.doors", "def f():\n    from django_jobs.lifecycle.claim import claim"),
    (upward_imports, "queue", "from . import lifecycle, submit\nfrom .admin import site\nimport django.db"),
    (upward_imports, "retry", "if TYPE_CHECKING:\n    from .models import Job"),
    (words_with_a_database, "payloads", "import django\nfrom django.conf import settings\nfrom .dbx import y"),
    (status_writes, "lifecycle.settle", "job.status = 'dead'"),
    (status_writes, "queue", "status = job.status\ncounts.update(pending=1)\nf(status=1)"),
    (sql_and_locks, "lifecycle.sql.base", "cursor.execute('SELECT 1')"),
    (sql_and_locks, "worker.thread", "executor.submit(execute)"),
    (long_files, "queue", "\n" * 300),
    (unused_words, "backends", "supports_defer = True"),
    (unused_words, "queue", "beta = metadata = qs.defer('payload')"),
    (unused_prose, "queue", "rows = rows.defer('payload')"),
]


@pytest.mark.parametrize(("checker", "module", "text"), GOOD)
def test_a_checker_is_silent_about_what_is_allowed(checker: Checker, module: str, text: str) -> None:
    assert not list(checker(module, text))
