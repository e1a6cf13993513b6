"""Contenders over the nodes of one cluster that is there already: ours over sockets, and Ray's users' ways.

Two workers, one a node. `NODES_ADDRESS` in the environment is the head's address; its token is there, too.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.distribution import WORKERS, step_plan
from benchmarks.prepared_arrays import write_prepared
from benchmarks.ray_peers import OnRay, ParameterServer, RayTrain

ADDRESS = "NODES_ADDRESS"


class OnNodes(OnRay):
    """Joins the cluster, and leaves it as it was."""

    spread = True

    def prepare(self) -> None:
        import ray

        self.ray = ray
        self.folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        ray.init(address=os.environ[ADDRESS], log_to_driver=False, logging_level="error")
        self.train()


class ServerOverNodes(OnNodes, ParameterServer):
    """A parameter server whose actors are on two nodes."""


class RayTrainOverNodes(OnNodes, RayTrain):
    """DDP over two nodes."""


class Ours(Contender):
    """Workers and aggregators on both nodes, this process the trainer."""

    in_other_processes = True

    def prepare(self) -> None:
        from worker.cluster import Cluster
        from worker.crew import Crew
        from worker.placement import SPREAD
        from worker.pool import Pool
        from worker.ray_actors import ACTORS, RayTransport
        from worker.socket_exchange import SocketExchange

        self.folder = tempfile.TemporaryDirectory(prefix="fallline-", ignore_cleanup_errors=True)
        data = write_prepared(Path(self.folder.name) / "data", self.features, self.targets)
        plan = replace(step_plan(data, self.case.batch, WORKERS), data_sha256=data.sha256)
        self.cluster, self.pool = Cluster(os.environ[ADDRESS], 60.0, placement=SPREAD), Pool(ACTORS, SPREAD)
        self.actors = self.pool.take(WORKERS)
        transport = RayTransport(self.actors, list(self.actors.workers))
        crew = Crew(plan, [transport.remote(name) for name in self.actors.workers], transport, lambda _: None)
        crew.admit(wait=True)
        aggregators = [transport.remote(name) for name in self.actors.aggregators]
        self.exchange = SocketExchange(plan, 0, crew, aggregators, transport)

    def run(self, steps: int) -> int:
        self.exchange.run_steps(steps)
        return steps * self.case.batch

    def close(self) -> None:
        self.exchange.close()
        self.pool.forget(self.actors.trainer)
        self.cluster.close()
        self.folder.cleanup()


NODE_CONTENDERS: dict[str, type[Contender]] = {
    "ours over nodes": Ours,
    "Ray Train over nodes": RayTrainOverNodes,
    "Ray parameter server over nodes": ServerOverNodes,
}
