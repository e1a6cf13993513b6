"""Ray's autoscaler over nodes on this machine: its own process, and a provider that starts and ends real raylets.

`ray.cluster_utils.AutoscalingCluster` begins and ends with `ray stop --force`, which ends every Ray of the machine, and
the ids of its nodes all begin with the digits that actors' names have of them. This provider is of KubeRay's kind.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.autoscaler._private.monitor as monitor
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_legacy_autoscaling_config_fields
from ray.autoscaler.batching_node_provider import BatchingNodeProvider, NodeData, ScaleRequest
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, STATUS_UP_TO_DATE

from benchmarks.ray_nodes import RayNodes
from service.child import Child
from service.embedded import Command

HEAD, FURTHER = "head", "further"  # kinds of nodes
ROOT = Path(__file__).parents[2]


class Provider(BatchingNodeProvider):  # type: ignore[misc]
    """Runs in the autoscaler's process. `head` and `further` of its configuration: addresses, and how nodes start."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._running: dict[str, Child] = {}  # by address

    def get_node_data(self) -> dict[str, NodeData]:
        found = {HEAD: NodeData(NODE_KIND_HEAD, HEAD, self.provider_config["head"], STATUS_UP_TO_DATE)}
        for address in self._running:
            found[address] = NodeData(NODE_KIND_WORKER, FURTHER, address, STATUS_UP_TO_DATE)
        return found

    def submit_scale_request(self, scale_request: ScaleRequest) -> None:
        for address in scale_request.workers_to_delete:
            node = self._running.pop(address)
            node.kill()
            node.wait(20)
        while len(self._running) < scale_request.desired_num_workers.get(FURTHER, 0):
            free = (each for each in self.provider_config["further"] if each["address"] not in self._running)
            each = next(free)
            command = Command(**each["command"] | {name: Path(each["command"][name]) for name in ("folder", "remove")})
            command.folder.mkdir(exist_ok=True)
            self._running[each["address"]] = Child(command, Path(each["log"]), 0.0)


@contextmanager
def autoscaler(nodes: RayNodes, slots: int, most: int, idle_seconds: float, folder: Path) -> Iterator[None]:
    """Adds nodes 1 to `most` of `nodes`, each with so many `slots`, and takes away what is idle for so long."""
    further: list[dict[str, Any]] = [
        {
            "address": nodes.ip(number),
            "command": asdict(nodes.command(number)),
            "log": str(folder / f"node{number}.log"),
        }
        for number in range(1, most + 1)
    ]
    flags = dict.fromkeys(("disable_node_updaters", "disable_launch_config_check", "foreground_node_launch"), True)
    provider = {"type": "external", "module": f"{__name__}.Provider", "worker_liveness_check": False}
    node = {"node_config": {}, "min_workers": 0}
    kinds = {
        HEAD: node | {"resources": {"CPU": 1, "worker_slots": 1}, "max_workers": 0},
        FURTHER: node | {"resources": {"CPU": slots, "worker_slots": slots}, "max_workers": most},
    }
    config = {
        "cluster_name": "fallline",
        "provider": provider | flags | {"head": nodes.ip(0), "further": further},
        "available_node_types": kinds,
        "head_node_type": HEAD,
        "max_workers": most,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1000,
        **_generate_legacy_autoscaling_config_fields(),
    }
    path, log = folder / "autoscaler.yaml", folder / "autoscaler.log"
    path.write_text(json.dumps(config, default=str))  # which is YAML, too
    arguments = [sys.executable, monitor.__file__, f"--gcs-address={nodes.address}", f"--autoscaling-config={path}"]
    environment = nodes.environment | {"PYTHONPATH": str(ROOT), "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    process = Child(Command([*arguments, f"--logs-dir={folder}"], environment, folder), log, 0.0)
    try:
        yield
    finally:
        process.kill()
        process.wait(20)
        for each in further:
            shutil.rmtree(each["command"]["folder"], ignore_errors=True)  # of one that was never started
