"""House rules that a reader relies on: what may import what, who writes a status or speaks SQL, how files begin."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "django_jobs"
# From the ground up; a module belongs to the longest name that it begins with. Imports point down, or stay on a floor.
FLOORS = (
    (
        "arguments", "conf", "exceptions", "handlers", "limit", "retry", "rules", "payloads", "compat", "ids", "names", "numbers",
        "encryption", "text", "other_queues", "run_log",
        "submission", "propagation", "masking", "scheduling.cron", "scheduling.spec",
    ),
    ("db",),
    ("models", "signals"),
    ("lifecycle",),
    ("due", "stats", "waiting"),
    ("scheduling",),
    ("alerts",),
    ("worker", "shell"),
    ("library", "transfer", "monitoring", "task_backend"),
    (
        "api", "queue", "metrics", "admin", "backends", "management", "testing", "checks", "urls", "apps", "templatetags",
        "__init__",
    ),
)  # fmt: skip
WORDS, _, NOUNS, *_ = range(len(FLOORS))
CALLS_WITH_COLUMNS = {"update", "aupdate", "create", "acreate", "get_or_create", "update_or_create"}
SQL_CALLS = {"cursor", "raw", "execute", "executemany", "callproc"}


def sources() -> list[Path]:
    """Return the package's own Python files; migrations are written by Django."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]


def module_of(path: Path) -> str:
    """Return the dotted name of a file below django_jobs; of a package that of its `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def floor_of(module: str) -> int | None:
    """Return the floor of a module, or None when it belongs to no room."""
    names = {name: floor for floor, rooms in enumerate(FLOORS) for name in rooms}
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((names[prefix] for prefix in prefixes if prefix in names), None)


@cache  # each of the checkers reads each file
def tree_of(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def nodes_of(text: str) -> list[ast.AST]:
    return list(ast.walk(tree_of(text)))


def imports(module: str, text: str, *, inside_functions: bool = True) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name below django_jobs) of what is imported; nothing that only type checkers see."""
    nodes = nodes_of(text)
    passed_over = {inner for node in nodes if _is_type_checking(node) for inner in _body(node)}
    if not inside_functions:
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        passed_over |= {inner for node in functions for inner in ast.walk(node)}
    for node in nodes:
        if node not in passed_over:
            yield from ((node.lineno, name) for name in _imported(module, node))  # type: ignore[attr-defined]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _body(node: ast.If) -> Iterator[ast.AST]:
    for statement in node.body:
        yield from ast.walk(statement)


