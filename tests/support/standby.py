"""A standby of a private PostgreSQL server, which takes its place when it is promoted."""

import psycopg
from django.db import connections

from .databases import connect_once
from .servers import PrivatePostgres, program
from .waiting import wait_until


class Standby(PrivatePostgres):
    """A copy of a server that follows it by streaming, and answers questions meanwhile."""

    def __init__(self, primary: PrivatePostgres) -> None:
        super().__init__()
        self._primary = primary

    def initialise(self) -> None:
        """Copy the primary's data directory."""
        where = f"host=127.0.0.1 port={self._primary.port} user=postgres application_name=standby"
        self._run(program("pg_basebackup"), "-D", str(self.data), "-d", where, "-R", "-X", "stream", "-c", "fast", "-N")

    def wait_streaming(self, *, synchronous: bool) -> None:
        """Return when the primary sends it what it writes, and waits for it at each commit if it is to be `synchronous`."""
        with connections["default"].cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{'standby' if synchronous else ''}'")
            cursor.execute("SELECT pg_reload_conf()")
            wanted = "sync" if synchronous else "async"

            def streams() -> bool:
                cursor.execute("SELECT state, sync_state FROM pg_stat_replication")
                return cursor.fetchall() == [("streaming", wanted)]

            wait_until(streams, 60, f"an {wanted} standby")

    def stop_receiving(self) -> int:
        """Cut it off from its primary; return how far it has come, in bytes of the primary's log."""
        with psycopg.connect(self.url, dbname="postgres", autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            receivers = "SELECT 1 FROM pg_stat_wal_receiver"
            wait_until(lambda: connection.execute(receivers).fetchone() is None, 60, "a standby that receives nothing")
            position = connection.execute("SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint").fetchone()
        assert position is not None
        return int(position[0])

    def promote(self) -> None:
        """Make it a primary, and return when it is one."""
        self._run(program("pg_ctl"), "-D", str(self.data), "-w", "promote")
        connect_once(self.url)


def both(primary: PrivatePostgres, standby: Standby) -> str:
    """Return the URL under which a client finds whichever of them takes writes."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    return f"postgresql://postgres@{hosts}/?target_session_attrs=read-write&connect_timeout=2"
