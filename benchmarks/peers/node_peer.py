"""What the peers that run on Node.js have in common: a program in `node/` that prepares, submits and works.

It is asked over its standard input, a line a question: `tick 100` submits so many no-op jobs at once, `stamp 7` one that is
numbered, `left` asks how many are not finished. Each is answered with a number once it is stored.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peer import Peer

PROGRAMS = Path(__file__).with_name("node")
INSTALLED = Path(os.environ.get("BENCH_NODE", Path(sys.prefix) / "node"))  # where `setup_peers` has put the packages


class NodePeer(Peer):
    """A peer of the name of its package, whose program is `node/<name>.mjs` with underscores."""

    stores = ("postgresql",)
    packages = ()  # of Python

    def environment(self) -> dict[str, str]:
        return {"BENCH_NODE": str(INSTALLED), "BENCH_URL": self.store.url}

    def prepare(self) -> None:
        subprocess.run(self._command("prepare"), check=True, env=os.environ | self.environment(), timeout=60)
        self.connect()

    def connect(self) -> None:
        self.program = subprocess.Popen(
            self._command("submit"),
            env=os.environ | self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def submit(self, job: str, count: int) -> None:
        self._ask(f"{job} {count}")

    def submitter(self, job: str) -> Callable[[int], object]:
        return lambda number: self._ask(f"{job} {number}")

    def commands(self, processes: int) -> list[list[str]]:
        return [self._command("work")] * processes

    def remaining(self) -> int:
        return self._ask("left 0")

    def versions(self) -> dict[str, str]:
        found = json.loads((INSTALLED / "node_modules" / self.name / "package.json").read_text())
        return {self.name: found["version"]}

    def _command(self, act: str) -> list[str]:
        return [
            str(INSTALLED / "node_modules" / ".bin" / "node"),
            str(PROGRAMS / f"{self.name.replace('-', '_')}.mjs"),
            act,
        ]

    def _ask(self, line: str) -> int:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(f"{line}\n")
        if not (answer := self.program.stdout.readline()):
            raise ConnectionError(f"{self.name} ended at {line!r}")
        return int(answer)
