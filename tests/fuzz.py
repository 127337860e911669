"""Fuzz what outsiders can write, guided by coverage: each surface answers, or refuses with the error that is promised.

    pip install atheris
    python -m tests.fuzz payload | result | exception | cron | imports | admin | cli | notification | rows [--seconds 3600]

It ends at the first finding with a traceback and the file of its input, which then becomes a test of its surface.
SQLite in memory; each input's rows are rolled back.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["django_jobs"]):
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()

    from django_jobs import submit
    from django_jobs.db import notify
    from django_jobs.exceptions import InvalidJob, JobsError
    from django_jobs.lifecycle.claim import claim
    from django_jobs.lifecycle.outcome import Outcome
    from django_jobs.lifecycle.promote import promote
    from django_jobs.lifecycle.rescue import rescue_process
    from django_jobs.lifecycle.settle import settle
    from django_jobs.models import Job
    from django_jobs.payloads import decode, encode_result, read_json
    from django_jobs.scheduling import cron
    from django_jobs.text import ERROR_LENGTH, describe_exception, exception_path, fingerprint, format_traceback
    from django_jobs.transfer.exporting import all_jobs, export_file
    from django_jobs.transfer.importing import import_file
    from django_jobs.worker.listener import Listener
    from django_jobs.worker.poller import Pollers
    from django_jobs.worker.stagger import Stagger

from django.core.management import CommandError, call_command
from django.db import Error, connection, transaction
from django.test import Client
from django.utils import timezone

from tests.support.edits import columns, edit, fill
from tests.support.staff import operator

Data = atheris.FuzzedDataProvider


@contextmanager
def undone() -> Iterator[None]:
    """Roll back what the block writes."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def text_of(data: Data, most: int = 200) -> str:
    return data.ConsumeUnicode(data.ConsumeIntInRange(0, most))


def value_of(data: Data, depth: int = 0) -> Any:
    """Return a value, mostly of those that JSON has."""
    kind = data.ConsumeIntInRange(0, 10 if depth < 4 else 7)
    match kind:
        case 0:
            return None
        case 1:
            return data.ConsumeBool()
        case 2:
            return data.ConsumeInt(16)
        case 3:
            return data.ConsumeFloat()
        case 4 | 5:
            return text_of(data)
        case 6:
            return data.ConsumeBytes(8)
        case 7:
            return timezone.now()
        case 8:
            return [value_of(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 5))]
        case 9:
            return tuple(value_of(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 5)))
    keys = (text_of(data, 20) if data.ConsumeBool() else value_of(data, 4) for _ in range(data.ConsumeIntInRange(0, 5)))
    result = {}
    for key in keys:
        with suppress(TypeError):
            result[key] = value_of(data, depth + 1)
    return result


def payload(data: Data) -> None:
    if data.ConsumeBool():
        try:
            value = read_json(data.ConsumeBytes(2_000), "payload")
        except InvalidJob:
            return
    else:
        value = value_of(data)
    with undone():
        try:
            job = Job.objects.get(pk=submit("effects.record", value).id)
        except InvalidJob:
            return
        assert submit("effects.record", job.payload), "what was taken once is taken again"
        assert json.loads(json.dumps(job.payload)) == job.payload


def result(data: Data) -> None:
    value = value_of(data)
    try:
        text = encode_result(value)
    except InvalidJob:
        return
    assert encode_result(decode(text)) == text


class Odd(Exception):
    """Says of itself what it was told to say, or cannot."""

    def __init__(self, said: Any) -> None:
        super().__init__(said)
        self._said = said

    def __str__(self) -> str:
        if isinstance(self._said, bytes):
            raise ValueError(self._said)
        return self._said  # type: ignore[no-any-return]  # not a text: a TypeError of its own


def exception(data: Data) -> None:
    errors: list[BaseException] = []
    for _ in range(data.ConsumeIntInRange(1, 4)):
        said = value_of(data)
        error: BaseException = Odd(said) if data.ConsumeBool() else ValueError(said, text_of(data))
        if errors and data.ConsumeBool():
            error.__cause__ = data.PickValueInList(errors)
        if errors and data.ConsumeBool():
            error = BaseExceptionGroup(text_of(data), [error, *errors])
        if data.ConsumeBool():
            error.add_note(text_of(data))
        if data.ConsumeBool():
            error.__context__ = error if data.ConsumeBool() else data.PickValueInList([*errors, error])
        with suppress(type(error)):
            raise error
        errors.append(error)
    for told in (describe_exception(error), exception_path(error), format_traceback(error), fingerprint("a", error)):
        told.encode()
        assert "\0" not in told
    assert len(describe_exception(error)) <= ERROR_LENGTH


def cron_lines(data: Data) -> None:
    zone = data.PickValueInList([None, "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", text_of(data, 20)])
    words = ["*", "*/5", "1-5", "MON", "L", "#", "@daily", "59", "0", "31", "FEB", "-", ",", "/", "?", text_of(data, 9)]
    line = " ".join(data.PickValueInList(words) for _ in range(data.ConsumeIntInRange(0, 7)))
    if data.ConsumeBool():
        line = text_of(data, 40)
    try:
        cron.validate(line, zone)
    except InvalidJob:
        return
    assert cron.describe(line)
    times = list(cron.preview(line, 3, timezone=zone))
    assert times == sorted(set(times))
    assert cron.next_after(line, timezone.now(), zone) > timezone.now()


