"""Step plans over the small tables, as a trainer would make them, and an ObjectExchange's processes in memory."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import Processes
from core.parameters import weights_sha256
from worker.aggregator import ParameterAggregator
from worker.crew import Crew
from worker.dataset import PreparedDataset, prepare
from worker.errors import RemoteLost
from worker.exchange import Exchange, InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.object_exchange import ObjectExchange
from worker.plan import Attached, StepPlan, TrainerEvent, TrainingPlan
from worker.sampling import Sampling
from worker.shared_memory import SharedMemoryExchange
from worker.socket_exchange import SocketExchange

SEED = 5
STEPS = 12  # two epochs and a bit of the table `classes`

MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]


@pytest.fixture
def make_step_plan(make_plan: Callable[..., TrainingPlan]) -> MakeStepPlan:
    """The step plan of `make_plan`'s plan, and its prepared dataset; `dtype`: the network's."""

    def make(table: str = "classes", dtype: str = "float32", **changes: Any) -> tuple[StepPlan, PreparedDataset]:
        plan = make_plan(table, **changes)
        prepared = prepare(plan.data)
        fitted = prepared.preprocessing
        sampling = Sampling(prepared.rows["train"], plan.batch_size, plan.shards, plan.seed)
        network = replace(plan.network, inputs=fitted.width, outputs=fitted.outputs, dtype=dtype)
        steps = plan.epochs * sampling.steps_per_epoch
        folder = str(prepared.folder)
        return (
            StepPlan(folder, network, sampling, plan.optimizer, plan.schedule, steps, plan.threads_per_worker),
            prepared,
        )

    return make


@dataclass
class Reference:
    """A call's result, or why there is none."""

    value: Any = None
    error: Exception | None = None


@dataclass
class MemoryRemote:
    """A process of the test's: calls run at once, what goes in and out is pickled, and it dies when it is told to.

    `dies(method, arguments)` is asked at each call: "before" it runs, "after" it has run (its result is lost then).
    """

    name: str
    target: Any
    dies: Callable[[str, tuple[Any, ...]], str] = lambda method, arguments: ""
    alive: bool = True
    ready: bool = True
    calls: list[str] = field(default_factory=list)

    def call_beside(self, method: str, *arguments: Any) -> Any:
        return self.call(method, *arguments)

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        result = self._run(method, arguments)
        if returns == 1:
            return result
        if result.error is not None:
            return [result] * returns
        assert len(result.value) == returns
        return [Reference(part) for part in result.value]

    def _run(self, method: str, arguments: tuple[Any, ...]) -> Reference:
        for argument in arguments:
            if isinstance(argument, Reference) and argument.error is not None:
                return argument  # what it depends on is lost: the call does not run
        fate = self.dies(method, arguments) if self.alive else ""
        if fate == "before":
            self.alive = False
        if not self.alive:
            return Reference(error=RemoteLost(self.name))
        self.calls.append(method)
        values = [shipped(a.value if isinstance(a, Reference) else a) for a in arguments]
        try:
            result = Reference(shipped(getattr(self.target, method)(*values)))
        except Exception as error:
            result = Reference(error=shipped(error))
        if fate == "after":
            self.alive = False
            return Reference(error=RemoteLost(self.name))
        return result


def shipped(value: Any) -> Any:
    """As it arrives in another process: a copy, and arrays are read-only."""
    copy = pickle.loads(pickle.dumps(value))
    for array in copy if isinstance(copy, tuple | list) else (copy,):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return copy


@dataclass
class MemoryTransport:
    """Whatever `make(name)` gives is a worker."""

    make: Callable[[str], MemoryRemote]
    recruits: list[MemoryRemote] = field(default_factory=list)
    dismissed: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def get(self, references: Sequence[Reference]) -> list[Any]:
        for reference in references:
            if reference.error is not None:
                raise reference.error
        return [reference.value for reference in references]

    def address(self, remote: MemoryRemote) -> str:
        return "127.0.0.1"

    def alive(self, remotes: Sequence[MemoryRemote]) -> set[str]:
        return {remote.name for remote in remotes if remote.alive}

    def is_ready(self, reference: Reference) -> bool:
        return all(remote.ready for remote in self.recruits)

    def wait(self, references: Sequence[Reference], seconds: float) -> bool:
        """Who waits for recruits does so for long enough."""
        self.waited.append(seconds)
        if any(isinstance(reference.value, Attached) for reference in references):
            for remote in self.recruits:
                remote.ready = True
        return bool(references)

    def release(self, remote: MemoryRemote, detached: Reference) -> None:
        self.released.append(remote.name)

    def recruit(self, beside: bool = False) -> MemoryRemote:
        remote = self.make(f"recruit{len(self.recruits)}")
        self.recruits.append(remote)
        return remote

    def dismiss(self, remote: MemoryRemote) -> None:
        remote.alive = False
        self.dismissed.append(remote.name)


