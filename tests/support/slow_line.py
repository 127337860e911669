"""A line to a database server that takes its time: a proxy that passes each piece on after half a round trip."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit


@contextmanager
def slow_line(url: str, round_trip: float) -> Iterator[str]:
    """Give a URL of the same database by way of a line whose round trip takes so many seconds."""
    parts = urlsplit(url)
    loop = asyncio.new_event_loop()
    ends: list[asyncio.StreamWriter] = []
    server = loop.run_until_complete(_listen(parts.hostname or "127.0.0.1", parts.port or 0, round_trip / 2, ends))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="slow line", daemon=True)
    thread.start()
    account = f"{parts.username}@" if parts.username else ""
    try:
        yield urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{port}"))
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, ends), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _listen(host: str, port: int, delay: float, ends: list[asyncio.StreamWriter]) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        ends.extend((writer, back))
        await asyncio.gather(_pass_on(reader, back, delay), _pass_on(there, writer, delay))

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
    """Write what is read, each piece `delay` seconds after it came, until the end."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    now = asyncio.get_running_loop().time

    async def write() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - now()))
            if not piece:
                return target.close()
            target.write(piece)

    writing = asyncio.ensure_future(write())
    piece = b"-"
    while piece:
        try:
            piece = await source.read(65_536)
        except OSError:
            piece = b""
        pieces.put_nowait((now() + delay, piece))
    await writing


async def _close(server: asyncio.Server, ends: list[asyncio.StreamWriter]) -> None:
    server.close()
    for end in ends:
        end.transport.abort()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)
