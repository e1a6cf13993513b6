"""Who may be linked with whom: those who know the exchange's secret, and nobody else, whatever they send."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from worker import greeting
from worker.errors import LinkBroken
from worker.greeting import AGGREGATOR, WORKER, Caller, accept, connect, listen
from worker.links import Link, Links

SECRET, HOST, GENERATION = b"s" * 32, "127.0.0.1", 7
WANTED = WORKER, 0


class Called:
    """A thread that waits for `expected` callers; `link` is what came of it."""

    def __init__(self, expected: tuple[tuple[int, int], ...] = (WANTED,)) -> None:
        self.listener, self.links = listen(HOST), Links()
        self.address = self.listener.getsockname()
        self.welcomed: list[Caller] = []
        self.found: dict[tuple[int, int], Link] = {}
        self.error: Exception | None = None
        self.links.begin(GENERATION)
        self._thread = threading.Thread(target=self._run, args=(expected,))
        self._thread.start()

    def _run(self, expected: tuple[tuple[int, int], ...]) -> None:
        try:
            self.found = accept(self.listener, expected, GENERATION, SECRET, self._welcome, self.links)
        except LinkBroken as error:
            self.error = error

    def _welcome(self, caller: Caller) -> bool:
        self.welcomed.append(caller)
        return caller.pid == 4321

    def ended(self) -> bool:
        self._thread.join(20)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.links.give_up(GENERATION)
        assert self.ended()
        self.links.close()
        self.listener.close()


@pytest.fixture
def called() -> Iterator[Called]:
    found = Called()
    yield found
    found.close()


@pytest.fixture
def links() -> Iterator[Links]:
    found = Links()
    found.begin(GENERATION)
    yield found
    found.close()


def is_cut_off(connection: socket.socket) -> bool:
    """Within 5 s, after the nonce."""
    connection.settimeout(5)
    try:
        while connection.recv(1000):
            continue
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("pid", [4321, 1234])
def test_who_knows_the_secret_is_linked_and_hears_what_was_said_to_it(called: Called, links: Links, pid: int) -> None:
    caller = Caller(WORKER, 0, GENERATION, pid, 3)
    link, yes = connect(called.address, "aggregator 0", caller, SECRET, links)
    assert called.ended()
    assert (yes, called.welcomed, called.found[WANTED].peer) == (pid == 4321, [caller], "worker 0")
    link.send(memoryview(b"abc"))
    select.select([called.found[WANTED]], [], [], 5)
    view = memoryview(bytearray(5))
    assert (called.found[WANTED].receive(view), bytes(view)) == (3, b"abc\0\0")


@pytest.mark.parametrize(
    "caller",
    [Caller(WORKER, 1, GENERATION), Caller(AGGREGATOR, 0, GENERATION), Caller(WORKER, 0, GENERATION - 1)],
    ids=str,
)
def test_who_is_not_expected_is_cut_off(called: Called, links: Links, caller: Caller) -> None:
    with pytest.raises(LinkBroken, match=r"aggregator 0 at 127\.0\.0\.1"):
        connect(called.address, "aggregator 0", caller, SECRET, links)
    assert called.welcomed == []


def test_who_knows_another_secret_is_cut_off_and_the_right_one_is_linked(called: Called, links: Links) -> None:
    with pytest.raises(LinkBroken):
        connect(called.address, "aggregator 0", Caller(WORKER, 0, GENERATION), b"t" * 32, links)
    assert called.welcomed == []
    connect(called.address, "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
    assert called.ended()


@pytest.mark.parametrize("garbage", [b"\0" * 85, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10, b"\xff" * 10**6])
def test_garbage_is_cut_off(called: Called, garbage: bytes) -> None:
    with socket.create_connection(called.address) as connection:
        try:
            connection.sendall(garbage)
        except ConnectionError:
            return  # it was cut off before all was sent
        assert is_cut_off(connection)
    assert called.welcomed == []


def test_who_says_nothing_is_cut_off_and_holds_up_nobody(
    called: Called, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greeting, "GREET_S", 1.0)
    with socket.create_connection(called.address) as silent, socket.create_connection(called.address) as slow:
        slow.sendall(b"\0")
        began = time.monotonic()
        assert is_cut_off(silent)
        assert is_cut_off(slow)
        assert time.monotonic() - began < 5
        connect(called.address, "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
        assert called.ended()


def test_of_too_many_strangers_the_oldest_is_cut_off(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "STRANGERS", 3)
    strangers = [socket.create_connection(called.address) for _ in range(5)]
    assert is_cut_off(strangers[0])
    assert is_cut_off(strangers[1])
    strangers[4].settimeout(0.05)
    assert len(strangers[4].recv(1000)) == greeting.NONCE
    for stranger in strangers:
        stranger.close()


def test_a_second_one_of_the_same_name_is_cut_off(links: Links) -> None:
    called = Called(expected=((WORKER, 0), (WORKER, 1)))
    connect(called.address, "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
    with pytest.raises(LinkBroken):
        connect(called.address, "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
    called.close()


def test_what_was_proved_once_proves_nothing_again(called: Called, links: Links) -> None:
    """A recording of a whole greeting: its nonce is not this one's."""
    recorded: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:

        def relay() -> None:
            ours, theirs = listener.accept()[0], socket.create_connection(called.address)
            with ours, theirs:
                ours.sendall(theirs.recv(1000))
                recorded.append(ours.recv(1000))

        thread = threading.Thread(target=relay)
        thread.start()
        with pytest.raises(LinkBroken):
            connect(listener.getsockname(), "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
        thread.join()
    with socket.create_connection(called.address) as again:
        again.recv(1000)
        again.sendall(recorded[0])
        assert is_cut_off(again)
    assert called.welcomed == []


def answering(*answers: Callable[[bytes], bytes]) -> tuple[Any, threading.Thread]:
    """The address of somebody who answers so, and closes then."""
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            heard = b""
            for answer in answers:
                connection.sendall(answer(heard))
                heard = connection.recv(1000)

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname(), thread


def test_the_caller_does_not_believe_who_does_not_know_the_secret(links: Links) -> None:
    address, thread = answering(lambda _: b"n" * greeting.NONCE, lambda heard: b"\1" + heard[-32:])
    with pytest.raises(LinkBroken, match="does not know this exchange's secret"):
        connect(address, "aggregator 0", Caller(WORKER, 0, GENERATION), SECRET, links)
    links.close()
    thread.join()


def test_where_nobody_listens_the_error_says_where(links: Links) -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(LinkBroken, match=rf"aggregator 3 at {HOST}:{address[1]} broke: .*refused"):
        connect(address, "aggregator 3", Caller(WORKER, 0, GENERATION), SECRET, links)


def test_who_waits_for_callers_can_be_told_to_give_up(called: Called) -> None:
    called.links.give_up(GENERATION - 1)
    assert called.error is None
    called.links.give_up(GENERATION)
    assert called.ended()
    assert isinstance(called.error, LinkBroken)
    assert "give up generation 7" in str(called.error)


def test_it_listens_on_one_address_alone() -> None:
    with listen("127.0.0.2") as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
    with listen("::1") as listener:
        assert listener.getsockname()[0] == "::1"


def test_an_address_that_is_not_this_machines_is_told(links: Links) -> None:
    with pytest.raises(LinkBroken, match=r"whoever calls 192\.0\.2\.1 broke"):
        listen("192.0.2.1")
