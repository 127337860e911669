"""Private database servers that a fault test may stop, kill and start again: own data directory, own free port.

Their programs are the installed ones, or those in the directory JOBS_TEST_PROGRAMS.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from .databases import connect_once
from .ports import free_port
from .proc import children, is_alive


class PrivateServer:
    """A server that is a child process of this one; a context manager that starts it and removes all trace of it.

    It asks nobody on this machine, and on its networks, for a password.
    What a client saw committed survives `kill`: commits reach the operating system at once, though not the disk.
    """

    account: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, *, addresses: str = "127.0.0.1") -> None:
        self.addresses = addresses  # that it listens at; "*": all
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="private_server_"))
        self.directory.chmod(0o755)
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(self.data, self.account)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the server, without a database name."""
        raise AssertionError("a subclass says it")

    def initialise(self) -> None:
        """Write an empty data directory."""
        raise AssertionError("a subclass does it")

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        raise AssertionError("a subclass says it")

    def start(self, timeout: float = 60) -> None:
        """Start the server and return when it accepts connections."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, **self._as_account())
        deadline = time.monotonic() + timeout
        while True:
            try:
                return connect_once(self.url)
            except Exception as error:  # the driver's errors, of whichever driver
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(
                        f"the private server does not come up: {error}\n{self.log()[-5000:]}"
                    ) from error
            time.sleep(0.05)

    @property
    def pid(self) -> int | None:
        """The number of its first process; None while it is down."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Shut it down in order; connections are ended, open transactions rolled back."""
        if self._process:
            self._process.send_signal(self.stop_signal)
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the server and its processes, as if the machine's memory were lost."""
        if self._process:
            pids = [self._process.pid, *children(self._process.pid)]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None
            while any(is_alive(pid) for pid in pids):
                time.sleep(0.01)

    def restart(self) -> None:
        """Stop it in order and start it again."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return what the server has written."""
        return (self.directory / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        try:
            self.initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _as_account(self) -> dict[str, Any]:
        own = {"user": self.account, "group": self.account, "extra_groups": []} if os.getuid() == 0 else {}
        return {"cwd": self.data, "stdin": subprocess.DEVNULL, "start_new_session": True, **own}

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **self._as_account())
        if done.returncode:
            raise AssertionError(f"{command[0]} failed\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


class PrivatePostgres(PrivateServer):
    """A private PostgreSQL server."""

    account = "postgres"
    stop_signal = signal.SIGINT

    @property
    def url(self) -> str:
        """The URL of the server, without a database name."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/"

    def initialise(self) -> None:
        """Write an empty data directory."""
        authentication = ("-U", "postgres", "-A", "trust")
        self._run(
            program("initdb"), "-D", str(self.data), *authentication, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet trust\n")

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of a killed one, whose number may be another's by now
        settings = {
            "port": self.port, "listen_addresses": self.addresses, "unix_socket_directories": "", "max_connections": 200,
            "shared_buffers": "64MB", "fsync": "off", "full_page_writes": "off", "synchronous_commit": "on",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [program("postgres"), "-D", str(self.data), *options]


class PrivateMariaDB(PrivateServer):
    """A private MariaDB server."""

    account = "mysql"
    stop_signal = signal.SIGTERM
    program: ClassVar[str] = "mariadbd"

    @property
    def url(self) -> str:
        """The URL of the server, without a database name."""
        return f"mysql://root@127.0.0.1:{self.port}/"

    @property
    def temporary(self) -> Path:
        """The directory of its temporary tables."""
        return self.directory / "tmp"

    def initialise(self) -> None:
        """Write an empty data directory."""
        # Of its own: a server that starts removes the temporary tables of every other one with the same tmpdir.
        self.temporary.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(self.temporary, self.account)
        self.install()

    def install(self) -> None:
        """Make the server's own tables, and an account root without a password."""
        options = ("--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db")
        self._run(program("mariadb-install-db"), *options, f"--datadir={self.data}", f"--tmpdir={self.temporary}")

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        return [
            program(self.program), "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
            f"--tmpdir={self.temporary}", f"--bind-address={self.addresses}", f"--socket={self.data}/socket",
            f"--pid-file={self.data}/pid", "--character-set-server=utf8mb4", "--skip-log-bin", "--max-connections=300",
            "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2",
        ]  # fmt: skip


class PrivateMySQL(PrivateMariaDB):
    """A private MySQL server."""

    program = "mysqld"

    def install(self) -> None:
        """Make the server's own tables, and an account root without a password."""
        options = ("--no-defaults", "--initialize-insecure", f"--tmpdir={self.temporary}")
        self._run(program(self.program), *options, f"--datadir={self.data}")


_PROGRAMS = os.environ.get("JOBS_TEST_PROGRAMS", "")


def program(name: str) -> str:
    """Return the path of a program of the installed servers, of the newest PostgreSQL among several."""
    versions = Path("/usr/lib/postgresql").glob("*/bin") if Path("/usr/lib/postgresql").exists() else ()
    newest_first = sorted(versions, key=lambda path: [int(n) for n in path.parent.name.split(".")], reverse=True)
    places = [_PROGRAMS, *map(str, newest_first), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/libexec"]
    search = os.pathsep.join(place for place in places if place)
    if (found := shutil.which(name, path=search)) is None:
        raise AssertionError(f"{name} is not installed; private servers need Debian's postgresql and mariadb-server")
    return found


MariaDBOrMySQL = PrivateMySQL if (Path(_PROGRAMS) / "mysqld").is_file() else PrivateMariaDB
PRIVATE_SERVERS: dict[str, type[PrivateServer]] = {"postgresql": PrivatePostgres, "mariadb": MariaDBOrMySQL}
