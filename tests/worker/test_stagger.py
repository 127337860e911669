"""Of many processes that hear of a job, who found work last looks at once and the others one after the other."""

import time

import pytest

from django_jobs.worker import poller
from django_jobs.worker.poller import Poller, Pollers
from django_jobs.worker.stagger import COUNT_SECONDS, FEW, ProcessCount, Stagger, longest_delay, seconds_of_a_round
from django_jobs.worker.watch import CommitWatch
from tests.support.waiting import wait_until


def test_few_processes_never_wait_and_many_wait_the_longer_the_more_often_they_came_too_late() -> None:
    assert [longest_delay(FEW, lost) for lost in (0, 1, 50)] == [0.0] * 3
    assert longest_delay(64, 0) == 0.0
    delays = [longest_delay(64, lost) for lost in range(1, 30)]
    assert delays == sorted(delays)
    assert delays[0] < 0.02
    assert delays[-1] == seconds_of_a_round(64) < 1


def test_what_was_put_off_is_looked_at_once_when_the_first_of_it_is_due() -> None:
    looked: list[str] = []
    stagger = Stagger(looked.append)
    assert stagger.seconds_left(1.0) == 1.0
    stagger.put_off("a", 3_600.0)
    stagger.look_if_due()
    assert looked == []
    for queue in ("b", "b"):
        stagger.put_off(queue, 0.01)
    assert stagger.seconds_left(1.0) <= 0.01
    wait_until(lambda: stagger.seconds_left(1.0) == 0, 20, "the moment to look")
    stagger.look_if_due()
    assert sorted(looked) == ["a", "b"]
    assert stagger.seconds_left(1.0) == 1.0, "and nothing is left to look at"


def test_wakes_count_as_in_vain_until_work_is_found() -> None:
    pollers = Pollers()
    assert pollers.wakes_in_vain == 0
    one, other = pollers.of("one"), pollers.of("other")
    for _ in range(3):
        pollers.wake("mail", is_told=True)
        one.expect_work(is_notified=True)
        other.expect_work(is_notified=True)
    other.found_work()
    assert (one.wakes_in_vain, other.wakes_in_vain, pollers.wakes_in_vain) == (3, 0, 0)


def test_wakes_by_this_process_itself_and_for_queues_of_others_are_not_in_vain() -> None:
    pollers = Pollers()
    mail = pollers.of("mail")
    mail.names = ["mail"]
    for wake in (
        lambda: pollers.wake("mail"),
        mail.hand_work,
        pollers.wake,
        lambda: pollers.wake("reports", is_told=True),
    ):
        wake()
        mail.expect_work(is_notified=True)
    assert mail.wakes_in_vain == 0
    for _ in range(2):  # before it has looked: one look
        pollers.wake("mail", is_told=True)
    mail.expect_work(is_notified=True)
    assert mail.wakes_in_vain == 1


def test_processes_are_counted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, now, found = ProcessCount(), [1000.0], [0, 7, 9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    numbers = []
    for seconds in (0.0, COUNT_SECONDS, 1.0, COUNT_SECONDS + 1.0):
        now[0] += seconds
        processes.refresh(lambda: found.pop(0))
        numbers.append(processes.number)
    assert numbers == [1, 1, 7, 9]


def test_who_was_told_looks_again_once_submitters_tell_again_however_often_it_was_in_vain() -> None:
    told = Poller()
    told.expect_work(is_notified=True)
    first = told.next_rest(5.0, poller.NOTIFIED_GROWTH)
    assert poller.QUIET_SECONDS < first < 2 * poller.QUIET_SECONDS
    assert told.next_rest(5.0, poller.NOTIFIED_GROWTH) == first * poller.NOTIFIED_GROWTH
    for _ in range(10):
        told.expect_work(is_notified=True)
    assert told.next_rest(5.0, poller.NOTIFIED_GROWTH) == first
    told.found_work()
    assert told.next_rest(5.0, poller.NOTIFIED_GROWTH) == poller.FIRST_REST
    polling = Poller()
    polling.expect_work(is_notified=False)
    assert polling.next_rest(5.0, poller.GROWTH) == poller.FIRST_REST


@pytest.mark.parametrize(
    ("processes", "at_least"), [(1, 0.0), (64, seconds_of_a_round(64)), (9_999, poller.NOTIFIED_POLL_SECONDS)]
)
def test_one_of_many_processes_that_were_told_in_vain_rests_until_its_turn_to_look(
    processes: int, at_least: float
) -> None:
    pollers = Pollers()
    pollers.is_notified, pollers.processes = True, ProcessCount(processes)
    selector = poller.QueueSelector(None, object(), pollers)  # type: ignore[arg-type]  only asked for its identity
    assert selector.rest(None, CommitWatch()) == poller.FIRST_REST, "nobody was told of anything"
    pollers.wake("mail", is_told=True)
    selector.expect_work()
    assert at_least <= selector.rest(None, CommitWatch()) < at_least + 0.1
    selector.poller.found_work()
    assert selector.rest(None, CommitWatch()) == poller.FIRST_REST, "what was not told comes soon after"
