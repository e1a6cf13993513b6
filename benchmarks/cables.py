"""Cables between hosts and a switch: when a packet comes out at the other end, if at all. No I/O and no clock here.

A packet waits until its host's cable has sent those before it, is under way for the delay, and waits again for the
cable down to its target. Packets are lost at random, where a buffer is full, and where a host is cut off.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cable:
    """Of one host, the same both ways. `delay_s`: from host to host, one way. `loss`: the share of packets that do not
    arrive. `buffer_s`: a packet that would have to wait for longer is dropped."""

    bytes_s: float
    delay_s: float
    loss: float = 0.0
    buffer_s: float = 0.02


class _Lane:
    """One direction of a cable: packets one after the other."""

    def __init__(self, cable: Cable) -> None:
        self._cable, self._free_at = cable, 0.0

    def through(self, now: float, size: int) -> float | None:
        """When all of a packet that comes `now` is through; None: the buffer is full."""
        start = max(now, self._free_at)
        if start - now > self._cable.buffer_s:
            return None
        self._free_at = start + size / self._cable.bytes_s
        return self._free_at


class Network:
    """All packets that are under way. Times are seconds of any clock that does not go back."""

    def __init__(self, hosts: int, cable: Cable, seed: int) -> None:
        self._cable, self._draw = cable, random.Random(seed)
        self._up = [_Lane(cable) for _ in range(hosts)]
        self._down = [_Lane(cable) for _ in range(hosts)]
        self._under_way: list[tuple[float, int, bool, int, bytes]] = []  # when, number, is it through, target, packet
        self._number = 0
        self.cut_off: set[int] = set()  # hosts that nothing comes from or gets to
        self.counts: Counter[str] = Counter()  # of packets by their fate, and of bytes that have arrived

    def send(self, now: float, source: int, target: int, packet: bytes) -> None:
        """A packet leaves its host."""
        if source in self.cut_off:
            self.counts["cut off"] += 1
        elif self._draw.random() < self._cable.loss:
            self.counts["lost"] += 1
        elif (at := self._up[source].through(now, len(packet))) is None:
            self.counts["dropped"] += 1
        else:
            self._push(at + self._cable.delay_s, False, target, packet)

    def arrivals(self, now: float) -> Iterator[tuple[int, bytes]]:
        """The packets that have arrived by `now`, in their order, each with its target."""
        while self._under_way and self._under_way[0][0] <= now:
            at, _, is_through, target, packet = heapq.heappop(self._under_way)
            if target in self.cut_off:
                self.counts["cut off"] += 1
            elif is_through:
                self.counts["arrived"] += 1
                self.counts["bytes"] += len(packet)
                yield target, packet
            elif (through := self._down[target].through(at, len(packet))) is None:
                self.counts["dropped"] += 1
            else:
                self._push(through, True, target, packet)

    @property
    def next_at(self) -> float | None:
        """When there is something to do for `arrivals` again; None: nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def _push(self, at: float, is_through: bool, target: int, packet: bytes) -> None:
        self._number += 1
        heapq.heappush(self._under_way, (at, self._number, is_through, target, packet))


def target_of(packet: bytes, addresses: Sequence[bytes]) -> int | None:
    """The number of the host that an IPv4 packet is for, by the hosts' addresses of four bytes each; None: no host."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:20] not in addresses:
        return None
    return addresses.index(packet[16:20])