_export: list[bytes] = []


def imports(data: Data) -> None:
    lines = [bytearray(line) for line in _export]
    for _ in range(data.ConsumeIntInRange(1, 4)):
        line = data.PickValueInList(lines)
        at = data.ConsumeIntInRange(0, len(line))
        line[at : at + data.ConsumeIntInRange(0, 12)] = data.ConsumeBytes(data.ConsumeIntInRange(0, 12))
    if data.ConsumeBool():
        lines.append(bytearray(data.ConsumeBytes(300)))
    with undone():
        try:
            import_file(io.BytesIO(b"\n".join(map(bytes, lines))), "fuzzed", include_running=True)
        except InvalidJob:
            return
        _export_all()


@cache
def operator_client() -> Client:
    return operator()


def admin(data: Data) -> None:
    from tests.admin import test_hostile_requests as requests
    from tests.support.console import LISTS

    client = operator_client()
    key = data.PickValueInList([*requests._keys()[:16], text_of(data, 40)])
    number = data.ConsumeIntInRange(0, 100)
    url = data.PickValueInList([*requests._addresses(number, key), *LISTS])

    def given(names: tuple[str, ...]) -> dict[str, str]:
        return {
            data.PickValueInList([*names]): data.PickValueInList([*requests.ACTIONS, *requests.NASTY, text_of(data)])
            for _ in range(data.ConsumeIntInRange(0, 5))
        }

    with undone():
        if data.ConsumeBool():
            requests._ask(client, url, given(requests.PARAMETERS))
        else:
            requests._post(client, url, given(requests.FIELDS))


def cli(data: Data) -> None:
    from tests.management import test_cli_hostile as commands

    verb = data.PickValueInList([*commands.VERBS])
    more = [data.PickValueInList(["--json", "--queue", "--limit", "--all", "--type", text_of(data, 10)])]
    if verb[0] not in ("import", "export"):  # of files, which `imports` writes
        commands._run((*verb, *more * data.ConsumeIntInRange(0, 1)), text_of(data, 60))


class Heard:
    """A subscription that has heard what it was given."""

    def __init__(self, heard: list[tuple[str, str]]) -> None:
        self._heard = heard

    def wait(self, seconds: float) -> list[tuple[str, str]]:
        return self._heard

    def count_processes(self) -> int:
        return 1


def notification(data: Data) -> None:
    channels = [
        notify.WORK_CHANNEL,
        notify.OLD_CHANNEL,
        notify.PROCESS_CHANNEL,
        notify.FINISHED_CHANNEL,
        text_of(data, 9),
    ]
    heard = [
        (data.PickValueInList(channels), data.PickValueInList([text_of(data), "p"]))
        for _ in range(data.ConsumeIntInRange(0, 5))
    ]
    pollers = Pollers()
    pollers.is_notified = data.ConsumeBool()
    state: Any = type("State", (), {"pollers": pollers, "id": "p", "is_stopping": False})()
    listener = Listener(state, lambda: None)
    with undone():
        listener._pass_on(Heard(heard), 0.0, Stagger(partial(pollers.wake, is_told=True)))  # type: ignore[arg-type]


def rows(data: Data) -> None:
    fields = list(columns())
    with undone():
        for _ in range(data.ConsumeIntInRange(1, 3)):
            value = value_of(data, 4)
            quoted = "'" + str(value).replace("'", "''").replace("\0", "").replace("%", "%%") + "'"
            with suppress(Error, UnicodeError), transaction.atomic():
                edit(data.PickValueInList(fields), quoted if data.ConsumeBool() else str(data.ConsumeInt(8)))
        for act in (_work, _export_all, _checked):
            with suppress(JobsError, Error), transaction.atomic():
                act()


def _work() -> None:
    promote()
    rescue_process("gone")
    jobs = claim("default", 50, "one")
    settle([Outcome.completed(job) for job in jobs], "one")


def _export_all() -> None:
    export_file(all_jobs(), io.BytesIO())


def _checked() -> None:
    with suppress(CommandError):
        call_command("jobs", "check", stdout=io.StringIO(), stderr=io.StringIO())


SURFACES: dict[str, Callable[[Data], None]] = {
    "payload": payload, "result": result, "exception": exception, "cron": cron_lines, "imports": imports, "admin": admin,
    "cli": cli, "notification": notification, "rows": rows,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", choices=SURFACES)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--input", type=Path, help="a file that a finding left, to be tried alone")
    options = parser.parse_args()

    connection.creation.create_test_db(verbosity=0)
    fill()
    file = io.BytesIO()
    export_file(all_jobs(), file)
    operator_client()
    _export.extend(file.getvalue().splitlines())
    act = SURFACES[options.surface]
    if options.input:
        act(Data(options.input.read_bytes()))
        return
    limits = [
        f"-max_total_time={options.seconds}",
        "-max_len=4096",
        "-len_control=0",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]
    atheris.Setup([sys.argv[0], *limits], lambda given: act(Data(given)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
