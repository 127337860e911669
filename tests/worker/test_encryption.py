"""Encryption at rest: no payload and no result is in the tables in plain, and everybody who may reads them as ever."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

import django_jobs
from django_jobs import NewJob, emit, encryption, job, submit, submit_many
from django_jobs.db.transactions import database_now
from django_jobs.encryption import MARK, as_stored
from django_jobs.exceptions import EncryptionError, InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.encrypt import encrypt_stored
from django_jobs.lifecycle.replay import replay_edited
from django_jobs.models import Batch, DeadLetter, Event, Job, JobStep, Schedule
from django_jobs.payloads import Unreadable
from django_jobs.scheduling.store import create_schedule, disable, enable, sync_declared
from django_jobs.scheduling.ticks import tick
from django_jobs.testing import drain, make_job, run_due
from tests.support.commands import jobs as jobs_command
from tests.support.commands import json_lines, refused
from tests.support.locked import Locked

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "rosebud-and-nothing-else"
NEW_KEY = "a-new-key-of-the-site-that-nobody-can-guess-0123456789-abcdef"
ENCRYPTED = override_settings(DJANGO_JOBS={"ENCRYPT": True, "BASE_DELAY": 0.01})


def text_of(table: str) -> str:
    """Return all that is in a table, as its database has it."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table}")
        return repr(cursor.fetchall())


def is_nowhere(secret: str = SECRET) -> bool:
    """Whether a text is in none of our tables."""
    with connection.cursor() as cursor:
        tables = [name for name in connection.introspection.table_names(cursor) if name.startswith("django_jobs_")]
    return not [table for table in tables if secret in text_of(table)]


@contextmanager
def keys(first: str, *fallbacks: str) -> Iterator[None]:
    with override_settings(SECRET_KEY=first, SECRET_KEY_FALLBACKS=list(fallbacks)):
        yield


@pytest.fixture
def declared() -> Iterator[Any]:
    """Give a decorator as `@job`; what it declares is forgotten after the test."""
    names = []

    def declare(name: str, **options: Any) -> Any:
        names.append(name)
        return job(name, **options)

    yield declare
    for name in names:
        registry.forget(name)


def echo(payload: dict[str, Any]) -> Any:
    return payload


# --- what is stored


def test_payloads_and_results_of_a_type_are_stored_encrypted_and_read_as_ever(declared: Any) -> None:
    declared("t.echo", encrypt=True)(echo)
    given = submit("t.echo", {"word": SECRET, "more": [1, 2.5, None, {"ß": "日本"}]})
    assert given.payload["word"] == SECRET
    assert is_nowhere()
    drain()
    done = Job.objects.get()
    assert (done.status, done.payload, done.result) == ("completed", given.payload, given.payload)
    assert is_nowhere()
    with as_stored():
        assert set(Job.objects.get().result) == {"$encrypted"}


def test_other_types_are_stored_in_plain(declared: Any) -> None:
    declared("t.echo")(echo)
    submit("t.echo", {"word": SECRET})
    assert not is_nowhere()


@ENCRYPTED
def test_the_setting_is_for_all_types_but_those_that_say_otherwise(declared: Any) -> None:
    declared("t.hidden")(echo)
    declared("t.open", encrypt=False)(echo)
    submit("t.hidden", {"word": SECRET})
    assert is_nowhere()
    submit("t.open", {"word": SECRET})
    assert not is_nowhere()


@ENCRYPTED
@pytest.mark.parametrize("way", ["plain", "atomic", "coroutine", "bulk", "two threads"])
def test_each_kind_of_handler_gets_what_was_submitted(bench: Bench, way: str) -> None:
    async def echo_async(payload: dict[str, Any]) -> Any:
        return payload

    if way == "bulk":
        bench.handle("t.echo", lambda payloads: [*payloads], bulk=10)
    else:
        bench.handle("t.echo", echo_async if way == "coroutine" else echo, atomic=way == "atomic")
    given = [bench.submit("t.echo", {"word": SECRET, "n": number}) for number in range(3)]
    assert bench.run(*given, threads=2 if way == "two threads" else 1) == ["completed"] * 3
    assert [one.result for one in given] == [{"word": SECRET, "n": number} for number in range(3)]
    assert is_nowhere()


