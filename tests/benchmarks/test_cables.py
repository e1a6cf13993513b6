"""The cables between test hosts: when packets arrive, and which do not."""

import random
import socket
import struct

import pytest

from benchmarks.cables import Cable, Network, target_of

SLOW = Cable(bytes_s=1000.0, delay_s=0.5, buffer_s=10.0)


def all_arrivals(network: Network) -> list[tuple[float, int, bytes]]:
    found = []
    while (at := network.next_at) is not None:
        found += [(at, *arrived) for arrived in network.arrivals(at)]
    return found


def test_a_packet_takes_its_time_on_both_cables_and_the_delay() -> None:
    network = Network(2, SLOW, 0)
    network.send(3.0, 0, 1, b"x" * 100)
    assert all_arrivals(network) == [(pytest.approx(3.0 + 0.1 + 0.5 + 0.1), 1, b"x" * 100)]


def test_packets_of_one_host_go_one_after_the_other_and_keep_their_order() -> None:
    network = Network(2, SLOW, 0)
    for number in range(5):
        network.send(0.0, 0, 1, bytes([number]) * 100)
    found = all_arrivals(network)
    assert [packet[0] for _, _, packet in found] == [0, 1, 2, 3, 4]
    assert [at for at, _, _ in found] == pytest.approx([0.7, 0.8, 0.9, 1.0, 1.1])


def test_packets_of_two_hosts_share_the_cable_of_their_target() -> None:
    network = Network(3, SLOW, 0)
    network.send(0.0, 0, 2, b"a" * 100)
    network.send(0.0, 1, 2, b"b" * 100)
    network.send(0.0, 2, 0, b"c" * 100)  # the other way: nothing is in its way
    assert [at for at, _, _ in all_arrivals(network)] == pytest.approx([0.7, 0.7, 0.8])


def test_what_does_not_fit_into_the_buffer_is_dropped() -> None:
    network = Network(2, Cable(1000.0, 0.0, buffer_s=0.25), 0)
    for _ in range(10):
        network.send(0.0, 0, 1, b"x" * 100)
    assert len(all_arrivals(network)) == 3  # of which the third waits for 0.2 s
    assert network.counts == {"arrived": 3, "bytes": 300, "dropped": 7}


def test_a_share_of_the_packets_is_lost_the_same_ones_each_time() -> None:
    def counts(seed: int) -> dict[str, int]:
        network = Network(2, Cable(1e9, 0.0, loss=0.01), seed)
        for number in range(10_000):
            network.send(float(number), 0, 1, b"x")
        all_arrivals(network)
        return dict(network.counts)

    assert counts(1) == counts(1)
    assert 60 < counts(1)["lost"] < 140
    assert counts(1)["lost"] + counts(1)["arrived"] == 10_000


def test_nothing_comes_from_a_host_that_is_cut_off_or_gets_to_it() -> None:
    network = Network(3, SLOW, 0)
    network.send(0.0, 0, 1, b"under way")
    network.cut_off.add(1)
    network.send(0.0, 0, 1, b"to it")
    network.send(0.0, 1, 0, b"from it")
    network.send(0.0, 2, 0, b"others")
    assert [packet for _, _, packet in all_arrivals(network)] == [b"others"]
    network.cut_off.discard(1)
    network.send(5.0, 1, 0, b"again")
    assert [packet for _, _, packet in all_arrivals(network)] == [b"again"]
    assert network.counts["cut off"] == 3


def test_arrivals_never_go_back_in_time() -> None:
    draw = random.Random(5)
    network, now, found = Network(4, Cable(1e5, 0.01, 0.05, 0.5), 5), 0.0, []
    for _ in range(2000):
        now += draw.expovariate(200)
        found += list(network.arrivals(now))
        source, target = draw.sample(range(4), 2)
        network.send(now, source, target, bytes(draw.randrange(1, 1500)))
        assert network.next_at is None or network.next_at > now - 1e-12
    found += [arrived for _, *arrived in all_arrivals(network)]
    counts = network.counts
    assert counts["arrived"] == len(found)
    assert counts["arrived"] + counts["lost"] + counts["dropped"] == 2000


def test_a_target_is_told_by_the_address_of_a_whole_header() -> None:
    addresses = [socket.inet_aton("198.18.0.1"), socket.inet_aton("198.18.0.2")]
    packet = struct.pack("B11x4s4s", 0x45, *addresses)
    assert target_of(packet, addresses) == 1
    assert target_of(packet[:19], addresses) is None
    assert target_of(b"\x60" + packet[1:], addresses) is None  # IPv6
    assert target_of(packet[:16] + b"\x08\x08\x08\x08", addresses) is None
