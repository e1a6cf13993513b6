"""Jobs on a real Ray: any number of workers, lost workers, trainers and aggregators, controllers that come and go."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.optimizers import OptimizerSpec
from service.child import Child
from service.embedded import own_environment, ray_environment, ray_head
from service.launcher import parent_of
from service.ports import LOOPBACK, free_port, held, listens
from worker.cluster import Cluster, TrainerHandle
from worker.errors import TrainerLost
from worker.exchange import InProcessExchange
from worker.plan import MetricPoint, TrainerEvent, TrainerReport, TrainingPlan, TrainingResult
from worker.pool import Crew
from worker.ray_actors import ACTORS, ANSWER_S, HEALTH, RayRemote, RayTransport
from worker.recorder import Recorder
from worker.trainer import Trainer
from worker.trainer_host import AUTO, OBJECTS

pytestmark = pytest.mark.system

MakePlan = Callable[..., TrainingPlan]
Join = Callable[..., Cluster]
Update = MetricPoint | TrainerEvent
SLOTS = 8
NOBODYS = Crew("nobody's", (), ())
# 36 steps an epoch: half a second or more, over objects many times that.
LONG, LONG_OVER_OBJECTS = {"batch_size": 4, "epochs": 60}, {"batch_size": 4, "epochs": 12}


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)  # polls a condition: nothing tells an outsider


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head as the supervisor starts it; this process, its driver, has the same settings (tests/conftest.py)."""
    port, environment = free_port(), ray_environment(own_environment(), os.environ["RAY_AUTH_TOKEN"])
    folder = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))
    head = Child(ray_head(environment, port, folder, SLOTS), tmp_path_factory.mktemp("ray") / "ray.log", 0.0)
    try:
        with held(LOOPBACK, port):
            wait_for(lambda: listens(LOOPBACK, port), 120)
            yield f"{LOOPBACK}:{port}"
    finally:
        head.kill()
        head.wait(20)  # nothing of it is left then
        assert not folder.exists()


@pytest.fixture
def join(address: str) -> Iterator[Join]:
    """Joins the cluster as a controller does; what still runs at the test's end is ended."""
    joined: list[Cluster] = []

    def opened(orphan_seconds: float = 60.0, exchange: str = AUTO) -> Cluster:
        if joined:
            joined[-1].close()
        joined.append(Cluster(address, orphan_seconds, exchange))
        return joined[-1]

    yield opened
    for cluster in joined[-1:]:
        for handle in cluster.running():
            cluster.kill(handle)
        cluster.close()


@pytest.fixture
def cluster(join: Join) -> Cluster:
    return join()


# On one machine AUTO is shared memory.
each_exchange = pytest.mark.parametrize("exchange", [AUTO, OBJECTS])


class Watch:
    """Polls a job as a controller does, and keeps what it is told."""

    def __init__(self, handle: TrainerHandle) -> None:
        self.handle = handle
        self.updates: list[Update] = []

    def until(self, condition: Callable[[TrainerReport], Any]) -> TrainerReport:
        """The first report that meets it."""
        deadline = time.monotonic() + 60
        while True:
            report = self.handle.poll(len(self.updates))
            assert report.first == len(self.updates) + 1
            self.updates += report.updates
            if condition(report):
                return report
            assert report.outcome is None, report.failure
            assert time.monotonic() < deadline, report.progress
            time.sleep(0.01)

    def result(self) -> TrainingResult:
        """Of a job that succeeds."""
        report = self.until(lambda report: report.outcome is not None)
        assert report.result is not None, report.failure
        return report.result

    @property
    def points(self) -> list[tuple[str, int, float]]:
        return points_of(self.updates)

    @property
    def events(self) -> list[TrainerEvent]:
        return [update for update in self.updates if isinstance(update, TrainerEvent)]


def points_of(updates: Sequence[Update]) -> list[tuple[str, int, float]]:
    return [(update.series, update.step, update.value) for update in updates if isinstance(update, MetricPoint)]


def in_process(plan: TrainingPlan) -> tuple[TrainingResult, list[tuple[str, int, float]]]:
    """What the same plan gives without any other process."""
    recorder = Recorder(workers=1)
    result = Trainer(plan, recorder, InProcessExchange).run()
    return result, points_of(recorder.read(0)[3])


def pids_of(handle: TrainerHandle) -> dict[str, int]:
    """The process of each of the job's actors that live, recruits included, by the actor's name."""
    crew = ACTORS.crews([handle.crew.trainer]).get(handle.crew.trainer, handle.crew)
    return ACTORS.ask(crew.all, ANSWER_S, "__ray_call__", lambda _: os.getpid())


def gone(pids: dict[str, int]) -> bool:
    return not any(parent_of(pid) is not None for pid in pids.values())


