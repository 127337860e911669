"""The log of a run in memory: the first and the last lines are kept, and what was cut between them is counted."""

import threading
from itertools import pairwise

import pytest

from django_jobs.run_log import MOST_BYTES, RunLog

LINE = "a line of the log with an ä and a number: "


def filled(first: int, end: int, log: RunLog | None = None) -> RunLog:
    log = log or RunLog(20)
    for number in range(first, end):
        log.add(f"{LINE}{number}")
    return log


def told(text: str) -> list[int]:
    """Return the numbers of the lines, all of which are whole."""
    lines = [line for line in text.splitlines() if not line.startswith("[... ")]
    assert all(line.startswith(LINE) for line in lines)
    return [int(line.removeprefix(LINE)) for line in lines]


def test_a_short_log_is_kept_as_it_is() -> None:
    log = filled(0, 3)
    assert log.text() == "".join(f"{LINE}{number}\n" for number in range(3))


@pytest.mark.parametrize("number", [1_400, 1_500, 5_000, 50_000])
def test_of_a_long_log_the_middle_is_cut_and_counted(number: int) -> None:
    text = filled(0, number).text()
    assert len(text.encode()) <= MOST_BYTES
    kept = told(text)
    assert kept[0] == 0
    assert kept[-1] == number - 1
    if len(kept) < number:
        assert text.count("bytes were cut here") == 1
        cut = int(text.partition("[... ")[2].partition(" bytes")[0].replace(",", ""))
        whole = sum(len(f"{LINE}{one}\n".encode()) for one in range(number))
        assert cut == whole - sum(len(f"{LINE}{one}\n".encode()) for one in kept)
        gap = [after - before for before, after in pairwise(kept) if after - before > 1]
        assert len(gap) == 1


@pytest.mark.parametrize(
    ("earlier", "now"), [(3, 6), (900, 1_200), (1_400, 1_410), (5_000, 5_010), (3, 9_000), (5_000, 9_000)]
)
def test_a_later_run_goes_on_behind_what_is_on_record(earlier: int, now: int) -> None:
    log = filled(earlier, now)
    log.go_on_from(filled(0, earlier).text())
    text, whole = log.text(), filled(0, now).text()
    assert len(text.encode()) <= MOST_BYTES
    assert (told(text)[0], told(text)[-1]) == (0, now - 1)
    assert text.count("bytes were cut here") == whole.count("bytes were cut here")
    kept = told(text)
    assert sum(after - before > 1 for before, after in pairwise(kept)) <= 1


def test_what_no_database_takes_and_a_line_without_end_are_kept_in_part() -> None:
    log = RunLog(20)
    log.add("a\0b\ud800c")
    log.add("€" * 1_000_000)
    text = log.text()
    assert text.startswith("ab\ufffdc\n€€")
    assert len(text.encode()) <= MOST_BYTES
    assert "bytes were cut here" in text


def test_a_closed_log_keeps_no_more_lines() -> None:
    log = filled(0, 2)
    log.is_open = False
    filled(2, 4, log)
    assert told(log.text()) == [0, 1]


def test_threads_add_whole_lines() -> None:
    log = RunLog(20)
    threads = [threading.Thread(target=filled, args=(0, 300, log)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told(log.text())) == sorted(4 * list(range(300)))
