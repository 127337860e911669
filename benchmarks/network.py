"""Hosts on one machine: network namespaces with an address each, joined by a bridge; needs root and iproute2.

Each host has its own network, host name and loopback, and reaches the others only through the bridge, as machines in a rack
would. Everything is named `jb<pid>…` after the process that made it and is removed by it, also after an error.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

SUBNET = "10.213.{number}"


class NoHosts(RuntimeError):
    """Namespaces cannot be made here."""


@dataclass(frozen=True)
class Network:
    """A bridge with an address of its own, and hosts behind it."""

    bridge: str
    address: str
    subnet: str
    hosts: tuple[str, ...]

    def on_host(self, number: int, command: list[str]) -> list[str]:
        """Return the command that runs `command` on a host, with the host's name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host_name(number)]
        return [*self.inside(number), *named, *command]

    def inside(self, number: int) -> list[str]:
        """Return what a command is to begin with to run in a host's network."""
        return ["ip", "netns", "exec", self.hosts[number]]

    def address_of(self, number: int) -> str:
        return f"{self.address.rpartition('.')[0]}.{number + 10}"


def current() -> Network:
    """Return the network of this run, which the harness names in BENCH_NETWORK."""
    return Network(**json.loads(os.environ["BENCH_NETWORK"]))


def host_name(number: int) -> str:
    return f"host{number + 1:02}"


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """Make so many hosts; remove them at the end of the block. Raises NoHosts without the rights or the tools."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        raise NoHosts("hosts are network namespaces, which need root, iproute2 and util-linux")
    tag, number = f"jb{os.getpid() % 100_000}", os.getpid() % 250
    prefix = SUBNET.format(number=number)
    made = Network(f"{tag}br", f"{prefix}.1", f"{prefix}.0/24", tuple(f"{tag}h{each}" for each in range(hosts)))
    try:
        _ip("link", "add", made.bridge, "type", "bridge")
        _ip("address", "add", f"{made.address}/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        for each, name in enumerate(made.hosts):
            _ip("netns", "add", name)
            _ip("link", "add", f"{tag}v{each}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{tag}v{each}", "master", made.bridge, "up")
            _ip("-n", name, "address", "add", f"{prefix}.{each + 10}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        os.environ["BENCH_NETWORK"] = json.dumps(asdict(made))
        yield made
    finally:
        for name in made.hosts:  # its end of the cable goes with it, and so does ours
            _ip("netns", "delete", name, check=False)
        _ip("link", "delete", made.bridge, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise NoHosts(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
