"""Data-parallel training on two Ray workers, as its users write it: Ray Train with DDP, and a parameter server.

Ray lowers the priority of its workers; not here, where they are compared with processes of full priority. Ray, and all
that it started, ends in `close`.
"""

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np

from benchmarks.contenders import RATE, Array, Case, Contender, Engine
from benchmarks.peers import Torch
from service.embedded import new_token, ray_environment

WORKERS = 2
START_S = 90.0  # Ray Train's workers have come forward by then, or never will


class OnRay(Contender):
    """A cluster of its own on two CPUs, on loopback alone, in a temporary folder."""

    in_other_processes: ClassVar[bool] = True
    spread: ClassVar[bool] = False  # a worker a node

    def prepare(self) -> None:
        # One BLAS thread a process, whatever this one was given.
        os.environ.update(ray_environment(dict(os.environ), new_token()) | {"RAY_worker_niceness": "0"})
        import ray

        self.ray = ray
        self.folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        ray.init(
            address="local", num_cpus=WORKERS, object_store_memory=512 * 2**20, include_dashboard=False,
            log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1", _temp_dir=self.folder.name,
        )  # fmt: skip
        self.train()

    def train(self) -> None:
        """Start the workers."""
        raise NotImplementedError

    def close(self) -> None:
        self.ray.shutdown()
        self.folder.cleanup()


class ParameterServer(OnRay):
    """Each step: put the parameters, two actors compute gradients with our engine, get both, update."""

    def train(self) -> None:
        half = Case(self.case.sizes, self.case.batch // WORKERS)
        data = [self.ray.put(array) for array in (self.features, self.targets)]
        strategy = "SPREAD" if self.spread else "DEFAULT"
        actor = self.ray.remote(num_cpus=1, scheduling_strategy=strategy)(GradientActor)
        self.workers = [actor.remote(half, *data) for _ in range(WORKERS)]
        self.parameters: Array = self.ray.get(self.workers[0].initial.remote()).copy()  # ours to write

    def run(self, steps: int) -> int:
        for _ in range(steps):
            now = self.ray.put(self.parameters)
            first, second = self.ray.get([worker.gradient.remote(now) for worker in self.workers])
            self.parameters -= np.float32(RATE / self.case.batch) * (first + second)
        return steps * self.case.batch


class GradientActor:
    """The actor of the parameter server."""

    def __init__(self, case: Case, features: Array, targets: Array) -> None:
        self.engine = Engine(case, features, targets)

    def initial(self) -> Array:
        """The parameters to begin with."""
        return self.engine.now

    def gradient(self, parameters: Array) -> Array:
        """The gradient of the summed loss of the next minibatch."""
        self.engine.now = parameters
        self.engine.differentiate(self.engine.next_rows())
        return self.engine.gradient


class RayTrain(OnRay):
    """TorchTrainer: PyTorch's own contender in each worker, its network wrapped in DDP over gloo by `prepare_model`."""

    def train(self) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        folder = Path(self.folder.name)
        np.save(folder / "features.npy", self.features)
        np.save(folder / "targets.npy", self.targets)
        server = socket.create_server(("127.0.0.1", 0), backlog=WORKERS)
        server.settimeout(1.0)
        config = {"case": self.case, "folder": str(folder), "address": server.getsockname()}
        trainer = TorchTrainer(
            train_on_a_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=WORKERS, use_gpu=False, placement_strategy="SPREAD" if self.spread else "PACK"
            ),
            run_config=RunConfig(storage_path=str(folder / "results")),
        )
        self.fitting = threading.Thread(target=trainer.fit, name="fit", daemon=True)
        self.fitting.start()
        with server:
            self.workers = [self._accept(server) for _ in range(WORKERS)]

    def _accept(self, server: socket.socket) -> TextIO:
        for _ in range(round(START_S)):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if not self.fitting.is_alive():
                    break
            else:
                connection.settimeout(None)
                return connection.makefile("rw")
        raise RuntimeError("Ray Train's workers did not start")

    def run(self, steps: int) -> int:
        for worker in self.workers:
            print(steps, file=worker, flush=True)
        if not all(worker.readline() for worker in self.workers):
            raise RuntimeError("a worker of Ray Train has ended")
        return steps * self.case.batch

    def close(self) -> None:
        for worker in getattr(self, "workers", ()):
            worker.close()  # the end of its turns
        self.fitting.join(timeout=30)
        super().close()


def train_on_a_worker(config: dict[str, Any]) -> None:
    """Ray Train's training function: as many steps as each line from the benchmark says, half of the batch a worker."""
    from ray.train import get_context
    from ray.train.torch import prepare_model

    case, folder, rank = config["case"], Path(config["folder"]), get_context().get_world_rank()
    half = Case(case.sizes, case.batch // WORKERS)
    contender = Torch(half, *(np.load(folder / f"{name}.npy")[rank::WORKERS] for name in ("features", "targets")))
    contender.network = prepare_model(contender.network)
    with socket.create_connection(config["address"]) as connection, connection.makefile("rw") as turns:
        for line in turns:
            contender.run(int(line))
            print("done", file=turns, flush=True)


RAY_PEERS: dict[str, type[Contender]] = {"Ray Train": RayTrain, "Ray parameter server": ParameterServer}
