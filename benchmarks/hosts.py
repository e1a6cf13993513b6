"""Hosts on this machine: network namespaces, each with one device, and cables between them that are slow and lossy.

A namespace has no name here: descriptors and processes hold it, and with the last of them it is gone, as its device is
with the switch, however this process ends. The devices are tun devices, whose packets a process of ours moves
(`benchmarks.switch`); tc's netem would do it in the kernel, but many kernels, and most containers', have none.
A thread that has `entered` a host is on its network, with every process and socket that it makes there; nothing of the
machine's own network is touched, and nothing of it can be reached from there.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.cables import Cable

CLONE_NEWNET = 0x40000000
TUN, TUNSETIFF, IFF_TUN, IFF_NO_PI = "/dev/net/tun", 0x400454CA, 0x1, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8913, 0x8914, 0x8916, 0x891C, 0x8922
IFF_UP = 0x1
DEVICE, MTU = "cable", 9000
END_S = 10.0


class Host:
    """One host: the descriptor of its network namespace, and its address there."""

    def __init__(self, number: int) -> None:
        self.number, self.address = number, f"198.18.0.{number + 1}"  # of the range for benchmarks, RFC 2544
        with _own_namespace() as own:
            _libc("unshare", CLONE_NEWNET)
            try:
                self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _libc("setns", own, CLONE_NEWNET)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is on this host's network within the block."""
        with _own_namespace() as own:
            _libc("setns", self._namespace, CLONE_NEWNET)
            try:
                yield
            finally:
                _libc("setns", own, CLONE_NEWNET)

    def plug_in(self) -> int:
        """Give it its device, and its loopback: the descriptor of the device's other end."""
        with self.entered():
            device = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                _configure(control, SIOCSIFADDR, DEVICE, _address(self.address))
                _configure(control, SIOCSIFNETMASK, DEVICE, _address("255.255.255.0"))
                _configure(control, SIOCSIFMTU, DEVICE, struct.pack("i", MTU))
                for name in (DEVICE, "lo"):
                    _configure(control, SIOCSIFFLAGS, name, struct.pack("H", _flags(control, name) | IFF_UP))
        return device

    def close(self) -> None:
        """Let it go: it is gone with the last process on it."""
        os.close(self._namespace)


class Hosts:
    """`count` hosts, each at one switch by such a `cable`. A context manager; OSError where there can be none."""

    def __init__(self, count: int, cable: Cable, seed: int = 0) -> None:
        self._count, self._cable, self._seed = count, cable, seed
        self.hosts: list[Host] = []
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        devices: list[int] = []
        try:
            for number in range(self._count):
                self.hosts.append(Host(number))
                devices.append(self.hosts[number].plug_in())
            settings = {"devices": devices, "addresses": [host.address for host in self.hosts], "seed": self._seed}
            self._switch = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.switch", json.dumps(settings | {"cable": asdict(self._cable)})],
                cwd=Path(__file__).parents[1],
                pass_fds=devices,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.counts()  # it answers: from now on packets get through
        except BaseException:
            self._end()
            raise
        finally:
            for device in devices:
                os.close(device)  # the switch alone holds them
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def cut(self, host: Host) -> None:
        """Nothing comes from the host or gets to it any more, what is under way included; it is not told."""
        self._ask(f"cut {host.number}")

    def heal(self, host: Host) -> None:
        """Undo `cut`."""
        self._ask(f"heal {host.number}")

    def counts(self) -> dict[str, int]:
        """Packets by their fate so far, and `bytes` that have arrived (`cables.Network.counts`)."""
        found: dict[str, int] = json.loads(self._ask("counts"))
        return found

    def _ask(self, line: str) -> str:
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(f"{line}\n")
        self._switch.stdin.flush()
        if not (answer := self._switch.stdout.readline()):
            raise OSError("the switch has ended")
        return answer.strip()

    def _end(self) -> None:
        if self._switch is not None:
            self._switch.communicate(timeout=END_S)
        for host in self.hosts:
            host.close()


def why_none() -> str | None:
    """Why this process can make no hosts; None: it can."""
    try:
        host = Host(0)
    except OSError as error:
        return f"no network namespace can be made here (it takes root): {error}"
    try:
        os.close(host.plug_in())
    except OSError as error:
        return f"no device of {TUN} can be made here: {error}"
    finally:
        host.close()
    return None


@contextmanager
def _own_namespace() -> Iterator[int]:
    """The descriptor of the network namespace that the calling thread is in."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield own
    finally:
        os.close(own)


def _libc(function: str, *arguments: int) -> None:
    """A call that Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _configure(control: socket.socket, what: int, device: str, value: bytes) -> None:
    fcntl.ioctl(control, what, struct.pack("16s24s", device.encode(), value))


def _flags(control: socket.socket, device: str) -> int:
    found = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", device.encode()))
    return int(struct.unpack_from("H", found, 16)[0])


def _address(text: str) -> bytes:
    """A sockaddr_in."""
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
