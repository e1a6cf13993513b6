"""Workers as plain processes: what the exchanges' tests rest on."""

import os
import signal
from contextlib import closing

import pytest

from benchmarks.processes import Processes
from worker.errors import RemoteLost


def test_who_was_lost_is_not_alive_though_the_system_is_still_ending_it() -> None:
    """Otherwise an exchange finds nobody dead, and gives up. A process closes its pipe before it is a dead one."""
    with closing(Processes(list)) as transport:
        for _ in range(20):
            worker = transport.recruit()
            transport.get([worker.call("__len__")])
            os.kill(transport.remote(worker.name).process.pid, signal.SIGKILL)
            with pytest.raises(RemoteLost):
                transport.get([worker.call("__len__")])
            assert not transport.alive([worker])