@ENCRYPTED
@pytest.mark.slow
def test_so_does_a_child_process(bench: Bench) -> None:
    one = bench.submit("effects.greet", {"name": SECRET})
    with as_stored():
        assert set(Job.objects.get().payload) == {"$encrypted"}
    assert bench.run(one) == ["completed"]
    assert one.result == f"Good day, {SECRET}"


@ENCRYPTED
def test_submits_of_many_unique_keys_and_limits_are_as_ever(declared: Any) -> None:
    declared("t.echo", limit=django_jobs.Limit(concurrency=1, key="account"), fair_key="tenant")(echo)
    one, two = submit_many(
        [NewJob("t.echo", {"account": "a", "tenant": "x", "word": f"{SECRET} {n}"}, unique_key=f"k{n}") for n in (1, 2)]
    )
    assert submit("t.echo", {"account": "b", "tenant": "x"}, unique_key="k1").pk == one.pk
    # What the claim needs to know is a column of its own, in plain.
    assert (one.limit_key, two.fair_key) == ("a", "x")
    assert is_nowhere()
    assert {done.result["word"] for done in drain()} == {f"{SECRET} 1", f"{SECRET} 2"}


@ENCRYPTED
def test_results_reach_dependents_and_what_failed_is_edited_and_replayed(declared: Any) -> None:
    @declared("t.sum", takes_context=True, max_retries=0)
    def add(context: Any, payload: dict[str, Any]) -> Any:
        if payload.get("fails"):
            raise ValueError("no")
        return [*payload.values(), *(one.result for one in context.dependencies())]

    first = submit("t.sum", {"word": SECRET})
    second = submit("t.sum", {"fails": True}, depends_on=[first])
    drain(reraise=False)
    replay_edited(second.pk, {"word": SECRET})
    drain()
    second.refresh_from_db()
    assert second.result == [SECRET, [SECRET]]
    assert is_nowhere()


# --- workflows, events, batches, schedules


@ENCRYPTED
def test_steps_cursors_children_and_events_are_stored_encrypted(bench: Bench, declared: Any) -> None:
    declared("t.child")(echo)
    runs: list[int] = []

    def work(context: Any, payload: dict[str, Any]) -> Any:
        runs.append(1)
        done = [context.step("one", lambda: SECRET), context.step("two", lambda: SECRET, atomic=True)]
        for item in context.iterate("rows", [f"{SECRET} 1", f"{SECRET} 2"], key=lambda item: item, every=0):
            done.append(item)
        children = context.run_children([NewJob("t.child", {"word": SECRET})])
        return [*done[:2], children, context.wait_for_event("approved", key="7")]

    bench.handle("t.work", work, takes_context=True)
    one = bench.submit("t.work")
    bench.start()
    django_jobs.emit("approved", key="7", payload={"by": SECRET})
    assert one.wait(60).result == [SECRET, SECRET, [{"word": SECRET}], {"by": SECRET}]
    assert len(runs) > 1
    assert JobStep.objects.get(name="one").result == SECRET
    assert Event.objects.get(name="approved").payload == {"by": SECRET}
    assert is_nowhere()


def test_an_event_may_be_encrypted_by_itself() -> None:
    event = emit("paid", payload={"by": SECRET}, encrypt=True)
    assert event.payload == Event.objects.get().payload == {"by": SECRET}
    assert is_nowhere()
    with pytest.raises(InvalidJob, match="encrypt='yes': give True or False"):
        emit("paid", encrypt="yes")  # type: ignore[arg-type]


def test_the_payloads_of_a_batchs_callbacks_are_stored_encrypted(declared: Any) -> None:
    declared("t.echo", encrypt=True)(echo)
    with django_jobs.batch("import", on_finish=NewJob("t.echo", {"word": SECRET})) as batch:
        batch.submit_many([NewJob("t.echo", {"n": 1})])
    assert is_nowhere()
    assert {"word": SECRET} in [done.result for done in drain()]
    assert is_nowhere()


def test_so_are_those_of_schedules(declared: Any) -> None:
    declared("t.echo", encrypt=True)(echo)
    Schedule.objects.create(name="s", job_type="t.echo", payload={"word": SECRET}, kind="interval", interval_seconds=60)
    assert is_nowhere()
    row = Schedule.objects.get(name="s")
    assert row.payload == {"word": SECRET}
    row.next_run_at -= timedelta(days=1)
    row.save()
    sync_declared()
    tick()
    assert [done.result for done in drain()] == [{"word": SECRET}]
    assert is_nowhere()