@each_exchange
def test_any_number_of_workers_ends_in_the_same_bits(join: Join, make_plan: MakePlan, exchange: str) -> None:
    cluster = join(exchange=exchange)
    plan = make_plan(data={"weight_column": "weight"})
    wanted, points = in_process(plan)
    pids: dict[int, set[int]] = {}
    for workers in (3, 2, 1):
        watch = Watch(cluster.start(replace(plan, job_id=f"job_{workers}"), 1, workers))
        result = watch.result()
        assert result.weights_sha256 == wanted.weights_sha256
        assert (result.numerics, result.metrics, result.worker_failures) == (wanted.numerics, wanted.metrics, 0)
        assert watch.points == points
        pids[workers] = set(pids_of(watch.handle).values())
        assert len(pids[workers]) == workers + 2
        cluster.release(watch.handle)
    assert pids[1] < pids[2] < pids[3]  # released actors wait for the next job


def test_another_seed_gives_other_bits(cluster: Cluster, make_plan: MakePlan) -> None:
    watch = Watch(cluster.start(make_plan(seed=1), 1, 2))
    result = watch.result()
    assert result.weights_sha256 == in_process(make_plan(seed=1))[0].weights_sha256
    assert result.weights_sha256 != in_process(make_plan())[0].weights_sha256
    cluster.release(watch.handle)


@each_exchange
def test_a_killed_worker_costs_no_bit_and_no_step(join: Join, make_plan: MakePlan, exchange: str) -> None:
    cluster = join(exchange=exchange)
    plan = make_plan(**LONG | {"epochs": 300} if exchange == AUTO else LONG_OVER_OBJECTS | {"epochs": 40})
    wanted, points = in_process(plan)
    watch = Watch(cluster.start(plan, 1, 2))
    killed = watch.handle.crew.workers[1]
    pid = pids_of(watch.handle)[killed]
    watch.until(lambda report: report.progress.step > 100)
    os.kill(pid, signal.SIGKILL)
    result = watch.result()
    assert result.weights_sha256 == wanted.weights_sha256
    assert result.worker_failures == 1
    assert watch.points == points
    (event,) = watch.events
    assert (event.type, event.level, event.data["workers"]) == ("fault", "warning", [killed])
    assert 100 < event.data["step"] < wanted.steps
    assert watch.handle.poll(0).progress.workers == 2  # another has joined
    cluster.release(watch.handle)
    assert cluster.capacity().free_worker_slots == SLOTS


@each_exchange
def test_a_job_is_scaled_while_it_runs(join: Join, make_plan: MakePlan, exchange: str) -> None:
    """4 -> 1 -> 6 workers: who leaves waits for other jobs, and comes back."""
    cluster = join(exchange=exchange)
    longer = LONG | {"epochs": 300} if exchange == AUTO else LONG_OVER_OBJECTS
    plan = make_plan(**longer | {"shards": 6})
    wanted, points = in_process(plan)
    watch = Watch(cluster.start(plan, 1, 4))
    pids = set(pids_of(watch.handle).values())
    watch.until(lambda report: report.progress.step > 20)
    watch.handle.scale(1)
    watch.until(lambda report: report.progress.workers == 1)
    wait_for(lambda: watch.until(lambda _: True) and len(watch.handle.crew.workers) == 1)
    assert cluster.capacity().free_worker_slots == SLOTS - 1
    watch.handle.scale(6)
    watch.until(lambda report: report.progress.workers == 6)
    assert pids < set(pids_of(watch.handle).values())
    assert cluster.capacity().free_worker_slots == SLOTS - 6
    with pytest.raises(ValueError, match="workers: 0; expected at least 1"):
        watch.handle.scale(0)
    watch.handle.scale(2)  # the rest, quicker
    result = watch.result()
    assert (result.weights_sha256, result.worker_failures) == (wanted.weights_sha256, 0)
    assert watch.points == points
    assert [(event.data["from"], event.data["to"]) for event in watch.events] == [(4, 1), (1, 6), (6, 2)]
    cluster.release(watch.handle)
    assert cluster.capacity().free_worker_slots == SLOTS


def test_workers_that_leave_go_to_another_job_that_waits_for_them(cluster: Cluster, make_plan: MakePlan) -> None:
    """All slots are taken: the one job waits, goes on when the other gives some back, and nobody is left over."""
    endless = make_plan(**LONG | {"epochs": 10_000, "shards": SLOTS})
    first = Watch(cluster.start(endless, 1, SLOTS))
    first.until(lambda report: report.progress.step > 20)
    second = Watch(cluster.start(make_plan(**LONG, job_id="job_2"), 1, 1))  # its worker finds no place
    first.handle.scale(SLOTS - 3)
    second.until(lambda report: report.progress.step > 20)
    second.handle.scale(3)
    second.until(lambda report: report.progress.workers == 3)
    first.handle.scale(SLOTS)  # more than there is room for
    assert second.result().weights_sha256 == in_process(make_plan(**LONG))[0].weights_sha256
    cluster.release(second.handle)
    first.until(lambda report: report.progress.workers == SLOTS)
    first.handle.cancel()
    first.until(lambda report: report.outcome == "cancelled")
    cluster.release(first.handle)
    assert cluster.capacity().free_worker_slots == SLOTS
    assert cluster.running() == []


