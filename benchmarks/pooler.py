"""PgBouncer in transaction pooling, in front of a private server: PGBOUNCER names the program."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stores
from benchmarks.private import as_account

POOL = 20
PORT = 6544
NAME = "through a pooler"
CONFIGURATION = """[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = {host}
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 2000
log_connections = 0
log_disconnections = 0
"""


def program() -> str | None:
    """Return the pooler that is there, or None."""
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")


@contextlib.contextmanager
def pooler(host: str, port: int, *, own_port: int = PORT, pool: int = POOL, user: str = "postgres") -> Iterator[None]:
    """Run the pooler on `host` before the server at that address and port; do nothing when there is none."""
    found = program()
    if found is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="jobs-bench-pooler-") as directory:
        file = Path(directory, "pgbouncer.ini")
        file.write_text(CONFIGURATION.format(host=host, port=port, own_port=own_port, pool=pool, user=user))
        Path(directory).chmod(0o755)
        process = subprocess.Popen([found, "-q", str(file)], cwd=directory, **as_account("postgres"))
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def url(place: stores.Store) -> str:
    """Return the store's URL through the pooler."""
    before, _, after = place.url.rpartition(":")
    return f"{before}:{PORT}/{after.partition('/')[2]}"