def _imported(module: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names if alias.name.startswith("django_jobs.")]
        return [name.removeprefix("django_jobs.") for name in names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = node.module or ""
    if node.level:
        parent = ["django_jobs", *module.split(".")][: -node.level]
        source = ".".join([*parent, *([node.module] if node.module else [])])
    if source == "django_jobs":
        return [alias.name if floor_of(alias.name) is not None else "__init__" for alias in node.names]
    if not source.startswith("django_jobs."):
        return []
    below = source.removeprefix("django_jobs.")
    return [f"{below}.{alias.name}" for alias in node.names]


# --- the checkers: each takes a module's dotted name below django_jobs and its text, and says what is wrong with it


def upward_imports(module: str, text: str) -> Iterator[str]:
    """Complain about imports from a floor above the module's own; the methods of models may call moves."""
    here = floor_of(module)
    if here is None:
        yield f"{module} belongs to no room; give it one in FLOORS"
        return
    for line, target in imports(module, text, inside_functions=not module.startswith("models.")):
        there = floor_of(target)
        if there is None:
            yield f"line {line}: {target} belongs to no room; give it one in FLOORS"
        elif there > here:
            yield f"line {line}: {module} (floor {here}) imports {target} (floor {there})"


def words_with_a_database(module: str, text: str) -> Iterator[str]:
    """Complain about a module of words that reaches for Django's database layer."""
    if floor_of(module) != WORDS:
        return
    for node in nodes_of(text):
        source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if any(f"{source}.{name}.".lstrip(".").startswith("django.db.") for name in names):
            yield f"line {node.lineno}: {module} is a word and imports django.db"


def status_writes(module: str, text: str) -> Iterator[str]:
    """Complain about a status that is assigned or updated outside of lifecycle/."""
    if module.startswith("lifecycle"):
        return
    for node in nodes_of(text):
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


def raw_sql(module: str, text: str) -> Iterator[str]:
    """Complain about raw SQL and cursors outside of db/; an import's index is a file of its own, no database of the site."""
    if module.startswith("db.") or module == "transfer.import_index":
        return
    for node in nodes_of(text):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SQL_CALLS:
            yield f"line {node.lineno}: .{node.func.attr}() outside of db/"
        if isinstance(node, ast.Name) and node.id == "RawSQL":
            yield f"line {node.lineno}: RawSQL outside of db/"


def row_locks(module: str, text: str) -> Iterator[str]:
    """Complain about locked rows outside of the moves: of jobs in lifecycle/, of schedules in scheduling/, of another queue's."""
    if module.startswith(("lifecycle.", "scheduling.", "db.")) or module == "transfer.peers.found":
        return
    for node in nodes_of(text):
        if isinstance(node, ast.Call) and _called(node) == "select_for_update":
            yield f"line {node.lineno}: .select_for_update() outside of lifecycle/ and scheduling/"


def alias_parameters(module: str, text: str) -> Iterator[str]:
    """Complain about a database alias that is passed by hand; it is context, see db/connections.py.

    The alias of a backend for Django's tasks is another thing, and so is what Django passes to a method of its own, or a caller
    to us.
    """
    if module.startswith(("task_backend.", "backends")):
        return
    for node in nodes_of(text):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = {argument.arg for argument in arguments} & {"alias", "using"}
            if given and not module.startswith(GIVEN_A_DATABASE) and (module, node.name) not in GIVEN_AN_ALIAS:
                yield f"line {node.lineno}: {node.name} takes {', '.join(sorted(given))}"


GIVEN_A_DATABASE = ("api", "library.", "testing.")  # where the caller chooses
GIVEN_AN_ALIAS = {
    ("db.connections", "on_database"),
    ("db.connections", "database_of_submit"),
    ("db.connections", "use_database"),
    ("db.connections", "work_on"),
    ("models.indexes", "create_sql"),
    ("apps", "_write_declared_schedules"),
}


def missing_docstrings(module: str, text: str) -> Iterator[str]:
    """Complain about a file that does not begin by saying what it is for; an empty one is for nothing."""
    if text.strip() and ast.get_docstring(tree_of(text)) is None:
        yield f"{module} does not begin with a docstring"


def prints(module: str, text: str) -> Iterator[str]:
    """Complain about print(): a library logs, a command writes to its own stdout."""
    for node in nodes_of(text):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print()"


def read_once(module: str, text: str) -> Iterator[str]:
    """Complain about what may run again and takes an iterable: of a generator, the second run would find nothing left."""
    for node in nodes_of(text):
        if isinstance(node, ast.FunctionDef) and {*map(ast.unparse, node.decorator_list)} & {
            "transactional",
            "retried",
        }:
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                kind = ast.unparse(argument.annotation) if argument.annotation is not None else ""
                if "Iterable[" in kind or "Iterator[" in kind:
                    yield f"line {node.lineno}: {node.name} may run again and takes {argument.arg}: {kind}"


CHECKERS = [
    upward_imports, words_with_a_database, status_writes, raw_sql, row_locks, alias_parameters, missing_docstrings, prints,
    read_once,
]  # fmt: skip
Checker = Callable[[str, str], Iterator[str]]


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_the_package_keeps_the_rule(checker: Checker) -> None:
    assert sources(), "there is something to check"
    broken = []
    for path in sources():
        complaints = checker(module_of(path), path.read_text())
        broken += [f"{path.relative_to(PACKAGE.parent)}: {complaint}" for complaint in complaints]
    assert not broken, "\n".join(broken)


def circle(files: dict[str, str]) -> list[str] | None:
    """Return modules that import each other in a circle, or None; the methods of models may call moves."""
    graph = {}
    for module, text in files.items():
        targets = {
            _file_of(name, files)
            for _, name in imports(module, text, inside_functions=not module.startswith("models."))
        }
        graph[module] = targets - {module, None}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return list(found.args[1])
    return None


def _file_of(name: str, files: dict[str, str]) -> str | None:
    """Return the file that holds an imported name: the module itself, the one it is defined in, or its package's."""
    for candidate in (name, name.rpartition(".")[0], f"{name}.__init__", f"{name.rpartition('.')[0]}.__init__"):
        if candidate in files:
            return candidate
    return None


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({module_of(path): path.read_text() for path in sources()}) is None


def test_a_circle_is_seen() -> None:
    files = {
        "a.x": "from ..b.y import f",
        "b.y": "def g():\n    from django_jobs.a import x",
        "b.z": "from .y import g",
    }
    assert set(circle(files) or ()) == {"a.x", "b.y"}
    assert circle({"models.x": "def f():\n    from ..b import y", "b.y": "from ..models import x"}) is None


BAD = [
    (upward_imports, "retry", "from django_jobs.models import Job"),
    (upward_imports, "retry", "def f():\n    import django_jobs.lifecycle.claim"),
    (upward_imports, "retry", "from . import queue"),
    (upward_imports, "retry", "from .worker.thread import Worker"),
    (upward_imports, "models.job", "from ..lifecycle import claim"),
    (upward_imports, "models.__init__", "from ..lifecycle import claim"),
    (upward_imports, "db.notify", "from ..models import Job"),
    (upward_imports, "db.dialects.base", "from ...worker import thread"),
    (upward_imports, "scheduling.spec", "from .ticks import tick"),
    (upward_imports, "worker.thread", "from django_jobs import submit"),
    (upward_imports, "worker.thread", "import django_jobs.queue as q"),
    (upward_imports, "retry", "if TYPE_CHECKING:\n    pass\nelse:\n    from .models import Job"),
    (upward_imports, "cellar", "x = 1"),
    (upward_imports, "queue", "from .cellar import x"),
    (words_with_a_database, "payloads", "from django.db import models"),
    (words_with_a_database, "payloads", "from django.db.models import Q"),
    (words_with_a_database, "payloads", "def f():\n    import django.db"),
    (words_with_a_database, "scheduling.cron", "from django import db"),
    (status_writes, "queue", "job.status = 'dead'"),
    (status_writes, "queue", "job.status: str = 'dead'"),
    (status_writes, "queue", "a, job.status = 1, 'dead'"),
    (status_writes, "queue", "Job.objects.filter(pk=1).update(status='dead')"),
    (status_writes, "queue", "await Job.objects.acreate(status='dead')"),
    (status_writes, "queue", "Job.objects.bulk_update(jobs, ['status'])"),
    (status_writes, "queue", "setattr(job, 'status', 'dead')"),
    (raw_sql, "worker.thread", "with connection.cursor() as c: pass"),
    (raw_sql, "worker.thread", "c.execute('SELECT 1')"),
    (raw_sql, "admin.jobs", "Job.objects.raw('SELECT 1')"),
    (raw_sql, "queue", "qs.annotate(x=RawSQL('1', []))"),
    (row_locks, "queue", "Job.objects.select_for_update()"),
    (alias_parameters, "lifecycle.claim", "def claim(queue, alias=None): pass"),
    (alias_parameters, "models.job", "async def f(*, using): pass"),
    (missing_docstrings, "queue", "import os\n'''late'''"),
    (prints, "worker.thread", "def f():\n    print('here')"),
    (read_once, "lifecycle.cancel", "@transactional\ndef f(ids: Iterable[str]): pass"),
    (read_once, "lifecycle.cancel", "@retried\ndef f(a, *, ids: Iterator[str] | None): pass"),
]


@pytest.mark.parametrize(("checker", "module", "text"), BAD)
def test_a_checker_sees_what_it_is_for(checker: Checker, module: str, text: str) -> None:
    assert list(checker(module, text))


GOOD = [
    (
        upward_imports,
        "lifecycle.claim",
        "from ..models import Job\nfrom ..db import errors\nfrom django_jobs.ids import new_id",
    ),
    (upward_imports, "models.__init__", "from .job import Job"),
    (upward_imports, "models.job", "def f():\n    from django_jobs.lifecycle.claim import claim"),
    (upward_imports, "queue", "from . import lifecycle, submit\nfrom .admin import site\nimport django.db"),
    (upward_imports, "retry", "if TYPE_CHECKING:\n    from .models import Job"),
    (words_with_a_database, "payloads", "import django\nfrom django.conf import settings\nfrom .dbx import y"),
    (status_writes, "lifecycle.settle", "job.status = 'dead'"),
    (status_writes, "queue", "status = job.status\ncounts.update(pending=1)\nf(status=1)"),
    (raw_sql, "db.dialects.base", "cursor.execute('SELECT 1')"),
    (raw_sql, "worker.thread", "executor.submit(execute)"),
    (row_locks, "scheduling.ticks", "Schedule.objects.select_for_update()"),
    (alias_parameters, "backends", "def __init__(self, alias, params): pass"),
    (alias_parameters, "db.connections", "def use_database(alias): pass"),
    (
        read_once,
        "lifecycle.cancel",
        "def f(ids: Iterable[str]): pass\n@transactional\ndef g(ids: Collection[str]): pass",
    ),
]


@pytest.mark.parametrize(("checker", "module", "text"), GOOD)
def test_a_checker_is_silent_about_what_is_allowed(checker: Checker, module: str, text: str) -> None:
    assert not list(checker(module, text))
