"""Links: what is sent arrives whole, in whatever pieces; and whoever waits can be told to stop."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from worker.errors import LinkBroken
from worker.links import Inbox, Link, Links, raw, tune

PATIENCE_S = 20.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    for each in (ours, theirs):
        tune(each)
    return ours, theirs


@pytest.fixture
def links() -> Iterator[list[tuple[Link, Link]]]:
    """Three: the sender's end, the receiver's."""
    ends = [pair() for _ in range(3)]
    yield [(Link(ours, f"receiver {k}"), Link(theirs, f"sender {k}")) for k, (ours, theirs) in enumerate(ends)]
    for both in ends:
        for each in both:
            each.close()


def run(*targets: object) -> list[threading.Thread]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: Sequence[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(PATIENCE_S)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("seed", range(3))
def test_vectors_far_beyond_the_sockets_buffers_arrive_whole_whoever_is_first(
    links: list[tuple[Link, Link]], seed: int
) -> None:
    draw = random.Random(seed)
    sent = [[os.urandom(draw.randrange(1, 8 * 1024**2)) for _ in range(3)] for _ in links]
    received = [[bytearray(len(part)) for part in parts] for parts in sent]

    def send(k: int) -> None:
        time.sleep(draw.random() / 100)  # any order will do
        links[k][0].send(*map(memoryview, sent[k][:2]))
        links[k][0].send(memoryview(sent[k][2]))

    threads = run(*(lambda k=k: send(k) for k in range(3)))
    inbox = Inbox([theirs for _, theirs in links])
    inbox.fill({theirs: map(memoryview, parts) for (_, theirs), parts in zip(links, received, strict=True)})
    assert joined(threads)
    assert received == sent


def test_two_that_send_to_two_stand_still_in_no_order(links: list[tuple[Link, Link]]) -> None:
    """Each sender begins with another receiver, each receiver would like to hear of another sender first."""
    size = 16 * 1024**2
    grid = {(s, r): pair() for s in range(2) for r in range(2)}
    outgoing = {key: Link(ours, f"receiver {key}") for key, (ours, _) in grid.items()}
    incoming = {key: Link(theirs, f"sender {key}") for key, (_, theirs) in grid.items()}
    vector = memoryview(bytearray(size))

    def send(sender: int) -> None:
        for k in range(2):
            outgoing[sender, (sender + 1 + k) % 2].send(vector)

    def receive(receiver: int) -> None:
        mine = [incoming[sender, receiver] for sender in ((receiver + 1) % 2, receiver)]
        Inbox(mine).fill({link: iter([memoryview(bytearray(size))]) for link in mine})

    everybody = [lambda k=k: send(k) for k in range(2)] + [lambda k=k: receive(k) for k in range(2)]
    assert joined(run(*everybody))
    for both in grid.values():
        for each in both:
            each.close()


def test_what_is_sent_and_received_are_the_arrays_themselves(links: list[tuple[Link, Link]]) -> None:
    ours, theirs = links[0]
    vector, other = np.arange(1000, dtype=np.float32), np.zeros((2, 1000), np.float32)
    ours.send(raw(vector[10:]))
    Inbox([theirs]).fill({theirs: iter([raw(other[1, 10:])])})
    assert other[1, 10:].tolist() == vector[10:].tolist()
    assert not other[0].any()


def test_a_link_that_closes_breaks_and_says_whose_it_was(links: list[tuple[Link, Link]]) -> None:
    ours, theirs = links[1]
    ours.send(memoryview(b"ab"))
    threads = run(lambda: ours._connection.shutdown(socket.SHUT_RDWR))
    with pytest.raises(LinkBroken, match="the link to sender 1 broke"):
        Inbox([theirs]).fill({theirs: iter([memoryview(bytearray(3))])})
    assert joined(threads)
    ours._connection.close()
    with pytest.raises(LinkBroken, match="the link to sender 1 broke"):
        theirs.send(memoryview(bytearray(64 * 1024**2)))


def test_who_closes_or_speaks_out_of_turn_while_another_is_waited_for_is_noticed(
    links: list[tuple[Link, Link]],
) -> None:
    inbox = Inbox([theirs for _, theirs in links])
    links[2][0].send(memoryview(b"x"))
    with pytest.raises(LinkBroken, match="sender 2 broke: it has closed the connection, or spoken out of turn"):
        inbox.fill({links[0][1]: iter([memoryview(bytearray(1))])})


def test_nothing_is_waited_for_where_nothing_is_due(links: list[tuple[Link, Link]]) -> None:
    Inbox([theirs for _, theirs in links]).fill({theirs: iter(()) for _, theirs in links})


@pytest.mark.parametrize("doing", ["sending", "receiving"])
def test_another_thread_ends_a_wait(doing: str) -> None:
    ours, theirs = pair()
    registry, errors = Links(), list[LinkBroken]()
    registry.begin(3)
    registry.add(ours)
    link = Link(ours, "peer")

    def wait() -> None:
        try:
            if doing == "sending":
                link.send(memoryview(bytearray(64 * 1024**2)))
            else:
                Inbox([link]).fill({link: iter([memoryview(bytearray(1))])})
        except LinkBroken as error:
            errors.append(error)

    threads = run(wait)
    registry.give_up(2)  # one before: not this one
    threads[0].join(0.1)
    assert threads[0].is_alive()
    registry.give_up(3)
    assert joined(threads)
    assert len(errors) == 1
    registry.close()
    theirs.close()


def test_what_was_given_up_is_not_begun_again() -> None:
    registry = Links()
    registry.give_up(3)
    for generation in (2, 3):
        with pytest.raises(LinkBroken, match=f"give up generation {generation}"):
            registry.begin(generation)
    registry.begin(4)
    registry.check()
    registry.give_up(4)
    with pytest.raises(LinkBroken):
        registry.check()
    ours, theirs = pair()
    with pytest.raises(LinkBroken):
        registry.add(ours)  # it is closed with the others all the same
    registry.close()
    assert ours.fileno() == -1
    theirs.close()
