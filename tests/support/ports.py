"""Ports for servers of the tests."""

import random
import socket


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at, and that no outgoing connection is given.

    The system gives outgoing connections ports from 32768 on: one of these may be taken at any moment, also by a client that
    knocks at a server that is down and so meets itself.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
