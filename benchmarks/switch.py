"""The process between hosts in network namespaces: moves packets from device to device as `cables` says.

    python -m benchmarks.switch SETTINGS

SETTINGS, as JSON: `devices` (descriptors of tun devices, inherited), `addresses`, `cable`, `seed`. On standard input
come lines, `cut N`, `heal N` and `counts`; each is answered with a line, the counts as JSON. At its end this ends.
"""

import json
import os
import select
import socket
import sys
import time
from contextlib import suppress

from benchmarks.cables import Cable, Network, target_of

MOST_BYTES = 65_535  # of a packet
AT_ONCE = 32  # packets of one host: then it is time to look whether others have arrived
NICE = -10  # a late switch would be a slower network than the one that was asked for


class Switch:
    """The loop."""

    def __init__(self, devices: list[int], addresses: list[str], network: Network) -> None:
        self._devices, self._network = devices, network
        self._addresses = [socket.inet_aton(address) for address in addresses]
        for device in devices:
            os.set_blocking(device, False)

    def run(self) -> None:
        """Returns when nobody holds the other end of standard input any more."""
        while True:
            at, now = self._network.next_at, time.monotonic()
            ready, _, _ = select.select([0, *self._devices], [], [], None if at is None else max(at - now, 0.0))
            for device in ready:
                if device:
                    self._take(device)
                elif not (lines := os.read(0, 4096)):
                    return
                else:
                    for line in lines.decode().splitlines():
                        print(self._obey(*line.split()), flush=True)
            for target, packet in self._network.arrivals(time.monotonic()):
                os.write(self._devices[target], packet)

    def _take(self, device: int) -> None:
        with suppress(BlockingIOError):  # that was all
            for _ in range(AT_ONCE):
                packet = os.read(device, MOST_BYTES)
                if (target := target_of(packet, self._addresses)) is not None:
                    self._network.send(time.monotonic(), self._devices.index(device), target, packet)

    def _obey(self, command: str, host: str = "") -> str:
        if command == "counts":
            return json.dumps(self._network.counts)
        (self._network.cut_off.add if command == "cut" else self._network.cut_off.discard)(int(host))
        return "done"


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    os.nice(NICE)
    cables = Network(len(settings["devices"]), Cable(**settings["cable"]), settings["seed"])
    Switch(settings["devices"], settings["addresses"], cables).run()
