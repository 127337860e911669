"""Hosts of their own on this machine: network namespaces, whose packets can be lost; needs root, iproute2 and iptables."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CHAINS = {"in": ["INPUT"], "out": ["OUTPUT"], "both": ["INPUT", "OUTPUT"]}
_numbers = itertools.count(1)

# Python that goes on as `manage.py` on the host: the tests keep track of what they start by its environment.
_ENTER = (
    "import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', {name!r}, sys.executable, 'manage.py', *sys.argv[1:]])"
)


@dataclass(frozen=True)
class Host:
    """A network namespace, and the address at which it reaches this machine."""

    name: str
    gateway: str

    @property
    def program(self) -> list[str]:
        """The program that runs `manage.py` there, for `spawn`."""
        return ["-c", _ENTER.format(name=self.name)]

    @contextmanager
    def losing(self, direction: str, share: float = 1.0) -> Iterator[None]:
        """Lose this share of the packets that come `in`, go `out`, or `both`, without a word to anybody."""
        rules = [
            [chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-m", "statistic", "--mode", "random",
             "--probability", str(share), "-j", "DROP"]
            for chain in CHAINS[direction]
        ]  # fmt: skip
        try:
            for rule in rules:
                self._iptables("-A", rule)
            yield
        finally:
            for rule in rules:
                self._iptables("-D", rule)

    def _iptables(self, verb: str, rule: list[str]) -> None:
        _run("ip", "netns", "exec", self.name, "iptables", verb, *rule)


@contextmanager
def host() -> Iterator[Host]:
    """Make a host; remove it at the end of the block."""
    assert os.geteuid() == 0, "a host of its own wants root"
    assert [name for name in ("ip", "iptables") if shutil.which(name) is None] == [], "it wants iproute2 and iptables"
    number = next(_numbers)
    name, cable = f"jt{os.getpid() % 100_000}n{number}", f"jt{os.getpid() % 100_000}v{number}"
    prefix = f"10.214.{(os.getpid() + number) % 250}"
    made = Host(name, f"{prefix}.1")
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "address", "add", f"{prefix}.1/24", "dev", cable)
        _run("ip", "link", "set", cable, "up")
        _run("ip", "-n", name, "address", "add", f"{prefix}.2/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", device, "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)  # its cable goes with it


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
