"""Imports that are refused: what is wrong is named with its place, and nothing is written."""

from collections.abc import Callable
from typing import Any

import pytest

from django_jobs.transfer.importing import import_dicts
from tests.support.transfers import delete_all, exported, imported, make_mixed_jobs, refusal


def _line(**changes: Any) -> dict[str, Any]:
    return {"job_id": "x", "job_type": "t", **changes}


BAD_ITEMS = [
    ({"job_type": "t"}, "job_id is missing"),
    (_line(payload={"user": {"when": float("nan")}}), "payload.user.when: nan"),
    (_line(payload=[1]), "payload: give a JSON object"),
    (_line(payload={"n": 2**63}), "payload.n: integers go from"),
    (_line(payload={"a\x00": 1}), "NUL"),
    (_line(job_type="a b"), "job_type 'a b'"),
    (_line(priority=0), "priority=0"),
    (_line(priority="5"), "priority='5'"),
    (_line(status="lost"), "status='lost': give one of"),
    (_line(retry_count=-1), "retry_count=-1"),
    (_line(created_at="yesterday"), "created_at: give Unix seconds"),
    (_line(created_at=1e18), "created_at: give Unix seconds"),
    (_line(scheduled_at=True), "scheduled_at: give Unix seconds"),
    (_line(timeout_seconds=float("inf")), "timeout_seconds"),
    (_line(prioriy=3), "'prioriy': this key is unknown. Did you mean 'priority'?"),
    (_line(depends_on=["x"]), "cannot depend on itself"),
    (_line(depends_on=["nobody"]), "depends_on: there is no job 'nobody'"),
    (_line(depends_on="abc"), "depends_on"),
    (_line(error=5), "error=5: give a string"),
    (_line(error="a\x00b"), "cannot be stored"),
    (_line(result={"s": {1, 2}}), "result.s: set is not JSON"),
    (_line(extra={"rank": 60}, priority=9), "extra.rank=60: it stands for another priority"),
    (_line(extra={"finished_at": 5.0}), "extra.finished_at"),
    (_line(extra={"attempts": [{"number": 1}]}), "extra.attempts[0]: worker_id"),
    (_line(extra={"dead_letters": 3}), "extra.dead_letters: give a list"),
    (_line(extra={"dependencies": []}, depends_on=["y"]), "extra.dependencies: these are not the jobs"),
    (_line(extra={"fense": 3}), "Did you mean 'fence'"),
    ("a string", "give a job as an object"),
    (_line(job_type="shell", payload={"command": "ls"}), "shell jobs are off"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("item", "problem"), BAD_ITEMS, ids=[problem[:40] for _, problem in BAD_ITEMS])
def test_a_bad_item_is_named_and_nothing_is_imported(item: Any, problem: str) -> None:
    good = _line(job_id="good")
    problems = refusal(lambda: import_dicts([good, item]))
    assert any(found.startswith("item 1: ") and problem in found for found in problems), problems


@pytest.mark.django_db
def test_an_id_may_stand_in_a_file_once() -> None:
    problems = refusal(lambda: import_dicts([_line(), _line(job_id="y"), _line()]))
    assert problems == ["item 2: job_id 'x' is taken by item 0"]


@pytest.mark.django_db
def test_a_circle_is_refused_with_its_path() -> None:
    items = [_line(job_id="in", depends_on=["b"])]
    items += [_line(job_id=job_id, depends_on=[other]) for job_id, other in (("a", "b"), ("b", "c"), ("c", "a"))]
    items += [_line(job_id="free")]
    (problem,) = refusal(lambda: import_dicts(items))
    assert problem.startswith("the jobs depend on each other: ")
    path = problem.partition(": ")[2].split(" → ")
    assert (path[0], len(path), set(path)) == (path[-1], 4, {"a", "b", "c"})


def _cut(data: bytes, lines: int) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:lines])


BAD_FILES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "jobs.jsonl: the file is empty"),
    (lambda data: b"hello\n", "jobs.jsonl:1: this is not JSON"),
    (lambda data: b"{}\n", "jobs.jsonl:1: this is no export of jobs"),
    (lambda data: data.replace(b'"version":1', b'"version":2', 1), "jobs.jsonl:1: format version 2 is newer"),
    (lambda data: data.replace(b'"version":1', b'"version":"1"', 1), "jobs.jsonl:1: format version '1'"),
    (lambda data: _cut(data, 5), "the first line announces 6 jobs, but 4 follow"),
    (lambda data: data[:-20], "jobs.jsonl:7: the line is cut off"),
    (lambda data: data + b"{}\n", "jobs.jsonl:8: job_type"),
    (lambda data: data.replace(b'"job_type":"type.2"', b'"job_type":"type.2","job_type":"t"', 1), "jobs.jsonl:4: the key"),
    (lambda data: data.replace(b"type.1", b"\xff\xfe", 1), "jobs.jsonl:3: this is not UTF-8"),
    (lambda data: data.replace(b'"n":1', b'"n":NaN', 1), "jobs.jsonl:3: payload.n: nan"),
    (lambda data: data.replace(b'"n":2', b'"n":' + b"9" * 5000, 1), "jobs.jsonl:4: "),
    (lambda data: data.replace(b'"n":3', b'"n":' + b"[" * 100_000 + b"]" * 100_000, 1), "jobs.jsonl:5: "),
]  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(("spoil", "problem"), BAD_FILES, ids=[problem for _, problem in BAD_FILES])
def test_a_bad_file_is_named_with_its_line_and_nothing_is_imported(
    spoil: Callable[[bytes], bytes], problem: str
) -> None:
    make_mixed_jobs(6)
    data = exported()
    delete_all()
    problems = refusal(lambda: imported(spoil(data)))
    assert any(problem in found for found in problems), problems


@pytest.mark.django_db
def test_a_long_list_of_problems_is_cut() -> None:
    problems = refusal(lambda: import_dicts([_line(job_id=f"j{n}", priority=0) for n in range(500)]))
    assert len(problems) == 21
    assert problems[-1] == "and more"
