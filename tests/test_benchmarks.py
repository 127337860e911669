"""Hold the benchmark together: its parts, the report of them, and the marks that the report fills in the documentation."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, run
from benchmarks.measures import MEASURES

KNOWN = {*MEASURES, "machine", "settings", "model"}


@pytest.mark.parametrize("part", run.PARTS)
def test_each_part_measures_something_that_the_report_shows(part: str) -> None:
    module = importlib.import_module(f"benchmarks.{part}")
    assert callable(module.measure)
    assert part in MEASURES
    assert part in run.QUICK


def test_the_marks_in_the_documentation_name_parts_and_each_part_has_one() -> None:
    marked = [name for page in report.PAGES for name in report.MARKED.findall((report.DOCS / page).read_text())]
    assert sorted(marked) == sorted(KNOWN)


def results(measure: str, *cases: tuple[str, dict[str, Any], list[float]]) -> str:
    """Return a file of results as the suite writes it; each case is a peer, its options and its rounds."""
    figure = MEASURES[measure].figure
    machine = {"cores": 2, "processor": "P", "memory_gib": 1.0, "system": "S", "python": "3", "servers": {}}
    told = {"label": "a queue", "settings": "as it comes", "bulk": "one by one", "versions": {"queue": "1"}}
    records = [
        {"peer": peer, "store": "postgresql", "options": options, "when": "today", "errors": []}
        | told
        | {"label": peer, "rounds": [{figure: each} for each in rounds]}
        for peer, options, rounds in cases
    ]
    about = machine | {"commit": "c", "load_average": 0.1}
    return json.dumps({"measure": measure, "machine": about, "cases": records})


def test_the_report_compares_medians_and_shows_the_spread(tmp_path: Path) -> None:
    text = results(
        "drain", ("django_jobs", {"processes": 1}, [100, 300, 200]), ("other", {"processes": 1}, [50, 60, 40])
    )
    (tmp_path / "drain.json").write_text(text)
    table = report.write(tmp_path)["drain"]
    assert "**1 worker process**" in table
    assert "| **django_jobs** | PostgreSQL | 200 (100 to 300) | 1 |" in table
    assert "| other | PostgreSQL | 50 (40 to 60) | 4.00\u00d7 (2.00 to 5.00) |" in table
    assert (tmp_path / "bench-drain-1-worker-process.svg").read_text().count("<path") == 2


def test_states_of_one_queue_are_compared_with_the_first(tmp_path: Path) -> None:
    empty, full = {"state": "empty", "rows": 0}, {"state": "finished", "rows": 1000}
    (tmp_path / "growth.json").write_text(
        results("growth", ("django_jobs", empty, [200]), ("django_jobs", full, [190]))
    )
    assert (
        "| 1,000 finished | PostgreSQL | 190 (190 to 190) | 0.95\u00d7 (0.95 to 0.95) |"
        in report.write(tmp_path)["growth"]
    )
