"""A PostgreSQL server of the benchmark's own: durable as Debian ships it, counts its statements, listens where it is told."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
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


@contextlib.contextmanager
def postgresql(
    address: str = "127.0.0.1", clients: str = "127.0.0.1/32", **settings: object
) -> Iterator[tuple[int, int]]:
    """Run a server and make it the store of every measurement of the block; yield its process and its port.

    It lets `clients` in without a password, and is removed with all its data at the end.
    """
    directory = Path(tempfile.mkdtemp(prefix="jobs-bench-server-"))
    before, port = os.environ.get("BENCH_POSTGRESQL"), _free_port(address)
    process = None
    try:
        process = _start(directory, address, clients, {"port": port, "listen_addresses": address} | SETTINGS | settings)
        os.environ["BENCH_POSTGRESQL"] = f"postgresql://{ACCOUNT}@{address}:{port}/jobs_bench"
        _wait(process, directory)
        yield process.pid, port
    finally:
        os.environ.pop("BENCH_POSTGRESQL", None)
        if before is not None:
            os.environ["BENCH_POSTGRESQL"] = before
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Measure on a server that counts statements: the one that is there when it does, otherwise one of our own."""
    if stores.counts_statements():
        yield
        return
    with postgresql():
        yield


def _start(directory: Path, address: str, clients: str, settings: dict[str, object]) -> "subprocess.Popen[bytes]":
    directory.chmod(0o755)
    data = directory / "data"
    data.mkdir(mode=0o700)
    if os.getuid() == 0:
        shutil.chown(data, ACCOUNT)
    options: dict[str, Any] = {
        "cwd": data,
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
        **as_account(ACCOUNT),
    }
    how = ("-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
    subprocess.run([_program("initdb"), "-D", str(data), *how], check=True, capture_output=True, **options)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {clients} trust\n")
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (directory / "log").open("ab") as log:
        return subprocess.Popen([_program("postgres"), "-D", str(data), *flags], stdout=log, stderr=log, **options)


def as_account(name: str) -> dict[str, Any]:
    """Return what makes a subprocess run under this account, when we may."""
    return {"user": name, "group": name, "extra_groups": []} if os.getuid() == 0 else {}


def _wait(process: "subprocess.Popen[bytes]", directory: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            with stores.postgresql(stores.store("postgresql").admin_url()):
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
