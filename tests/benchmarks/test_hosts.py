"""Hosts in network namespaces: they reach each other as their cables say, nobody else, and leave nothing behind."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.cables import Cable
from benchmarks.hosts import Host, Hosts, why_none

pytestmark = [pytest.mark.system, pytest.mark.skipif((why := why_none()) is not None, reason=str(why))]
ROOT = Path(__file__).parents[2]
CABLE = Cable(bytes_s=100e6 / 8, delay_s=0.005)
PATIENCE_S = 30.0


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(3, CABLE) as found:
        yield found


def listener(host: Host) -> socket.socket:
    with host.entered():
        return socket.create_server((host.address, 0))


def connected(host: Host, to: socket.socket, seconds: float = PATIENCE_S) -> socket.socket:
    with host.entered():
        return socket.create_connection(to.getsockname(), seconds)


def test_a_connection_takes_the_delay_there_and_back(hosts: Hosts) -> None:
    with closing(listener(hosts.hosts[1])) as there:
        began = time.monotonic()
        connected(hosts.hosts[0], there).close()
        assert 2 * CABLE.delay_s <= time.monotonic() - began < 1.0


def test_bytes_come_no_faster_than_the_cable_carries_them(hosts: Hosts) -> None:
    data = os.urandom(4 * 1024**2)
    with closing(listener(hosts.hosts[1])) as there, closing(connected(hosts.hosts[2], there)) as sender:
        receiver, _ = there.accept()
        began = time.monotonic()
        thread = threading.Thread(target=lambda: (sender.sendall(data), sender.shutdown(socket.SHUT_WR)))
        thread.start()
        with closing(receiver):
            found = b"".join(iter(lambda: receiver.recv(1024**2), b""))
        seconds = time.monotonic() - began
        thread.join()
    assert found == data
    assert seconds > len(data) / CABLE.bytes_s
    assert hosts.counts()["bytes"] > len(data)


def test_a_host_that_is_cut_off_hears_and_says_nothing_until_it_is_healed(hosts: Hosts) -> None:
    with closing(listener(hosts.hosts[1])) as there, closing(connected(hosts.hosts[0], there)) as sender:
        receiver, _ = there.accept()
        receiver.settimeout(1.0)
        hosts.cut(hosts.hosts[1])
        sender.sendall(b"late")
        with pytest.raises(TimeoutError):
            receiver.recv(4)
        with pytest.raises(OSError, match="timed out"):
            connected(hosts.hosts[2], there, 0.5)
        hosts.heal(hosts.hosts[1])
        receiver.settimeout(PATIENCE_S)
        assert receiver.recv(4) == b"late"
        receiver.close()


def test_neither_the_machine_nor_the_world_is_reached(hosts: Hosts) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as outside, hosts.hosts[0].entered():
        for address in (outside.getsockname(), ("192.0.2.1", 80)):
            with pytest.raises(OSError, match=r"refused|unreachable"):
                socket.create_connection(address, PATIENCE_S)


def test_processes_are_on_the_network_of_the_host_that_was_entered(hosts: Hosts) -> None:
    command = [sys.executable, "-c", "import socket; print([name for _, name in socket.if_nameindex()])"]
    with hosts.hosts[0].entered():
        inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cable" in inside
    assert "cable" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def namespaces() -> set[str]:
    """The network namespaces that this machine's processes, and this one's descriptors, hold."""
    found = set()
    for link in [*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc/self/fd").iterdir()]:
        try:
            target = os.readlink(link)
        except OSError:
            continue  # it has just ended, or is none of ours
        if target.startswith("net:"):
            found.add(target)
    return found


def test_nothing_is_left_after_a_failure_either() -> None:
    before = namespaces()

    def fail() -> None:
        with Hosts(2, CABLE) as hosts, hosts.hosts[0].entered():
            assert len(namespaces()) == len(before) + 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert namespaces() == before


def is_switch(pid: int) -> bool:
    try:
        return "benchmarks.switch" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return False


def test_the_switch_ends_with_its_owner_by_kill_9_too() -> None:
    code = """
import os, signal
from benchmarks.hosts import Hosts
from benchmarks.cables import Cable
with Hosts(2, Cable(1e6, 0.0)) as hosts:
    print(hosts._switch.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    switch, until = int(found.stdout), time.monotonic() + PATIENCE_S
    while is_switch(switch):
        assert time.monotonic() < until
        time.sleep(0.02)  # polls a condition
