"""Stream sockets between the workers and aggregators of one exchange over nodes.

A link is a TCP connection that carries fixed headers and vectors whose sizes both sides know from the plan: nothing is
pickled, and nothing is allocated while steps run. Vectors are sent from, and received into, the buffers that they
belong in. Nobody is heard before it has proved that it knows the exchange's secret (`worker.greeting`).

No step can stand still for ever. Who sends may wait for a receiver that is not there yet, but who receives takes from
every link whatever comes first (`Inbox.fill`). So a process waits only for one that is earlier in the order: a worker
sends step t, an aggregator has received all of it, it sends step t's parameters, a worker has received all of them. The
one that is earliest waits for nobody.
"""

import select
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from worker.errors import LinkBroken

KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))  # seconds, seconds, times
HELD_BYTES = 2 * 1024**2  # of a larger message who receives is told piece after piece
UNACKNOWLEDGED_MS = 15_000  # what was sent and not received for so long breaks the link


class Link:
    """A connection to `peer`, as errors call it."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self._connection, self.peer = connection, peer
        self.due = 0  # so many bytes of a message are still to come, where the receiver has said so
        self._low = 1

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, *parts: memoryview) -> None:
        """All of `parts`, each of bytes, in their order; waits while the receiver does not take them. LinkBroken."""
        views = list(parts)
        try:
            while views:
                sent = self._connection.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if views and sent:
                    views[0] = views[0][sent:]
        except OSError as error:
            raise LinkBroken(self.peer, str(error)) from error

    def wait_for_due(self) -> None:
        """Have nobody woken before what is `due` is all there, as far as the system can hold it back.

        It wakes all the same when that does not fit into its buffers, and at the end of the connection.
        """
        low = self.due if 0 < self.due <= HELD_BYTES else 1
        if low != self._low:
            self._low = low
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)

    def receive(self, view: memoryview) -> int:
        """How many bytes of what has come are in `view` now: 0 when there are none yet. LinkBroken."""
        try:
            count = self._connection.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkBroken(self.peer, str(error)) from error
        if count == 0:
            raise LinkBroken(self.peer, "it has closed the connection")
        self.due -= count
        return count


class Inbox:
    """What several links bring, in whatever order it comes."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._peers = {link.fileno(): link.peer for link in links}
        self._poller = select.poll()
        for link in links:
            self._poller.register(link, select.POLLIN)

    def fill(self, buffers: Mapping[Link, Iterator[memoryview]]) -> None:
        """Fill the buffers of bytes that each link's iterator gives, which is asked for the next when one is full.

        Returns when all iterators are at their ends. LinkBroken also where a link has more to say.
        """
        waiting = {}
        for link, views in buffers.items():
            if (view := next(views, None)) is not None:
                waiting[link.fileno()] = link, views, view
                link.wait_for_due()
        while waiting:
            for number, _ in self._poller.poll():
                if number not in waiting:
                    raise LinkBroken(self._peers[number], "it has closed the connection, or spoken out of turn")
                link, views, view = waiting.pop(number)
                if (rest := _take(link, views, view)) is not None:
                    waiting[number] = link, views, rest
                    link.wait_for_due()


def _take(link: Link, views: Iterator[memoryview], view: memoryview | None) -> memoryview | None:
    """What is left of the buffer that is not full when the link has no more for now; None: all are full."""
    while view is not None:
        count = link.receive(view)
        if count < len(view):
            return view[count:]
        view = next(views, None)
    return None


class Links:
    """The open connections of one process, all of one generation: of workers and aggregators that know each other.

    Another thread may have the process give up what it does for a generation; it never does anything for it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._given_up = -1
        self.generation = -1  # of the open ones; -1: there are none

    def begin(self, generation: int) -> None:
        """Close what is open, and begin anew. LinkBroken if it was given up meanwhile."""
        self.close()
        with self._lock:
            self._check(generation)
            self.generation = generation

    def add(self, connection: socket.socket) -> None:
        """One more that is this process's to close. LinkBroken if the generation was given up meanwhile."""
        with self._lock:
            self._open.append(connection)
            self._check(self.generation)

    def check(self) -> None:
        """LinkBroken if the generation was given up meanwhile."""
        with self._lock:
            self._check(self.generation)

    def give_up(self, generation: int) -> None:
        """By any thread: who waits on a link of `generation`, or one before it, gets LinkBroken."""
        with self._lock:
            self._given_up = max(self._given_up, generation)
            if self.generation <= generation:
                for connection in self._open:
                    _shut_down(connection)

    def close(self) -> None:
        """Close all: whoever is at the other ends gets LinkBroken."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
            self.generation = -1

    def _check(self, generation: int) -> None:
        if generation <= self._given_up:
            raise LinkBroken("the trainer", f"it has said to give up generation {generation}")


def raw(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array that is not empty, themselves."""
    return array.data.cast("B")


def tune(connection: socket.socket) -> None:
    """Small messages go at once, and a host that is gone, of whom nothing is heard, is noticed some day."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is not connected any more
