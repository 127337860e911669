"""Arguments that nobody means: each verb answers in a line and an exit code, never with a traceback; `-m load`: all of them."""

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.edits import fill

pytestmark = pytest.mark.django_db

NASTY = (
    "", " ", "-1", "0", "abc", str(2**63), str(2**70), "9" * 5_000, "1e400", "nan", "inf", "a\0b", "\0", "\udcff",
    "x" * 5_000, "'", "%",
    "%s", "..", "null", "[]", "{}", '{"a": NaN}', '{"a": 1e400}',
    "[" * 3_000, '{"id": 7}', '{"command": ["x"]}', '{"type": null}',
    "0001-01-01", "9999-12-31T23:59:59+14:00", "ready", "dead", "default", "effects.record", "@x", "/dev/null/x", "٣",
    "all", "--",
)  # fmt: skip
VERBS: tuple[tuple[str, ...], ...] = (
    ("show", "?"), ("show", "ready", "--json"), ("wait", "?", "--timeout", "0.01"), ("wait", "ready", "--timeout", "?"),
    ("cancel", "?"), ("retry", "?"), ("graph", "?"), ("list", "--status", "?"), ("list", "--queue", "?"), ("list",
    "--limit", "?"),
    ("list", "--type", "?"), ("enqueue", "?"), ("enqueue", "effects.record", "--payload", "?"), ("enqueue", "--json", "?"),
    ("enqueue", "--command", "?"), ("enqueue", "effects.record", "--queue", "?"), ("enqueue", "effects.record",
    "--priority", "?"),
    ("enqueue", "effects.record", "--max-retries", "?"), ("enqueue", "effects.record", "--timeout", "?"),
    ("enqueue", "effects.record", "--delay", "?"), ("enqueue", "effects.record", "--id", "?"),
    ("enqueue", "effects.record", "--depends-on", "?"), ("enqueue", "effects.record", "--unique-key", "?"),
    ("dlq", "show", "?"), ("dlq", "replay", "?"), ("dlq", "ack", "?"), ("dlq", "ack", "dead", "--note", "?"),
    ("dlq", "list", "--type", "?"), ("dlq", "list", "--error", "?"), ("dlq", "replay", "--error", "?"), ("pause", "?"),
    ("resume", "?"),
    ("schedules", "disable", "?"), ("schedules", "run", "?"), ("import", "?"), ("export", "/nowhere/?/x"),
    ("stats", "--queue", "?"),
    ("emit", "?"), ("emit", "order.approved", "--key", "?"), ("emit", "order.approved", "--payload", "?"), ("batches",
    "show", "?"),
    ("limits", "set", "?", "--concurrency", "1"), ("limits", "set", "queue:x", "--rate", "?"), ("operations", "show", "?"),
    ("operations", "stop", "?"), ("health", "--max-wait", "?"), ("health", "--min-workers", "?"), ("?",), ("list", "?"),
)  # fmt: skip
SETTLED: Any = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow], "deadline": None}
texts = st.sampled_from(NASTY) | st.text(max_size=30)


@pytest.fixture(autouse=True)
def _rows() -> None:
    fill()


def _run(verb: tuple[str, ...], text: str) -> None:
    if "\0" in text and verb[0] in ("import", "export"):
        return  # no command line has it, and no file's name
    arguments = [word.replace("?", text) for word in verb]
    code: Any = 0
    said = "done"
    with transaction.atomic():
        try:
            call_command("jobs", *arguments, stdout=io.StringIO(), stderr=io.StringIO())
        except CommandError as error:
            code, said = error.returncode, str(error)
        except SystemExit as end:
            code = end.code
        transaction.set_rollback(True)
    assert code in (0, 1, 2), arguments
    assert said.strip(), arguments


@settings(max_examples=60, **SETTLED)
@given(verb=st.sampled_from(VERBS), text=texts)
@pytest.mark.slow
def test_any_argument_is_answered(verb: tuple[str, ...], text: str) -> None:
    _run(verb, text)


@pytest.mark.load
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_each_verb_answers_each_of_them(verb: tuple[str, ...]) -> None:
    for text in NASTY:
        _run(verb, text)
