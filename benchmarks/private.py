"""A PostgreSQL server of the benchmark's own: durable as Debian ships it, counts its statements, listens where it is told."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import stores

ACCOUNT = "postgres"
SETTINGS = {
    "unix_socket_directories": "",
    "max_connections": 500,
    "shared_buffers": "256MB",
    "shared_preload_libraries": "pg_stat_statements",
}


class NoServer(RuntimeError):
    """The server's programs are not there, or it does not come up."""


class Server:
    """A server's data and its process: it may be killed and started again, and is removed with all its data at the end.

    Args:
        clients: addresses that it lets in without a password.
        inside: what its command begins with, to run in another network.
    """

    def __init__(self, address: str, clients: str, port: int, inside: Sequence[str] = (), **settings: object) -> None:
        self.url = f"postgresql://{ACCOUNT}@{address}:{port}/jobs_bench"
        self._inside = list(inside)
        self._settings = {"port": port, "listen_addresses": address} | SETTINGS | settings
        self._directory = Path(tempfile.mkdtemp(prefix="jobs-bench-server-"))
        self._process: subprocess.Popen[bytes] | None = None
        _make_data(self._directory, clients)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and return once it answers."""
        self._process = _start(self._directory, self._settings, self._inside)
        _wait(self._process, self._directory, stores.Store("postgresql", self.url))

    def kill(self) -> None:
        """End it as a power cut does."""
        os.killpg(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(60)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def postgresql(
    address: str = "127.0.0.1", clients: str = "127.0.0.1/32", **settings: object
) -> Iterator[tuple[int, int]]:
    """Run a server and make it the store of every measurement of the block; yield its process and its port."""
    before, port = os.environ.get("BENCH_POSTGRESQL"), _free_port(address)
    server = Server(address, clients, port, **settings)
    try:
        os.environ["BENCH_POSTGRESQL"] = server.url
        server.start()
        yield server.pid, port
    finally:
        os.environ.pop("BENCH_POSTGRESQL", None)
        if before is not None:
            os.environ["BENCH_POSTGRESQL"] = before
        server.close()


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Measure on a server that counts statements: the one that is there when it does, otherwise one of our own."""
    if stores.counts_statements():
        yield
        return
    with postgresql():
        yield


def _make_data(directory: Path, clients: str) -> None:
    directory.chmod(0o755)
    data = directory / "data"
    data.mkdir(mode=0o700)
    if os.getuid() == 0:
        shutil.chown(data, ACCOUNT)
    how = ("-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
    command = [_program("initdb"), "-D", str(data), *how]
    subprocess.run(command, check=True, capture_output=True, cwd=data, stdin=subprocess.DEVNULL, **as_account(ACCOUNT))
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {clients} trust\n")


def _start(directory: Path, settings: dict[str, object], inside: list[str]) -> "subprocess.Popen[bytes]":
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [_program("postgres"), "-D", str(directory / "data"), *flags]
    account = as_account(ACCOUNT)
    if inside:  # another network is entered with rights that the server must not have
        command, account = [*inside, "setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups", *command], {}
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=directory / "data",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **account,
        )


def as_account(name: str) -> dict[str, Any]:
    """Return what makes a subprocess run under this account, when we may."""
    return {"user": name, "group": name, "extra_groups": []} if os.getuid() == 0 else {}


def _wait(process: "subprocess.Popen[bytes]", directory: Path, place: stores.Store) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            with stores.postgresql(place.admin_url()):
                return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"{error}\n{(directory / 'log').read_text()[-3000:]}") from error
        time.sleep(0.1)


def _program(name: str) -> str:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, versions), os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise NoServer(f"{name} is not installed: Debian's package is postgresql")
    return found


def _free_port(address: str) -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])
