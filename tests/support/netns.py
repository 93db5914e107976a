"""A network of hosts on one machine: each is a network namespace with an address of its own, behind one router.

Nothing of it is seen outside: the cables (veth pairs) are made inside the
namespaces. A host also has its own name, its own pids and its own /proc, so
that no process of one host sees, and could kill, one of another. It needs root
and iproute2; ``why_not`` says whether it can be had.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.support.processes import LogProcess, children_of, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CLONE_NEWNET: Final = 0x40000000
_ROUTER: Final = "router"
# "hostname" first, so that what follows already runs under its name; sh does nothing but become the program.
_ENTER: Final = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_NAMED: Final = ("sh", "-c", 'hostname "$0" && exec "$@"')


def why_not() -> str | None:
    """Say why this process cannot even try to make namespaces: it is not root, or has no iproute2. None when it can.

    In CI, and as root who has the command and still cannot make them, ``Network`` raises: the test must fail.
    """
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None and not os.environ.get("CI"):
        return "network namespaces need iproute2; on Debian: apt-get install iproute2"
    return None


class HostProcess(LogProcess):
    """A process on a host. ``pid`` is of its ``unshare``, which ends with it; signals go to the process itself."""

    @property
    def inner(self) -> int:
        """The pid, as seen from outside, of the first process in the pid namespace."""
        return children_of(self.pid)[0]

    def signal(self, number: int) -> None:
        """Send a signal to the first process in the pid namespace; when that one dies, all of them do."""
        if self.exit_code is None:
            inner = children_of(self.pid)
            # A frozen unshare would not notice the end of what it started.
            outer = [self.pid] if number == signal.SIGKILL or not inner else []
            for pid in inner + outer:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


class Network:
    """Hosts with the addresses 10.77.1.2, 10.77.2.2, ... behind a router; a context manager that leaves nothing.

    Raises RuntimeError with the reason when the namespaces cannot be made.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self.addresses = {host: f"10.77.{place}.2" for place, host in enumerate(hosts, 1)}
        self.prefix = f"dispatch-{uuid.uuid4().hex[:8]}-"

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        if shutil.which("ip") is None:
            raise RuntimeError("There is no command ip: install iproute2.")
        router = self._name(_ROUTER)
        _ip("netns", "add", router)
        for host, address in self.addresses.items():
            name, gateway = self._name(host), address.removesuffix("2") + "1"
            _ip("netns", "add", name)
            _ip("-n", router, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", router, "address", "add", f"{gateway}/24", "dev", f"to-{host}")
            _ip("-n", router, "link", "set", f"to-{host}", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "via", gateway)
        with self.inside(_ROUTER):
            _run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def _name(self, host: str) -> str:
        return self.prefix + host

    def argv(self, host: str, argv: Iterable[str]) -> list[str]:
        """Return the command that runs ``argv`` as the first process of a host of that name."""
        return ["ip", "netns", "exec", self._name(host), *_ENTER, *_NAMED, host, *argv]

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Be on a host's network: sockets and processes that this thread makes meanwhile belong there."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as here,
            Path("/run/netns", self._name(host)).open("rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def pids(self, host: str) -> list[int]:
        """Return the pids, as seen from outside, of everything that runs on a host."""
        return [int(pid) for pid in _ip("netns", "pids", self._name(host)).split()]

    def cut(self, host: str) -> None:
        """Let everything to and from a host vanish, without a word to anybody: connections stay open on both sides."""
        _ip("-n", self._name(_ROUTER), "route", "add", "blackhole", self.addresses[host])
        _ip("-n", self._name(_ROUTER), "rule", "add", "from", self.addresses[host], "blackhole")

    def heal(self, host: str) -> None:
        """Undo a cut."""
        _ip("-n", self._name(_ROUTER), "rule", "del", "from", self.addresses[host], "blackhole")
        _ip("-n", self._name(_ROUTER), "route", "del", "blackhole", self.addresses[host])

    def freeze(self, host: str) -> None:
        """Stop everything on a host, as a paused virtual machine does; the clock goes on."""

        def all_stopped() -> bool:
            self._signal(host, signal.SIGSTOP)
            return all(_state(pid) in "TZX" for pid in self.pids(host))

        eventually(all_stopped, f"everything on {host} being stopped")

    def thaw(self, host: str) -> None:
        """Let everything on a frozen host go on, the youngest first: children before those who would stop them."""
        self._signal(host, signal.SIGCONT)

    def kill(self, host: str) -> None:
        """Kill everything on a host at once, as a power cut does."""

        def all_gone() -> bool:
            self._signal(host, signal.SIGKILL)
            return not self.pids(host)

        eventually(all_gone, f"the end of everything on {host}")

    def _signal(self, host: str, number: int) -> None:
        for pid in sorted(self.pids(host), reverse=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """Kill what runs on the hosts and remove them. Harmless when there are none."""
        for host in dict.fromkeys((*self.addresses, _ROUTER)):
            if Path("/run/netns", self._name(host)).exists():
                self.kill(host)
                _ip("netns", "delete", self._name(host))


def _ip(*argv: str) -> str:
    return _run("ip", *argv)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"Root cannot make network namespaces here: '{' '.join(argv)}' said: {done.stderr.strip()} "
            "Run the test where it can, or as another user than root to leave it out."
        )
    return done.stdout


def _enter(descriptor: int) -> None:
    """Move this thread, and no other, to a network; ``os.setns`` came with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")


def _state(pid: int) -> str:
    """Return the one letter of a process's state; X when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"