def plain(name: str) -> MemoryRemote:
    return MemoryRemote(name, GradientWorker())


@dataclass
class Site:
    """An ObjectExchange over `count` workers and `shares` aggregators, with all that tests look at or break."""

    plain = staticmethod(plain)

    plan: StepPlan
    count: int
    transport: MemoryTransport = field(default_factory=lambda: MemoryTransport(plain))
    shares: int = 1
    events: list[TrainerEvent] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.workers = [self.transport.make(f"w{k}") for k in range(self.count)]
        self.aggregators = [MemoryRemote(f"aggregator{k}", ParameterAggregator()) for k in range(self.shares)]
        self.aggregator = self.aggregators[0]

    def open(self) -> ObjectExchange:
        crew = Crew(self.plan, self.workers, self.transport, self.events.append, lambda: self.now)
        crew.admit(wait=True)
        return ObjectExchange(self.plan, SEED, crew, self.aggregators, self.transport, lambda: self.now)


@pytest.fixture
def site() -> type[Site]:
    return Site


class Elsewhere(GradientWorker):
    """A worker that says it is on another machine: its vectors go over the links."""

    def attach(self, plan: StepPlan) -> Attached:
        return replace(super().attach(plan), machine="another")


def on_node(kind: type, number: int, nodes: int) -> type:
    """Of a process that sees one of so many machines, as where somebody has made several nodes of this one."""

    class OnNode(kind):
        def __init__(self) -> None:
            os.environ["RAY_RAYLET_PID"] = f"node {number % nodes}"
            super().__init__()

    return OnNode if nodes else kind


class SocketBench:
    """A socket exchange over processes of this machine, with all that tests look at or break."""

    def __init__(
        self,
        plan: StepPlan,
        workers: int,
        shares: int,
        apart: int = 0,
        nodes: int = 0,
        transport: Processes | None = None,
        worker: type = GradientWorker,
        aggregator: type = ParameterAggregator,
        seed: int = SEED,
    ) -> None:
        """`apart`: how many of the workers are as if they were on another machine; `nodes`: to how many machines all
        processes are dealt."""
        self.transport, self.events = transport or Processes(), list[TrainerEvent]()
        kinds = [Elsewhere] * apart + [worker] * (workers - apart)
        self.workers = [self.transport.recruit(on_node(kind, k, nodes)) for k, kind in enumerate(kinds)]
        self.aggregators = [self.transport.recruit(on_node(aggregator, k, nodes)) for k in range(shares)]
        self.crew = Crew(plan, self.workers, self.transport, self.events.append)
        self.crew.admit(wait=True)
        self.exchange = SocketExchange(plan, seed, self.crew, self.aggregators, self.transport)

    def close(self) -> None:
        self.exchange.close()
        self.transport.close()


@pytest.fixture
def socket_bench() -> Iterator[Callable[..., SocketBench]]:
    """Opens one, whose processes end with the test."""
    with ExitStack() as stack:

        def opened(*arguments: Any, **named: Any) -> SocketBench:
            found = SocketBench(*arguments, **named)
            stack.callback(found.close)
            return found

        yield opened


@pytest.fixture
def open_over() -> Iterator[Callable[[str, StepPlan, int], Exchange]]:
    """Opens an exchange of the kind that is named, over two workers; their processes end with the test."""
    with ExitStack() as stack:

        def opened(kind: str, plan: StepPlan, seed: int) -> Exchange:
            if kind == "in process":
                return InProcessExchange(plan, seed)
            if kind == "objects":
                found = Site(plan, 2)
                crew = Crew(plan, found.workers, found.transport, found.events.append)
                crew.admit(wait=True)
                return ObjectExchange(plan, seed, crew, found.aggregators, found.transport)
            if kind == "sockets":
                bench = SocketBench(plan, 2, 2, apart=1, seed=seed)
                stack.callback(bench.transport.close)
                return bench.exchange
            processes = Processes()
            stack.callback(processes.close)
            crew = Crew(plan, [processes.recruit() for _ in range(2)], processes, lambda event: None)
            crew.admit(wait=True)
            return SharedMemoryExchange(plan, seed, crew, processes)

        yield opened


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that the tests' networks have many, and whoever reduces has some."""
    monkeypatch.setattr("core.parameters.BLOCK", 64)


@pytest.fixture
def plan(make_step_plan: MakeStepPlan) -> StepPlan:
    return make_step_plan(data={"weight_column": "weight"})[0]


@pytest.fixture
def wanted(plan: StepPlan) -> str:
    """The weights' hash after STEPS steps, by the plainest of programs."""
    worker, aggregator = GradientWorker(), ParameterAggregator()
    worker.attach(plan)
    parameters = aggregator.begin(plan, SEED)
    for step in range(1, STEPS + 1):
        parameters, _ = aggregator.apply_parts(step, *worker.gradients(step, (0, 1, 2), parameters))
    return weights_sha256(parameters)
