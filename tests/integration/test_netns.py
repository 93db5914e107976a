"""The hosts that tests make of network namespaces: apart from each other, and gone afterwards."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.support.netns import HostProcess, Network, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
LISTEN = """
import json, os, socket, sys
server = socket.create_server((sys.argv[1], 7000))
print(json.dumps({"event": "ready", "pid": os.getpid(), "host": os.uname().nodename}), flush=True)
while True:
    server.accept()[0].close()
"""


def reaches(network: Network, host: str, address: str) -> bool:
    """Say whether who is on a host gets through; False only for silence, not for a refusal."""
    with network.inside(host), socket.socket() as probe:
        probe.settimeout(0.3)
        try:
            probe.connect((address, 7000))
        except TimeoutError:
            return False
        return True


def namespaces() -> set[str]:
    """Return the names of all network namespaces."""
    return {path.name for path in Path("/run/netns").glob("dispatch-*")}


def test_a_host_is_apart_and_gone_afterwards() -> None:
    """A host has its own name, pids and address; a cut is silence both ways; even what is frozen is gone at the end."""
    with Network(("one", "two")) as network:
        names = {name for name in namespaces() if name.startswith(network.prefix)}
        address = network.addresses["one"]
        argv = network.argv("one", [sys.executable, "-I", "-c", LISTEN, address])
        process = HostProcess("listener", argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        ready = process.wait_event("ready")
        assert (ready["host"], ready["pid"]) == ("one", 1)
        assert reaches(network, "two", address)
        network.cut("one")
        assert not reaches(network, "two", address)
        assert not reaches(network, "one", network.addresses["two"])
        network.heal("one")
        assert reaches(network, "two", address)
        network.freeze("one")
    assert len(names) == 3
    assert not names & namespaces()
    assert process.wait() != 0


def test_a_network_that_fails_half_way_leaves_nothing() -> None:
    """A host that cannot be made takes what was made before it along."""
    network = Network(("one", "router"))
    with pytest.raises(RuntimeError, match="cannot make network namespaces"):
        network.__enter__()
    assert not [name for name in namespaces() if name.startswith(network.prefix)]


def test_without_iproute2_it_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without the command ip gets a failure with a sentence, never a test that passes by being left out."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="install iproute2"):
        Network(("one",)).__enter__()
