"""What operators do: each operation, its right, its log entry, its confirmation; and what is refused."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone, translation
from django.utils.html import escape

from django_jobs.models import DeadLetter, Event, Job, JobStep
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import browse, operator, staff
from tests.support.workflows import add_step

pytestmark = pytest.mark.django_db

JOBS = "/admin/django_jobs/job/"
DEAD_LETTERS = "/admin/django_jobs/deadletter/"


def do(client: Any, url: str, action: str, *rows: Any, **fields: Any) -> Any:
    """Post an action on rows as the list does."""
    data = {"action": action, "index": "0", "_selected_action": [row.pk for row in rows], **fields}
    return client.post(url, data, follow=True)


# operation, the right it takes, how a row is made on which it does something, and what it has done then
def _dead_letter() -> Any:
    return DeadLetterFactory()


def _job_in(status: str) -> Any:
    return lambda: JobFactory(status=status)


MATRIX = {
    "replay_selected of dead letters": (
        DEAD_LETTERS, "replay_selected", "replay_deadletter", _dead_letter, lambda row: row.replayed_at is not None),
    "acknowledge_selected": (
        DEAD_LETTERS, "acknowledge_selected", "acknowledge_deadletter", _dead_letter, lambda row: row.acknowledged_at),
    "replay_selected of jobs": (
        JOBS, "replay_selected", "replay_deadletter", _job_in("dead"), lambda row: row.status == "pending"),
    "run_selected_now": (
        JOBS, "run_selected_now", "replay_deadletter", _job_in("scheduled"), lambda row: row.status == "pending"),
    "cancel_selected": (
        JOBS, "cancel_selected", "cancel_job", _job_in("pending"), lambda row: row.status == "cancelled"),
    "change_selected": (
        JOBS, "change_selected", "change_job", _job_in("pending"), lambda row: row.priority == 9),
    "discard_selected": (
        JOBS, "discard_selected", "discard_job", _job_in("scheduled"), lambda row: row.pk is None),
    "delete_selected": (
        JOBS, "delete_selected", "delete_job", _job_in("completed"), lambda row: row.pk is None),
}  # fmt: skip
RIGHTS = [
    "replay_deadletter", "acknowledge_deadletter", "cancel_job", "change_job", "discard_job", "delete_job", "pause_queue",
    "view_payload",
]  # fmt: skip


def again(row: Any) -> Any:
    """Return a row as it is now; one that is gone has no key."""
    found = type(row).objects.filter(pk=row.pk).first()
    return found or type(row)(pk=None)


@pytest.mark.parametrize("right", [*RIGHTS, None])
@pytest.mark.parametrize("name", MATRIX)
def test_an_operation_takes_its_own_right_and_no_other(name: str, right: str | None) -> None:
    url, action, needed, make, is_done = MATRIX[name]
    row = make()
    user = staff(*([right] if right else []))
    do(browse(user), url, action, row, confirmed="1", priority="9")
    assert bool(is_done(again(row))) is (right == needed)
    assert LogEntry.objects.filter(user=user, object_id=str(row.pk)).count() == (right == needed)


@pytest.mark.parametrize("name", MATRIX)
def test_an_operation_is_refused_by_get_and_without_a_csrf_token(name: str) -> None:
    url, action, _, make, is_done = MATRIX[name]
    row = make()
    data = {"action": action, "index": "0", "_selected_action": [row.pk], "confirmed": "1", "priority": "9"}
    strict = operator(enforce_csrf_checks=True)
    assert strict.post(url, data).status_code == 403
    strict.get(url, data)
    assert not is_done(again(row))
    assert not LogEntry.objects.exists()


def test_who_may_only_look_sees_no_button() -> None:
    client = browse(staff())
    dead_letter = DeadLetterFactory()
    running = JobFactory(status="running")
    pages = [
        JOBS,
        DEAD_LETTERS,
        f"{DEAD_LETTERS}causes/",
        f"{DEAD_LETTERS}{dead_letter.pk}/change/",
        f"{JOBS}{running.pk}/change/",
    ]
    for page in pages:
        text = client.get(page).text
        assert 'name="action"' not in text, page
        assert "replay-edited" not in text, page


def test_a_user_without_the_view_right_gets_no_page() -> None:
    user = staff()
    user.user_permissions.clear()
    dead_letter = DeadLetterFactory()
    client = browse(user)
    for page in (
        JOBS,
        DEAD_LETTERS,
        f"{DEAD_LETTERS}causes/",
        f"{DEAD_LETTERS}{dead_letter.pk}/change/",
        f"{JOBS}{dead_letter.job_id}/change/",
    ):
        assert client.get(page).status_code == 403, page


def test_replayed_dead_letters_are_closed_and_their_jobs_run_again() -> None:
    dead_letters = DeadLetterFactory.create_batch(3)
    answer = do(operator(), DEAD_LETTERS, "replay_selected", *dead_letters, confirmed="1")
    assert "Replayed 3 dead letters." in answer.text
    assert set(Job.objects.values_list("status", flat=True)) == {"pending"}
    assert DeadLetter.objects.replayed().count() == 3
    assert {entry.get_change_message() for entry in LogEntry.objects.all()} == {"Replayed 3 dead letters."}


def test_an_acknowledgement_keeps_its_note_in_the_dead_letter_and_in_the_log() -> None:
    dead_letter = DeadLetterFactory()
    do(operator(), DEAD_LETTERS, "acknowledge_selected", dead_letter, note="the bank was closed", confirmed="1")
    dead_letter.refresh_from_db()
    assert dead_letter.note == "the bank was closed"
    assert dead_letter.acknowledged_by.username == "operator"
    assert "the bank was closed" in LogEntry.objects.get().get_change_message()


def test_rows_in_other_states_are_left_and_counted() -> None:
    open_one, closed = DeadLetterFactory.create_batch(2)
    DeadLetter.objects.filter(pk=closed.pk).update(acknowledged_at=timezone.now(), note="before")
    answer = do(operator(), DEAD_LETTERS, "acknowledge_selected", open_one, closed, note="after", confirmed="1")
    assert "Acknowledged 1 dead letter." in answer.text
    assert "1 was left as it is" in answer.text
    closed.refresh_from_db()
    assert closed.note == "before"
    assert LogEntry.objects.get().object_id == str(open_one.pk), "what was left has no entry"


@pytest.mark.slow
def test_a_bulk_action_over_mixed_statuses_does_what_each_allows() -> None:
    jobs = {status: JobFactory(status=status) for status in ("pending", "scheduled", "running", "completed", "dead")}
    answer = do(operator(), JOBS, "cancel_selected", *jobs.values(), confirmed="1")
    assert "Cancelled 3 jobs" in answer.text
    assert "2 were left as they are" in answer.text
    for job in jobs.values():
        job.refresh_from_db()
    assert {name: job.status for name, job in jobs.items()} == {
        "pending": "cancelled", "scheduled": "cancelled", "running": "running",
        "completed": "completed", "dead": "dead",
    }  # fmt: skip
    assert jobs["running"].cancel_requested_at is not None


def test_cancel_asks_before_it_does_anything() -> None:
    job = JobFactory()
    answer = do(operator(), JOBS, "cancel_selected", job)
    assert "This is for <strong>1</strong> selected row" in answer.text
    job.refresh_from_db()
    assert job.status == "pending"


def test_a_selection_in_a_list_asks_and_the_button_of_a_page_does_not() -> None:
    client = operator()
    dead_letters = DeadLetterFactory.create_batch(15)
    asked = do(client, DEAD_LETTERS, "replay_selected", *dead_letters, per_second="2")
    assert "<strong>15</strong> selected rows" in asked.text
    assert 'value="2.0"' in asked.text or 'value="2"' in asked.text
    assert DeadLetter.objects.open().count() == 15
    do(client, DEAD_LETTERS, "replay_selected", dead_letters[0], back="page")
    assert DeadLetter.objects.open().count() == 14


def test_a_confirmation_has_two_buttons_that_nobody_can_take_for_each_other_in_german() -> None:
    with translation.override("de"):
        asked = do(operator(), JOBS, "cancel_selected", JobFactory())
    assert "Jobs abbrechen" in asked.text
    assert "Nein, nichts ändern" in asked.text
    assert "Nein, bitte abbrechen" not in asked.text


@pytest.mark.parametrize(
    ("url", "action", "make", "state"),
    [
        (f"{DEAD_LETTERS}?fingerprint=f", "replay_selected", lambda: DeadLetterFactory(fingerprint="f"), "replayed"),
        (f"{DEAD_LETTERS}?fingerprint=f", "acknowledge_selected", lambda: DeadLetterFactory(fingerprint="f"), "ackn"),
        (f"{JOBS}?status=dead&queue=mail", "replay_selected", lambda: JobFactory(status="dead", queue="mail"), ""),
    ],
)
def test_after_an_operation_a_link_leads_to_the_rows_that_the_filter_no_longer_shows(
    url: str, action: str, make: Any, state: str
) -> None:
    client, row = operator(), make()
    answer = do(client, url, action, row, confirmed="1")
    assert answer.context["cl"].result_count == 0
    (link,) = re.findall(r'<a href="([^"]+)">Show them</a>', answer.text)
    assert f"state={state}" in link or not state
    shown = client.get(link.replace("&amp;", "&")).context["cl"].result_list
    assert [one.pk for one in shown] == [row.pk]


def test_all_that_match_are_confirmed_with_their_count_and_then_done() -> None:
    client = operator()
    JobFactory.create_batch(60, status="dead", job_type="shop.a")
    other = JobFactory(status="dead", job_type="shop.b")
    url = f"{JOBS}?job_type=shop.a"
    answer = do(client, url, "replay_selected", Job.objects.first(), select_across="1")
    assert "all 60" in answer.text
    assert not Job.objects.filter(status="pending").exists()
    do(client, url, "replay_selected", Job.objects.first(), select_across="1", confirmed="1")
    assert Job.objects.filter(status="pending", job_type="shop.a").count() == 60
    other.refresh_from_db()
    assert other.status == "dead"


@pytest.mark.slow
def test_many_rows_leave_one_log_entry_with_count_and_filter() -> None:
    JobFactory.create_batch(201, status="dead")
    url = f"{JOBS}?status=dead"
    do(operator(), url, "replay_selected", Job.objects.first(), select_across="1", confirmed="1")
    entry = LogEntry.objects.get()
    assert entry.object_id is None
    assert "201 jobs" in entry.get_change_message()
    assert "status=dead" in entry.get_change_message()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "abc", "1e99"])
def test_a_rate_that_cannot_be_is_refused(rate: str) -> None:
    dead_letter = DeadLetterFactory()
    do(operator(), DEAD_LETTERS, "replay_selected", dead_letter, per_second=rate, confirmed="1")
    dead_letter.refresh_from_db()
    assert dead_letter.is_open


@pytest.mark.parametrize(
    "fields", [{}, {"priority": "0"}, {"priority": "11"}, {"priority": "x"}, {"queue": 'a;drop "'}, {"queue": "x" * 65}]
)
def test_a_change_that_cannot_be_is_refused(fields: dict[str, str]) -> None:
    job = JobFactory()
    answer = do(operator(), JOBS, "change_selected", job, confirmed="1", **fields)
    assert answer.status_code == 200
    job.refresh_from_db()
    assert (job.priority, job.queue) == (5, "default")


def test_waiting_jobs_get_another_priority_and_queue_and_running_ones_do_not() -> None:
    waiting, running = JobFactory(), JobFactory(status="running")
    do(operator(), JOBS, "change_selected", waiting, running, confirmed="1", priority="9", queue="slow")
    waiting.refresh_from_db()
    running.refresh_from_db()
    assert (waiting.priority, waiting.queue) == (9, "slow")
    assert (running.priority, running.queue) == (5, "default")


def test_a_button_on_a_jobs_page_leads_back_to_that_page() -> None:
    job = JobFactory(status="dead", id="order/7 & more")
    answer = do(operator(), JOBS, "replay_selected", job, back="page")
    assert answer.redirect_chain[-1][0] == f"{JOBS}order_2F7%20_26%20more/change/"
    assert answer.status_code == 200


def test_a_replay_with_an_edited_payload_keeps_what_is_masked() -> None:
    dead_letter = DeadLetterFactory(job__payload={"user": 7, "auth": {"password": "geheim"}, "list": [{"token": "x"}]})
    client = operator()
    page = client.get(f"{DEAD_LETTERS}{dead_letter.pk}/change/")
    assert "geheim" not in page.text
    typed = page.context["payload"].replace("7", "8")
    answer = client.post(f"{DEAD_LETTERS}{dead_letter.pk}/replay-edited/", {"payload": typed}, follow=True)
    assert "edited payload" in answer.text
    job = Job.objects.get()
    assert job.payload == {"user": 8, "auth": {"password": "geheim"}, "list": [{"token": "x"}]}
    assert job.status == "pending"


@pytest.mark.parametrize("typed", ["", "[]", "{", '"x"', '{"a": NaN}', '{"a": "\\u0000"}', "[" * 100_000])
def test_an_edited_payload_that_cannot_be_is_refused_and_shown_again(typed: str) -> None:
    dead_letter = DeadLetterFactory()
    answer = operator().post(f"{DEAD_LETTERS}{dead_letter.pk}/replay-edited/", {"payload": typed})
    assert "The payload was refused" in answer.text
    area = answer.text.split("<textarea")[1].split("</textarea>")[0]
    assert area.endswith(f">{escape(typed)}"), "what was typed is there to be corrected"
    stored = answer.text.split("jobs-stored")[1].split("</pre>")[0]
    assert stored.endswith(">{}"), "and is not shown as what is stored"
    dead_letter.refresh_from_db()
    assert dead_letter.is_open


@pytest.mark.parametrize("missing", ["view_payload", "replay_deadletter"])
def test_a_replay_with_an_edited_payload_takes_both_rights(missing: str) -> None:
    dead_letter = DeadLetterFactory()
    user = staff(*({"view_payload", "replay_deadletter"} - {missing}))
    answer = browse(user).post(f"{DEAD_LETTERS}{dead_letter.pk}/replay-edited/", {"payload": "{}"})
    assert answer.status_code == 403
    dead_letter.refresh_from_db()
    assert dead_letter.is_open


@pytest.mark.parametrize("from_start", [False, True])
def test_a_replay_keeps_the_records_of_steps_or_begins_from_the_start(from_start: bool) -> None:
    dead_letter = DeadLetterFactory(job__status="dead")
    add_step(dead_letter.job, "charge")
    client = operator()
    for page in (f"{JOBS}{dead_letter.job_id}/change/", f"{DEAD_LETTERS}{dead_letter.pk}/change/"):
        assert 'name="from_start" value="on"' in client.get(page).text
    options = {"from_start": "on"} if from_start else {}
    do(client, JOBS, "replay_selected", dead_letter.job, confirmed="1", **options)
    assert JobStep.objects.count() == (not from_start)
    assert Job.objects.get().status == "pending"


def test_the_event_that_a_job_waits_for_is_sent_by_those_who_may() -> None:
    job = JobFactory(status="scheduled")
    add_step(job, "order.approved", kind="event", ended_at=None, event_name="order.approved", event_key="order:7")
    page = f"{JOBS}{job.pk}/change/"
    seeing = browse(staff())
    assert "send_event_selected" not in seeing.get(page).text
    do(seeing, JOBS, "send_event_selected", job, confirmed="1")
    assert not Event.objects.exists()
    client = browse(staff("send_event", name="sender"))
    assert "send_event_selected" in client.get(page).text
    assert "order:7" in client.get(page).text
    answer = do(client, JOBS, "send_event_selected", job, confirmed="1", payload='{"by": "ada"}')
    assert "Sent what 1 job waited for." in answer.text
    job.refresh_from_db()
    assert job.status == "pending"
    assert JobStep.objects.get().result == {"by": "ada"}
    assert LogEntry.objects.get().object_id == job.pk
    assert "send_event_selected" not in client.get(page).text
    again = do(client, JOBS, "send_event_selected", job, confirmed="1")
    assert "left as it is" in again.text
    assert Event.objects.count() == 1


@pytest.mark.parametrize("payload", ["[1]", "{", '"x"'])
def test_an_event_whose_payload_is_no_object_is_refused(payload: str) -> None:
    job = JobFactory(status="scheduled")
    add_step(job, "go", kind="event", ended_at=None, event_name="go")
    do(operator(), JOBS, "send_event_selected", job, confirmed="1", payload=payload)
    assert not Event.objects.exists()


def test_a_job_that_waits_for_an_event_is_not_run_before_it_comes() -> None:
    job = JobFactory(status="scheduled")
    add_step(job, "go", kind="event", ended_at=None, event_name="go")
    buttons = operator().get(f"{JOBS}{job.pk}/change/").context["buttons"]
    assert [button.action for button in buttons][:2] == ["send_event_selected", "change_selected"]


def test_a_job_that_only_an_event_wakes_shows_no_date_in_a_hundred_years() -> None:
    job = JobFactory(status="scheduled", available_at=timezone.now() + timedelta(days=36_525))
    client = operator()
    for page in (JOBS, f"{JOBS}{job.pk}/change/"):
        text = client.get(page).text
        assert "waits for an event" in text
        assert str(job.available_at.year) not in text
