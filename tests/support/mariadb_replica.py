"""A replica of a private MariaDB server, by GTID, which takes its place when it is promoted."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .servers import PrivateMariaDB
from .waiting import wait_until

_ids = itertools.count(1)
_FOR_EVER = 86_400_000  # milliseconds that a commit waits for the replica


class ReplicatedMariaDB(PrivateMariaDB):
    """A private server that keeps a binary log; each commit is synced to it."""

    def __init__(self, *, semi_synchronous: bool) -> None:
        super().__init__()
        self._semi = int(semi_synchronous)
        self._id = next(_ids)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        given = [part for part in super().command() if part != "--skip-log-bin"]
        return [
            *given, f"--server-id={self._id}", "--log-bin", "--log-slave-updates", "--binlog-format=ROW",
            "--gtid-strict-mode=1", f"--rpl-semi-sync-master-enabled={self._semi}",
            f"--rpl-semi-sync-slave-enabled={self._semi}", f"--rpl-semi-sync-master-timeout={_FOR_EVER}",
            "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
        ]  # fmt: skip

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Give an administrator's cursor, whose rows are dicts."""
        import MySQLdb  # the extra `mysql`, which the tests of other databases do without
        from MySQLdb.cursors import DictCursor

        with MySQLdb.connect(host="127.0.0.1", port=self.port, user="root", autocommit=True) as connection:
            yield connection.cursor(DictCursor)

    def follow(self, primary: "ReplicatedMariaDB") -> None:
        """Apply what another server writes, from its beginning; return when it is connected."""
        with self.cursor() as cursor:
            cursor.execute("SET GLOBAL read_only = 1")
            # Nobody follows this one: what it applies would wait for an answer for ever, and the first thing at that.
            cursor.execute("SET GLOBAL rpl_semi_sync_master_enabled = 0")
            cursor.execute(
                "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_USER='root', MASTER_PORT=%s,"
                " MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1",
                (primary.port,),
            )
            cursor.execute("START SLAVE")
            wait_until(lambda: self._status(cursor)["Slave_IO_Running"] == "Yes", 30, "a replica that is connected")
        if self._semi:
            with primary.cursor() as cursor:
                clients = "SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'"
                wait_until(
                    lambda: cursor.execute(clients) and cursor.fetchone()["Value"] == "1", 30, "semi-synchronous"
                )

    def stop_receiving(self) -> int:
        """Cut it off from its primary; return the number of the last transaction that it has received."""
        with self.cursor() as cursor:
            cursor.execute("STOP SLAVE IO_THREAD")
            return sequence(self._status(cursor)["Gtid_IO_Pos"])

    def promote(self) -> None:
        """Apply all that it has received, and take writes."""
        with self.cursor() as cursor:
            cursor.execute("STOP SLAVE IO_THREAD")
            # The number of the last whole transaction that it has received; of one of which it has a part, nothing is applied.
            # And not what its SQL thread says it does: that says that it has read all until it has woken up for the last ones.
            received = self._status(cursor)["Gtid_IO_Pos"]
            cursor.execute("SELECT MASTER_GTID_WAIT(%s, 30) AS timed_out", (received,))
            assert cursor.fetchone()["timed_out"] == 0, self._status(cursor)
            cursor.execute("STOP SLAVE")
            cursor.execute("RESET SLAVE ALL")
            cursor.execute("SET GLOBAL read_only = 0")

    @staticmethod
    def _status(cursor: Any) -> dict[str, Any]:
        cursor.execute("SHOW SLAVE STATUS")
        return cursor.fetchone()  # type: ignore[no-any-return]


def sequence(gtid: str) -> int:
    """Return the number in a GTID such as 0-1-77; 0 for none."""
    return int(gtid.rpartition("-")[2] or 0)
