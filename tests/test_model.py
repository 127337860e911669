"""The models of the protocol speak of code that is there, and of each guard; `docs/model/check.py` checks what they say."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import DOCS

MODEL = DOCS / "model"
PAGE = (MODEL / "README.md").read_text()
MODELS = sorted(MODEL.glob("*.pml"))
EACH = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.stem)


def guards(model: Path) -> set[str]:
    return set(re.findall(r"^#define ([A-Z_]+) \(1 << \d+\)", model.read_text(), re.MULTILINE))


def named_functions() -> list[str]:
    """Return the dotted names in the tables, below `django_jobs`."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    return [word for row in rows for word in re.findall(r"`((?:\w+\.)+\w+)`", row) if not word.endswith(".pml")]


def find(dotted: str) -> Any:
    """Return the object of a dotted name: a module, then attributes."""
    module, _, rest = dotted.rpartition(".")
    found: Any = None
    while module:
        try:
            found = importlib.import_module(f"django_jobs.{module}")
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
    if not module:
        raise AttributeError(f"django_jobs has no {dotted}")
    for name in rest.split("."):
        found = getattr(found, name)
    return found


def test_every_function_of_the_tables_is_there() -> None:
    named = named_functions()
    assert len(named) > 50
    for dotted in named:
        find(dotted)


@pytest.mark.parametrize("dotted", ["lifecycle.settle.settle_never", "Settle.never"])
def test_a_function_that_is_gone_is_noticed(dotted: str) -> None:
    with pytest.raises(AttributeError):
        find(dotted)


def test_every_guard_has_its_row_and_every_row_its_guard() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|[^|]*\| \d \| [^|]+ \|$", PAGE, re.MULTILINE))
    assert rows == set().union(*map(guards, MODELS))


@EACH
def test_every_guard_stands_in_the_way_of_a_step(model: Path) -> None:
    text = model.read_text()
    for guard in guards(model):
        assert len(re.findall(rf"\b{guard}\b", text)) > 1, guard
    numbers = re.findall(r"^#define [A-Z_]+ \(1 << (\d+)\)", text, re.MULTILINE)
    assert [int(number) for number in numbers] == [*range(len(numbers))], "each has a bit of its own"


@EACH
def test_every_model_is_on_the_page(model: Path) -> None:
    assert f"| `{model.name}` |" in PAGE


def test_the_checker_says_what_it_takes() -> None:
    done = subprocess.run([sys.executable, MODEL / "check.py", "--help"], capture_output=True, text=True, check=True)
    assert all(model.stem in done.stdout for model in MODELS)
