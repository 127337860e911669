"""The log of one attempt while it is kept in memory: lines, of which the middle is cut when they get too many."""

from __future__ import annotations

import re
import threading
import time

from django_jobs.text import storable

MOST_BYTES = 65_536
_NOTE_BYTES = 64
_SHORT_LINE = 2_048  # bytes; one that is cut goes as a whole
_HEAD_BYTES = MOST_BYTES // 2
_TAIL_BYTES = MOST_BYTES - _HEAD_BYTES - _NOTE_BYTES
_NOTE = re.compile(rb"\n\[\.\.\. ([\d,]{1,30}) bytes were cut here \.\.\.\]\n")


class RunLog:
    """Lines of text for at most MOST_BYTES of UTF-8: the first and the last ones are kept. Any thread may add and read.

    Args:
        level: the least level (a number of `logging`) of the records that it keeps.
        number: the number of the attempt.
        goes_on: whether an earlier run may have left a log under the same number; it is given to `go_on_from`.
    """

    def __init__(self, level: int, number: int = 1, *, goes_on: bool = False) -> None:
        self.level = level
        self.number = number
        self.is_open = True
        self.needs_earlier = goes_on
        self.opened = time.monotonic()
        self.written = 0  # the version that is on record
        self.version = 0
        self._lock = threading.RLock()  # a signal's handler, which logs too, may interrupt `add`
        self._head = b""
        self._tail = bytearray()
        self._cut = 0

    @property
    def is_written(self) -> bool:
        """Whether all of it is on record."""
        return self.version == self.written

    def add(self, line: str) -> None:
        """Add a line; nothing once the log is closed."""
        data = storable(line).encode() + b"\n"
        with self._lock:
            if self.is_open:
                self.version += 1
                self._append(data)

    def go_on_from(self, earlier: str) -> None:
        """Put the text that an earlier run left in front of what has been added so far."""
        with self._lock:
            own_head, own_tail, own_cut = self._head, self._tail, self._cut
            data = earlier.encode()
            note = _NOTE.search(data)
            self._head, self._tail, self._cut = data[:_HEAD_BYTES], bytearray(data[_HEAD_BYTES:]), own_cut
            if note:
                self._head, self._tail = data[: note.start() + 1], bytearray(data[note.end() :])
                self._cut += int(note[1].replace(b",", b""))
            self._append(own_head)
            self._append(bytes(own_tail))
            self.needs_earlier = False

    def _append(self, data: bytes) -> None:
        if not self._tail and not self._cut:
            room = _HEAD_BYTES - len(self._head)
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * _TAIL_BYTES:  # not at each line, which would move the rest each time
            self._cut_tail()

    def _cut_tail(self) -> None:
        surplus = len(self._tail) - _TAIL_BYTES
        if surplus > 0:
            self._cut += surplus
            del self._tail[:surplus]

    def text(self) -> str:
        """Return what is kept, whole lines where there are any; the middle says how many bytes were cut from it."""
        with self._lock:
            self._cut_tail()
            if not self._cut:
                return (self._head + self._tail).decode(errors="ignore")
            head, tail = self._head, bytes(self._tail)
            if len(head) - (end := head.rfind(b"\n") + 1) < _SHORT_LINE:
                head = head[:end]
            if 0 < (begin := tail.find(b"\n") + 1) < _SHORT_LINE:
                tail = tail[begin:]
            cut = self._cut + len(self._head) - len(head) + len(self._tail) - len(tail)
            note = b"[... %s bytes were cut here ...]\n" % f"{cut:,}".encode()
            return (head.removesuffix(b"\n") + b"\n" + note + tail).decode(errors="ignore")