def test_a_job_that_waits_for_its_workers_can_be_cancelled(cluster: Cluster, make_plan: MakePlan) -> None:
    endless = make_plan(**LONG | {"epochs": 10_000, "shards": SLOTS})
    first = Watch(cluster.start(endless, 1, SLOTS))
    first.until(lambda report: report.progress.step > 20)
    second = Watch(cluster.start(make_plan(**LONG, job_id="job_2"), 1, 2))
    second.until(lambda report: report.progress.epochs > 0)
    second.handle.cancel()
    second.until(lambda report: report.outcome == "cancelled")
    cluster.release(second.handle)
    assert cluster.capacity().free_worker_slots == 0
    first.handle.cancel()
    first.until(lambda report: report.outcome == "cancelled")
    cluster.release(first.handle)
    assert cluster.capacity().free_worker_slots == SLOTS


def calls_of(names: Sequence[str]) -> list[dict[str, int]]:
    """How often each of these actors' processes has called Ray for an exchange."""

    def counted(_: Any) -> dict[str, int]:
        from worker.ray_actors import CALLS  # that process's own

        return dict(CALLS)

    handles = [RayRemote(name).handle for name in names]
    asked = [handle.__ray_call__.options(concurrency_group=HEALTH).remote(counted) for handle in handles]
    found: list[dict[str, int]] = RayTransport(NOBODYS, []).get(asked)
    return found


def test_no_call_of_ray_happens_inside_a_step(cluster: Cluster, make_plan: MakePlan) -> None:
    """In shared memory: over thousands of steps and their epochs' ends, no process of the job has called Ray."""
    watch = Watch(cluster.start(make_plan(**LONG | {"epochs": 10_000}), 1, 2))
    first = watch.until(lambda report: report.progress.step > 100).progress
    names = (watch.handle.crew.trainer, *watch.handle.crew.workers)
    before = calls_of(names)
    assert before[0]["take_seat"] >= 2  # they are counted
    last = watch.until(lambda report: report.progress.step > first.step + 3000).progress
    assert last.epoch > first.epoch + 50
    assert calls_of(names) == before
    watch.handle.cancel()
    watch.until(lambda report: report.outcome == "cancelled")
    cluster.release(watch.handle)


def test_a_worker_that_hangs_is_replaced_over_objects_too(join: Join, make_plan: MakePlan) -> None:
    """Nothing breaks when a process is stopped: its silence alone tells."""
    cluster = join(exchange=OBJECTS)
    plan = make_plan(**LONG_OVER_OBJECTS)
    watch = Watch(cluster.start(plan, 1, 2))
    stopped = watch.handle.crew.workers[1]
    pid = pids_of(watch.handle)[stopped]
    watch.until(lambda report: report.progress.step > 20)
    os.kill(pid, signal.SIGSTOP)
    result = watch.result()
    assert (result.weights_sha256, result.worker_failures) == (in_process(plan)[0].weights_sha256, 1)
    (event,) = watch.events
    assert event.data["workers"] == [stopped]
    wait_for(lambda: parent_of(pid) is None)
    cluster.release(watch.handle)
    assert cluster.capacity().free_worker_slots == SLOTS


def test_a_worker_does_one_call_at_a_time_and_answers_meanwhile(cluster: Cluster) -> None:
    """Two would compute in the same buffers: when another worker dies in the midst of an evaluation, say."""

    def stay(worker: Any) -> list[str]:
        worker.log = [*getattr(worker, "log", []), "in"]
        while not getattr(worker, "may_leave", False):
            time.sleep(0.01)  # polls a condition
        worker.log.append("out")
        return list(worker.log)

    def let_leave(worker: Any) -> None:
        worker.may_leave = True

    transport = RayTransport(NOBODYS, [])
    worker = transport.recruit(beside=False)
    assert isinstance(worker, RayRemote)
    try:
        calls = [worker.call("__ray_call__", stay) for _ in range(2)]
        assert transport.alive([worker])
        assert not transport.is_ready(calls[0])
        transport.get([worker.handle.__ray_call__.options(concurrency_group=HEALTH).remote(let_leave)])
        assert transport.get(calls) == [["in", "out"], ["in", "out", "in", "out"]]
    finally:
        transport.dismiss(worker)


