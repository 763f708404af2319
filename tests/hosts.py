"""Hosts with a name and a network card each, all plugged into one switch: network namespaces that see nothing else."""

import os
import shutil
import subprocess
from types import TracebackType
from typing import Literal, Self

import pytest

HUB = "10.77.0.1"  # the host of the servers, which is the switch as well


class Network:
    """A context manager; what runs on its hosts is to have ended before it does."""

    def __init__(self) -> None:
        self.hosts = ["hub"]

    def __enter__(self) -> Self:
        """Without the right to make one the test is skipped."""
        if shutil.which("ip") is None:
            pytest.skip("no network of several hosts can be made here: there is no `ip` (Debian's iproute2)")
        made = subprocess.run(["ip", "netns", "add", self._space("hub")], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no network of several hosts can be made here: {made.stderr.strip()}")
        self._ip("hub", "link", "set", "lo", "up")
        self._ip("hub", "link", "add", "switch", "type", "bridge")
        self._ip("hub", "addr", "add", f"{HUB}/24", "dev", "switch")
        self._ip("hub", "link", "set", "switch", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget it; it is gone with the last process on it."""
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", self._space(host)], check=True)

    def add(self, host: str) -> None:
        """A host, plugged in."""
        subprocess.run(["ip", "netns", "add", self._space(host)], check=True)
        self.hosts.append(host)
        card = ["name", "eth0", "netns", self._space(host)]
        self._ip("hub", "link", "add", host, "type", "veth", "peer", *card)
        self._ip("hub", "link", "set", host, "master", "switch", "up")
        self._ip(host, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._ip(host, "link", "set", "eth0", "up")
        self._ip(host, "route", "add", "default", "via", HUB)
        self._ip(host, "link", "set", "lo", "up")

    def plug(self, host: str, state: Literal["up", "down"]) -> None:
        """While its cable is down, it and the others hear nothing of each other, nor that this is so."""
        self._ip("hub", "link", "set", host, state)

    def on(self, host: str, name: str | None = None, booted: bool = False) -> list[str]:
        """What a command line must begin with to be run there.

        Args:
            host: Where.
            name: What the host calls itself, if that is not what it is called here.
            booted: It is the first process of the host, which sees no others and whose end is theirs.
        """
        boot = ["--mount-proc", "--pid", "--fork", "--kill-child"] if booted else []
        named = ["unshare", "--uts", *boot, "sh", "-c", 'hostname "$0" && exec "$@"', name or host]
        return ["ip", "netns", "exec", self._space(host), *named]

    def address(self, host: str) -> str:
        """In the network."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def _space(self, host: str) -> str:
        return f"manyfit-{os.getpid()}-{host}"

    def _ip(self, host: str, *words: str) -> None:
        subprocess.run(["ip", "-n", self._space(host), *words], check=True)
