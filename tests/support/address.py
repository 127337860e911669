"""An address that can be moved from one server to another, as a failover does with a name, a virtual IP or a proxy."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Address:
    """Passes connections to `127.0.0.1:port` on to the server that it was moved to last."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self._ends: set[asyncio.StreamWriter] = set()

    def move(self, target: int) -> None:
        """Lead new connections to another port, and end those that are open."""
        self.target = target
        asyncio.run_coroutine_threadsafe(self.end_all(), self.loop).result(10)

    async def end_all(self) -> None:
        """End all connections."""
        for end in list(self._ends):
            end.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, both ways, until one end closes it."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        self._ends -= {writer, back}

    @staticmethod
    async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(65_536):
                target.write(piece)
                await target.drain()
        target.close()


@contextmanager
def address(target: int) -> Iterator[Address]:
    """Give an address that leads to a port of this machine."""
    made = Address(target)
    server = made.loop.run_until_complete(asyncio.start_server(made.serve, "127.0.0.1", 0))
    made.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=made.loop.run_forever, name="address", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.close()
        made.move(0)
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(10)
        made.loop.close()