def test_silent_processes_are_asked_all_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that are stopped cost as long as one: each by itself would cost the whole time of its own."""
    monkeypatch.setattr("worker.ray_actors.ANSWER_S", 3.0)
    transport = RayTransport(NOBODYS, [])
    workers = [worker for _ in range(4) if (worker := transport.recruit(beside=False)) is not None]
    pids = transport.get([worker.call("__ray_call__", lambda _: os.getpid()) for worker in workers])
    for pid in pids[1:]:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert transport.alive(workers) == {workers[0].name}
    assert 3.0 <= time.monotonic() - began < 9.0
    wait_for(lambda: all(parent_of(pid) is None for pid in pids[1:]))  # they were killed for it
    transport.dismiss(workers[0])


def test_a_killed_trainer_is_lost_and_its_crew_is_ended(cluster: Cluster, make_plan: MakePlan) -> None:
    watch = Watch(cluster.start(make_plan(**LONG | {"epochs": 10_000}), 4, 2))
    handle, at_first = watch.handle, watch.handle.crew
    watch.until(lambda report: report.progress.step > 20)
    os.kill(pids_of(handle)[at_first.workers[0]], signal.SIGKILL)
    watch.until(lambda _: watch.events)
    wait_for(lambda: len(pids_of(handle)) == 4)
    pids = pids_of(handle)
    assert not pids.keys() <= set(at_first.all)  # a recruit
    os.kill(pids[handle.crew.trainer], signal.SIGKILL)
    with pytest.raises(TrainerLost) as lost:
        watch.result()
    assert (lost.value.job_id, lost.value.attempt) == ("job_1", 4)
    cluster.kill(handle)
    wait_for(lambda: gone(pids))
    assert cluster.running() == []
    assert cluster.capacity().free_worker_slots == SLOTS


def test_a_trainer_that_has_lost_its_aggregator_is_lost_too(join: Join, make_plan: MakePlan) -> None:
    """There is nothing to go on with; another attempt begins anew."""
    cluster = join(exchange=OBJECTS)
    watch = Watch(cluster.start(make_plan(**LONG), 1, 2))
    watch.until(lambda report: report.progress.step > 20)
    pids = pids_of(watch.handle)
    os.kill(pids[watch.handle.crew.aggregators[0]], signal.SIGKILL)
    with pytest.raises(TrainerLost):
        watch.result()
    cluster.kill(watch.handle)
    wait_for(lambda: gone(pids))


def test_another_controller_finds_the_job_again(join: Join, make_plan: MakePlan) -> None:
    plan = make_plan(**LONG)
    wanted, points = in_process(plan)
    cluster = join()
    watch = Watch(cluster.start(plan, 2, 2))
    watch.until(lambda report: report.progress.step > 20)
    pids = pids_of(watch.handle)
    cluster = join()  # the first one has left
    (found,) = cluster.running()
    assert (found.job_id, found.attempt, found.crew) == ("job_1", 2, watch.handle.crew)
    assert pids_of(found) == pids
    assert cluster.capacity().free_worker_slots == SLOTS - 2
    watch.handle = found
    assert watch.result().weights_sha256 == wanted.weights_sha256
    assert watch.points == points
    cluster.release(found)
    assert cluster.capacity().free_worker_slots == SLOTS
    assert cluster.running() == []


def test_a_job_that_nobody_asks_about_ends_with_its_crew(join: Join, make_plan: MakePlan) -> None:
    cluster = join(orphan_seconds=10.0)
    watch = Watch(cluster.start(make_plan(**LONG | {"epochs": 10_000}), 1, 2))
    watch.until(lambda report: report.progress.step > 20)
    pids = pids_of(watch.handle)
    wait_for(lambda: gone(pids), 60)
    with pytest.raises(TrainerLost):
        watch.handle.poll(0)


def test_failures_and_cancellation_cross_the_processes(cluster: Cluster, make_plan: MakePlan) -> None:
    diverging = Watch(cluster.start(make_plan(optimizer=OptimizerSpec("sgd", 1e6)), 1, 2))
    failure = diverging.until(lambda report: report.outcome == "failed").failure
    assert failure is not None
    assert (failure.code, failure.details["shard"] in (0, 1, 2)) == ("diverged", True)
    cluster.release(diverging.handle)
    endless = Watch(cluster.start(make_plan(**LONG | {"epochs": 10_000}), 1, 2))
    endless.until(lambda report: report.progress.step > 20)
    endless.handle.cancel()
    endless.until(lambda report: report.outcome == "cancelled")
    pids = pids_of(endless.handle)
    cluster.release(endless.handle)
    after = Watch(cluster.start(make_plan(), 1, 2))
    assert after.result().weights_sha256 == in_process(make_plan())[0].weights_sha256
    assert pids_of(after.handle) == pids
    cluster.release(after.handle)