# --- keys


@ENCRYPTED
def test_a_job_whose_key_is_gone_is_retried_then_dead_and_can_be_replayed_once_the_key_is_there(declared: Any) -> None:
    declared("t.echo", max_retries=0)(echo)
    one = submit("t.echo", {"word": SECRET})
    with keys(NEW_KEY):
        drain(reraise=False)
        one.refresh_from_db()
        assert one.status == "dead"
        assert "EncryptionError: it is encrypted, and no key of this site reads it" in one.error
        assert isinstance(one.payload, Unreadable)
        with pytest.raises(EncryptionError, match="SECRET_KEY_FALLBACKS"):
            one.payload["word"]
        assert "encrypted; no key of this site reads it" in jobs_command("show", one.pk)
        assert json_lines("list")[0]["id"] == one.pk
    DeadLetter.objects.get().replay()
    drain()
    one.refresh_from_db()
    assert one.result == {"word": SECRET}


@ENCRYPTED
def test_in_a_list_those_with_another_key_do_not_take_the_others_with_them(bench: Bench) -> None:
    bench.handle("t.echo", lambda payloads: [*payloads], bulk=10, max_retries=0)
    with keys(NEW_KEY):
        lost = bench.submit("t.echo", {"word": SECRET})
    good = [bench.submit("t.echo", {"n": number}) for number in range(2)]
    assert bench.run(lost, *good) == ["dead", "completed", "completed"]


@ENCRYPTED
def test_a_list_of_which_nothing_is_left_ends_no_process(bench: Bench) -> None:
    bench.handle("t.echo", lambda payloads: [*payloads], bulk=10, max_retries=0)
    with keys(NEW_KEY):
        lost = bench.submit("t.echo", {"word": SECRET})
    process = bench.start()
    assert lost.wait(60).status == "dead"
    assert bench.submit("t.echo", {"n": 1}).wait(60).status == "completed"
    process.stop(grace=10)
    assert (process.state.exit_code, process.state.is_broken) == (0, False)


@ENCRYPTED
def test_results_that_no_key_reads_fail_whoever_asks_for_them(declared: Any) -> None:
    @declared("t.sum", takes_context=True, max_retries=0)
    def add(context: Any, payload: dict[str, Any]) -> Any:
        return [*payload, *(one.result for one in context.dependencies())]

    with keys(NEW_KEY):
        first = submit("t.sum", {"a": SECRET})
        run_due()
    second = submit("t.sum", {"b": 1}, depends_on=[first])
    drain(reraise=False)
    second.refresh_from_db()
    assert second.status == "dead"
    assert "EncryptionError" in second.error


def test_a_schedule_of_another_site_is_carried_as_it_is_stored(declared: Any) -> None:
    declared("t.charge", encrypt=True)(echo)
    create_schedule("charge", "t.charge", every=60, payload={"card": SECRET})
    registry.forget("t.charge")  # this site has no such handler
    with keys(NEW_KEY):  # and keys of its own
        disable("charge")
        assert is_nowhere()
        enable("charge")
        Schedule.objects.update(next_run_at=database_now() - timedelta(seconds=1))
        tick()
        assert Schedule.objects.get().enabled
        assert is_nowhere()
    assert Job.objects.get().payload == {"card": SECRET}


def test_a_callback_of_another_site_is_carried_as_it_is_stored(declared: Any) -> None:
    declared("t.charge", encrypt=True)(echo)
    declared("t.plain")(echo)
    with django_jobs.batch(on_finish=NewJob("t.charge", {"card": SECRET})) as batch:
        batch.submit("t.plain", {})
    registry.forget("t.charge")
    with keys(NEW_KEY):
        run_due()
        assert is_nowhere()
    assert Job.objects.get(job_type="t.charge").payload == {"card": SECRET}


def test_what_no_key_reads_tells_of_no_key_of_it() -> None:
    with pytest.raises(EncryptionError):
        Unreadable({"$encrypted": "…"}).get("args", [])


@ENCRYPTED
def test_a_schedule_that_no_key_reads_is_disabled_and_says_so() -> None:
    with keys(NEW_KEY):
        Schedule.objects.create(
            name="s", job_type="effects.record", payload={"a": 1}, kind="interval", interval_seconds=60
        )
    row = Schedule.objects.get(name="s")
    row.next_run_at -= timedelta(days=1)
    row.save()
    tick()
    row.refresh_from_db()
    assert (row.enabled, Job.objects.count()) == (False, 0)
    assert "no key of this site reads it" in row.last_error


