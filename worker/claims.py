"""Claims: who computes which shard is decided while a step runs: the fast take over what the slow have not begun.

A claim is a token in a pipe of the trainer's, which the workers open through /proc as they do the segment. Whoever
reads a token computes its shard, and nobody else. A pipe needs no atomic operation of ours (Python has none on a
mapping) and no lock that dies with its holder: a token that was lost with its reader is offered again once all have
left their seats. An eventfd would count, but others cannot open it.

A token costs half a microsecond where nothing else happens, and 6 between two gradients, which leave nothing in the
caches; to find the pipe empty costs 17. So there is an end for each taker behind the tokens, and while all are equally
fast a part of the shards is dealt (`sure`).
"""

import fcntl
import heapq
import os
import select
import struct
import termios
from collections.abc import Iterable, Sequence

_TOKEN = struct.Struct("=qq")  # step, or minus the number of an evaluation; shard
_COUNT = struct.Struct("=i")
_END = -1  # in the place of a shard: whoever reads it has read enough
MOST_SHARDS = select.PIPE_BUF // _TOKEN.size // 2  # with as many ends, one write puts them into the pipe whole
SLOW = 1.25  # times the fastest: from there on a seat asks whether a claim is worth it


class Claims:
    """The pipe. Tokens are offered by one process at a time, while nobody takes any."""

    def __init__(self, path: str) -> None:
        """The pipe at `path` (see `path`), of this process or another of the same user."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    @classmethod
    def create(cls) -> "Claims":
        """A new pipe, without tokens."""
        ends = os.pipe2(os.O_CLOEXEC)
        try:
            return cls(f"/proc/self/fd/{ends[0]}")
        finally:
            for end in ends:
                os.close(end)

    @property
    def path(self) -> str:
        """Where other processes of this machine open it, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def offer(self, step: int, shards: Iterable[int], takers: int) -> None:
        """Put a token for each of `shards` into the pipe, and an end for each of `takers`; at most MOST_SHARDS each."""
        tokens = (*shards, *(_END for _ in range(takers)))
        os.write(self._descriptor, b"".join(_TOKEN.pack(step, shard) for shard in tokens))

    def take(self, step: int) -> int | None:
        """The shard that is now the caller's; None when all of `step` are taken: then the caller asks no more."""
        while True:
            try:
                offered, shard = _TOKEN.unpack(os.read(self._descriptor, _TOKEN.size))
            except BlockingIOError:
                return None
            if offered == step:
                return None if shard == _END else int(shard)

    def left(self) -> int:
        """How many tokens and ends nobody has taken yet."""
        found = fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(_COUNT.size))
        return int(_COUNT.unpack(found)[0]) // _TOKEN.size

    def clear(self) -> None:
        """Take all tokens out: nobody else may be at the pipe."""
        while self.left():
            os.read(self._descriptor, select.PIPE_BUF)

    def close(self) -> None:
        """Leave the pipe; it is gone with the last process that has it open."""
        os.close(self._descriptor)


def sure(shards: int, seats: int) -> int:
    """How many shards may be dealt out evenly, rather than claimed, while nobody is slow: the first ones."""
    return shards // (2 * seats) * seats


def is_slow(seat: int, seconds: Sequence[float]) -> bool:
    """Whether `seat` is slower than others by more than chance, from each seat's seconds a shard (0: not known yet).

    The fastest is not, whatever it is compared with: where all seats know the same figures, at least one goes on until
    no token is left.
    """
    known = [value for value in seconds if value]
    return bool(known) and seconds[seat] > SLOW * min(known)


def is_worth(mine: float, others: Sequence[tuple[float, float]], left: int) -> bool:
    """Whether who needs `mine` seconds a shard is done with one before the others would be with all `left` shards.

    Each of the others: its seconds a shard, and until it has finished the one it is at.
    """
    finishing = [(busy + seconds, seconds) for seconds, busy in others]
    heapq.heapify(finishing)
    last = 0.0
    for _ in range(left):
        last, seconds = finishing[0]
        heapq.heapreplace(finishing, (last + seconds, seconds))
    return mine <= last
