"""How two processes of one exchange prove to each other who they are, before anything else is read from a connection.

    called -> caller   a nonce
    caller -> called   who it is (Caller), a nonce, HMAC-SHA256 over both nonces and who it is
    called -> caller   a byte, HMAC-SHA256 over all that

The key is the exchange's secret, which reaches both through Ray. Whoever does not know it, says anything else or takes
too long is cut off; nothing that it sends decides how much is read.
"""

import hmac
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass

from worker.errors import LinkBroken
from worker.links import Link, Links, tune

WORKER, AGGREGATOR = 0, 1
NONCE, PROOF = 32, 32  # bytes
GREET_S = 5.0  # who has not proved itself by then is cut off
CONNECT_S = 10.0
STRANGERS = 64  # that may be proving themselves at once; of more the oldest is cut off
LOOK_S = 0.2  # who waits for callers looks so often whether to give up
BACKLOG = 1024
_CALLER = struct.Struct("<BIQII")


@dataclass(frozen=True)
class Caller:
    """Who connects: number `number` of its kind, in `generation`; its memory is `descriptor` of its process `pid`."""

    kind: int
    number: int
    generation: int
    pid: int = 0
    descriptor: int = 0

    def __str__(self) -> str:
        return f"{'worker' if self.kind == WORKER else 'aggregator'} {self.number}"


def listen(host: str) -> socket.socket:
    """A socket that is reached by the address `host` of this machine alone, on a port that is free. LinkBroken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family, backlog=BACKLOG)
    except OSError as error:
        raise LinkBroken(f"whoever calls {host}", str(error)) from error


def connect(address: tuple[str, int], peer: str, caller: Caller, secret: bytes, links: Links) -> tuple[Link, bool]:
    """A link to whoever listens at `address`, and whether it said yes to this caller. LinkBroken."""
    try:
        connection = socket.create_connection(address, CONNECT_S)
        links.add(connection)
        connection.settimeout(None)  # who is called may have others to wait for; the trainer sees to it
        tune(connection)
        theirs, ours, said = _exactly(connection, NONCE), secrets.token_bytes(NONCE), _CALLER.pack(*astuple(caller))
        connection.sendall(said + ours + _proof(secret, b"caller", theirs, ours, said))
        answer = _exactly(connection, 1 + PROOF)
    except OSError as error:
        raise LinkBroken(f"{peer} at {address[0]}:{address[1]}", str(error)) from error
    if not hmac.compare_digest(answer[1:], _proof(secret, b"called", ours, theirs, said + answer[:1])):
        raise LinkBroken(f"{peer} at {address[0]}:{address[1]}", "it does not know this exchange's secret")
    return Link(connection, peer), answer[0] == 1


def accept(
    listener: socket.socket,
    expected: Collection[tuple[int, int]],
    generation: int,
    secret: bytes,
    welcome: Callable[[Caller], bool],
    links: Links,
) -> dict[tuple[int, int], Link]:
    """The links of all `expected` callers (kind, number), once they have come; `welcome` says yes or no to each.

    LinkBroken when the generation is given up.
    """
    found: dict[tuple[int, int], Link] = {}
    strangers: dict[int, _Stranger] = {}
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    try:
        while len(found) < len(expected):
            for number, _ in poller.poll(1000 * LOOK_S):
                if number == listener.fileno():
                    stranger = _Stranger(listener.accept()[0], secret)
                    strangers[stranger.connection.fileno()] = stranger
                    poller.register(stranger.connection, select.POLLIN)
                    continue
                stranger = strangers[number]
                caller = stranger.hear()
                if caller is None:
                    continue
                poller.unregister(number)
                del strangers[number]
                who = caller.kind, caller.number
                if caller.generation != generation or who not in expected or who in found:
                    stranger.connection.close()
                    continue
                links.add(stranger.connection)
                stranger.answer(welcome(caller))
                found[who] = Link(stranger.connection, str(caller))
            links.check()
            for number in _overdue(strangers):
                poller.unregister(number)
                strangers.pop(number).connection.close()
    finally:
        for stranger in strangers.values():
            stranger.connection.close()
    return found


class _Stranger:
    """Who has connected and has not proved anything yet."""

    def __init__(self, connection: socket.socket, secret: bytes) -> None:
        self.connection, self._secret = connection, secret
        self.since = time.monotonic()
        self.is_refused = False
        self._nonce = secrets.token_bytes(NONCE)
        self._heard = bytearray(_CALLER.size + NONCE + PROOF)
        self._left = memoryview(self._heard)
        tune(connection)
        self._said = b""
        self.connection.setblocking(False)
        self._send(self._nonce)

    def hear(self) -> Caller | None:
        """Who it is, once it has proved that. `is_refused` where it cannot."""
        try:
            count = self.connection.recv_into(self._left)
        except BlockingIOError:
            return None
        except OSError:
            count = 0
        self._left = self._left[count:]
        self.is_refused = count == 0
        if self._left or self.is_refused:
            return None
        heard = bytes(self._heard)
        self._said, theirs = heard[: _CALLER.size], heard[_CALLER.size : -PROOF]
        proof = _proof(self._secret, b"caller", self._nonce, theirs, self._said)
        self.is_refused = not hmac.compare_digest(heard[-PROOF:], proof)
        self._theirs = theirs
        return None if self.is_refused else Caller(*_CALLER.unpack(self._said))

    def answer(self, yes: bool) -> None:
        """Prove in turn who was called."""
        said = bytes([yes])
        self._send(said + _proof(self._secret, b"called", self._theirs, self._nonce, self._said + said))
        self.connection.setblocking(True)

    def _send(self, message: bytes) -> None:
        """It fits into any socket's buffer, which is empty."""
        try:
            self.connection.send(message)
        except OSError:
            self.is_refused = True


def _overdue(strangers: dict[int, _Stranger]) -> list[int]:
    """Those to be cut off: who was refused, who has taken too long, and the oldest where there are too many."""
    now, numbers = time.monotonic(), list(strangers)
    surplus = numbers[: max(len(numbers) - STRANGERS, 0)]  # in the order in which they came
    return [n for n in numbers if n in surplus or strangers[n].is_refused or now - strangers[n].since > GREET_S]


def _proof(secret: bytes, who: bytes, *parts: bytes) -> bytes:
    """All parts have a length that is known, or stand last."""
    return hmac.digest(secret, who + b"".join(parts), "sha256")


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionResetError("it has closed the connection")
        view = view[count:]
    return bytes(data)
