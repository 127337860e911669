"""A name server of one name, which takes its time for each answer; it wants port 53 of an address, and so root."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = 1  # the type of a question for an IPv4 address


class NameServer:
    """Answers that every name is at one address, `delay` seconds after it was asked."""

    def __init__(self, address: str) -> None:
        self.delay = 0.0
        self.asked = 0
        self._address = socket.inet_aton(address)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, name="name server", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                question, client = self._socket.recvfrom(4096)
            except OSError:  # closed
                return
            self.asked += 1
            threading.Timer(self.delay, self._answer, (question, client)).start()

    def _answer(self, question: bytes, client: tuple[str, int]) -> None:
        name_end = question.index(b"\0", 12) + 1
        kind = int.from_bytes(question[name_end : name_end + 2], "big")
        known = kind == ADDRESS
        header = question[:2] + b"\x84\x00" + b"\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + self._address if known else b""  # not to be kept
        try:
            self._socket.sendto(header + question[12 : name_end + 4] + answer, client)
        except OSError:  # closed meanwhile
            time.sleep(0)

    def close(self) -> None:
        """Answer nobody any more."""
        self._socket.close()


@contextmanager
def name_server(host: str, address: str) -> Iterator[NameServer]:
    """Let a host (a network namespace) ask a name server at an address of this machine, which is its answer, too."""
    directory = Path("/etc/netns") / host
    directory.mkdir(parents=True)
    (directory / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:30 attempts:1\n")
    server = NameServer(address)
    try:
        yield server
    finally:
        server.close()
        (directory / "resolv.conf").unlink()
        directory.rmdir()