@ENCRYPTED
def test_old_keys_read_and_one_command_renews_what_they_encrypted(declared: Any) -> None:
    declared("t.echo")(echo)
    with keys("an-old-key"):
        with django_jobs.batch("import", on_finish=NewJob("t.echo", {"word": SECRET})) as batch:
            batch.submit_many([NewJob("t.echo", {"word": SECRET})])
        run_due()
        emit("paid", payload={"by": SECRET})
        Schedule.objects.create(
            name="s", job_type="t.echo", payload={"word": SECRET}, kind="interval", interval_seconds=60
        )
        make_job("t.echo", {"word": SECRET}, status="completed", result=SECRET)
    with keys(NEW_KEY, "an-old-key"):
        assert run_due()[0].result == {"word": SECRET}  # the callback
        assert json_lines("encrypt") == [{"changed": 6, "unreadable": 0, "locked": 0}]
        assert json_lines("encrypt") == [{"changed": 0, "unreadable": 0, "locked": 0}]
    with keys(NEW_KEY):
        assert {one.payload["word"] for one in Job.objects.all()} == {SECRET}
        assert Event.objects.get(name="paid").payload == {"by": SECRET}
        assert Schedule.objects.get(name="s").payload == {"word": SECRET}
    with keys("none-of-these"):
        code, (problem,) = refused("encrypt")
        assert (code, problem) == (1, "6 rows cannot be read with the keys of this site")
    assert is_nowhere()


def test_the_command_encrypts_what_was_stored_before_the_type_said_so(declared: Any) -> None:
    declared("t.echo")(echo)
    with django_jobs.batch("import", on_finish=NewJob("t.echo", {"word": SECRET}, delay=3600)) as batch:
        batch.submit_many([NewJob("t.echo", {"word": SECRET}), NewJob("effects.record", {"n": 1})])
    drain()
    assert not is_nowhere()
    with override_settings(DJANGO_JOBS={"ENCRYPT": True}):
        assert encrypt_stored().changed == Job.objects.count() + Batch.objects.count()
        assert is_nowhere()
        assert {"word": SECRET} in [one.payload for one in Job.objects.all()]


def test_what_a_hand_has_written_in_the_place_of_a_token_is_told_and_holds_up_nobody(declared: Any) -> None:
    for read in (encryption.decrypted, encryption.renewed):
        for token in ("é", "", "x" * 100):
            with pytest.raises(EncryptionError):
                read(token)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite locks no rows
def test_rows_that_somebody_has_locked_are_left_and_told() -> None:
    one, _ = make_job("t.echo", {"word": SECRET}), make_job("t.echo", {"word": SECRET})
    with ENCRYPTED:
        with Locked(one.pk):
            assert refused("encrypt") == (1, ["1 rows were locked by somebody else; run this again"])
        assert json_lines("encrypt") == [{"changed": 1, "unreadable": 0, "locked": 0}]
    assert is_nowhere()


# --- what may not be


@pytest.mark.parametrize("value", [{"$encrypted": "x"}, {"$encrypted": 1, "more": 2}])
def test_nobody_passes_a_token_off_as_a_payload_or_a_result(declared: Any, value: Any) -> None:
    """Else who may submit, and see a result, would have any token decrypted that he got hold of."""
    declared("t.echo", max_retries=0)(lambda payload: value)
    with pytest.raises(InvalidJob, match="the key '\\$encrypted' is that of what is encrypted"):
        submit("t.echo", value)
    submit("t.echo")
    drain(reraise=False)
    assert DeadLetter.objects.get().reason == "bad result"
    assert submit("t.echo", {"inside": value}).payload == {"inside": value}


def test_what_is_stored_begins_with_its_mark(declared: Any) -> None:
    declared("t.echo", encrypt=True)(echo)
    submit("t.echo", {"word": SECRET})
    with connection.cursor() as cursor:
        cursor.execute("SELECT payload FROM django_jobs_job")
        (stored,) = cursor.fetchone()
    text = stored if isinstance(stored, str) else json.dumps(stored)
    assert text.startswith(MARK)
