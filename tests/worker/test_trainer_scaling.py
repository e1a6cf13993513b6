"""Whole trainings that are scaled while they run, on request or by `auto_workers`, over processes of this machine."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.processes import Processes
from worker import futex, probe
from worker.crew import Crew
from worker.exchange import Exchange, InProcessExchange
from worker.plan import StepPlan, StepReport, TrainerEvent, TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.shared_memory import SharedMemoryExchange
from worker.trainer import Trainer

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
MakePlan = Callable[..., TrainingPlan]
LONG = {"batch_size": 4, "epochs": 100, "shards": 4}  # 3,600 steps: long enough for workers to join in them


class Training:
    """A trainer over `workers` processes. `after(steps, workers)` is called between chunks."""

    def __init__(
        self, plan: TrainingPlan, workers: int, clock: Callable[[], float] | None = None, **options: Any
    ) -> None:
        self.plan, self.count, self.transport, self.recorder = plan, workers, Processes(), Recorder(workers)
        self.after: Callable[[int, int], None] = options.get("after", lambda steps, workers: None)
        timing = {} if clock is None else {"clock": clock}
        self.trainer = Trainer(plan, self.recorder, self.open, **timing)
        self.crowd: list[int] = []  # how many workers there were, chunk by chunk
        self.chunks: list[int] = []  # and how many steps each had

    def open(self, plan: StepPlan, seed: int) -> Exchange:
        recruits = [self.transport.recruit() for _ in range(self.count)]
        crew = Crew(plan, recruits, self.transport, self.recorder.event, look=self.trainer.look_around)
        crew.admit(wait=True)
        training = self

        class Watched(SharedMemoryExchange):
            def run_steps(self, count: int) -> list[StepReport]:
                reports = super().run_steps(count)
                training.crowd.append(self.workers)
                training.chunks.append(len(reports))
                training.after(reports[-1].step, self.workers)
                return reports

        return Watched(plan, seed, crew, self.transport)

    def run(self) -> TrainingResult:
        try:
            return self.trainer.run()
        finally:
            self.transport.close()

    @property
    def events(self) -> list[TrainerEvent]:
        return [update for update in self.recorder.read(0)[3] if isinstance(update, TrainerEvent)]

    @property
    def numbers(self) -> list[int]:
        """How many workers there were, each number once where it stayed."""
        return [number for number, _ in itertools.groupby(self.crowd)]


def in_process(plan: TrainingPlan) -> TrainingResult:
    return Trainer(plan, Recorder(1), InProcessExchange).run()


def test_a_training_is_scaled_down_and_up_on_request(make_plan: MakePlan) -> None:
    plan, at = make_plan(**LONG), {0: 4}

    def ask(step: int, workers: int) -> None:
        if step > 100 and 1 not in at:
            at[1] = step
            training.trainer.scale(1)
        elif 1 in at and step > at[1] + 100 and 3 not in at:
            at[3] = step
            training.trainer.scale(3)

    training = Training(plan, 4, after=ask)
    result = training.run()
    assert result.weights_sha256 == in_process(plan).weights_sha256
    assert (training.numbers[:2], training.numbers[-1]) == ([4, 1], 3)
    assert [(event.data["from"], event.data["to"]) for event in training.events] == [(4, 1), (1, 3)]
    assert training.recorder.read(0)[0].workers == 3


def test_asked_for_before_it_begins(make_plan: MakePlan) -> None:
    training = Training(make_plan(shards=4), 3)
    training.trainer.scale(1)
    training.run()
    assert set(training.crowd) == {1}


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(make_plan: MakePlan, workers: int) -> None:
    trainer = Trainer(make_plan(), Recorder(1), InProcessExchange)
    with pytest.raises(ValueError, match=f"workers: {workers}; expected at least 1"):
        trainer.scale(workers)


class Clock:
    """Seconds a step as the test has it, by the number of workers: nothing real is timed."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.step = 0.0, seconds, 0

    def __call__(self) -> float:
        return self.now

    def after(self, step: int, workers: int) -> None:
        self.now += (step - self.step) * self.seconds.get(workers, 0.01)
        self.step = step


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tests' few steps, some hundred are enough to ask for."""
    monkeypatch.setattr(probe, "WORTH_S", 0.5)


@pytest.mark.parametrize(("seconds", "chosen"), [({4: 0.004, 1: 0.001}, 1), ({4: 0.002, 1: 0.006}, 4)])
def test_auto_stays_with_what_was_faster(make_plan: MakePlan, seconds: dict[int, float], chosen: int) -> None:
    plan, clock = make_plan(**LONG, auto_workers=True), Clock(seconds)
    training = Training(plan, 4, clock, after=clock.after)
    result = training.run()
    assert result.weights_sha256 == in_process(plan).weights_sha256
    (decided,) = (event for event in training.events if "examples_per_second" in event.data)
    assert decided.data["workers"] == chosen
    measured = {number: 4 / each for number, each in seconds.items()}
    assert decided.data["examples_per_second"] == pytest.approx({str(k): v for k, v in measured.items()}, rel=0.1)
    assert decided.message.startswith(f"workers: auto goes on with {chosen}: ")
    assert training.numbers[:2] == [4, 1]
    assert training.numbers[-1] == chosen


def test_a_request_settles_auto(make_plan: MakePlan) -> None:
    clock = Clock({4: 0.004, 1: 0.001, 3: 0.002})

    def ask(step: int, workers: int) -> None:
        clock.after(step, workers)
        if workers == 1:
            training.trainer.scale(3)

    training = Training(make_plan(**LONG, auto_workers=True), 4, clock, after=ask)
    training.run()
    assert training.numbers[-1] == 3
    assert not [event for event in training.events if "examples_per_second" in event.data]


def test_without_auto_nothing_is_tried(make_plan: MakePlan) -> None:
    training = Training(make_plan(**LONG), 2)
    training.run()
    assert (set(training.crowd), training.events) == ({2}, [])


def test_in_one_process_there_is_nothing_to_decide(make_plan: MakePlan) -> None:
    recorder = Recorder(1)
    result = Trainer(make_plan(auto_workers=True), recorder, InProcessExchange).run()
    assert result.weights_sha256 == in_process(make_plan()).weights_sha256
    (event,) = (update for update in recorder.read(0)[3] if isinstance(update, TrainerEvent))
    assert (event.data["workers"], event.data["examples_per_second"]) == (1, {})
