"""What a trainer says is heard once each, in order; log intervals are means over their steps."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.plan import MetricPoint, StepReport, TrainerEvent
from worker.recorder import LossLog, Recorder


def recorded(count: int) -> Recorder:
    recorder = Recorder(workers=2)
    for step in range(1, count + 1):
        recorder.point("loss", step, 10.0 - step)
    return recorder


def steps_of(updates: tuple[MetricPoint | TrainerEvent, ...]) -> list[int]:
    return [update.step for update in updates if isinstance(update, MetricPoint)]


def test_updates_are_numbered_and_those_acknowledged_are_not_resent() -> None:
    recorder = recorded(3)
    assert [(first, steps_of(updates)) for *_, first, updates in [recorder.read(0)]] == [(1, [1, 2, 3])]
    _, _, first, updates = recorder.read(0)  # an answer that was lost is asked for again
    assert (first, steps_of(updates)) == (1, [1, 2, 3])
    _, _, first, updates = recorder.read(2)
    assert (first, steps_of(updates)) == (3, [3])
    recorder.point("loss", 4, 6.0)
    _, _, first, updates = recorder.read(3)
    assert (first, steps_of(updates)) == (4, [4])
    _, _, first, updates = recorder.read(4)
    assert (first, updates) == (5, ())


def test_who_asks_anew_gets_what_is_left() -> None:
    """A controller that was started again knows no number."""
    recorder = recorded(5)
    recorder.read(3)
    _, _, first, updates = recorder.read(0)
    assert (first, steps_of(updates)) == (4, [4, 5])


def test_a_number_that_was_never_given_forgets_no_more_than_there_is() -> None:
    recorder = recorded(2)
    _, _, first, updates = recorder.read(99)
    assert (first, updates) == (3, ())


def test_points_and_events_keep_their_order_and_points_their_time() -> None:
    recorder, before = Recorder(workers=1), time.time()
    recorder.point("a", 1, 0.5)
    recorder.event(event := TrainerEvent("fault", "warning", "lost", {}, 1.0))
    recorder.point("a", 2, 0.25)
    recorder.point("b", 2, 8.0)
    _, latest, _, updates = recorder.read(0)
    assert updates[1] is event
    assert steps_of(updates) == [1, 2, 2]
    assert latest == {"a": 0.25, "b": 8.0}
    times = [update.timestamp for update in updates if isinstance(update, MetricPoint)]
    assert before <= times[0] <= times[1] <= times[2] <= time.time()
    assert recorder.read(4)[1] == latest  # the latest values outlive their acknowledgement


def test_a_look_inside_becomes_points_and_leaves_the_latest_values_alone() -> None:
    recorder = Recorder(workers=1)
    recorder.point("train_loss", 5, 0.5)
    recorder.diagnostics(5, {"layer1.saturation": 0.25, "layer1.bias.update_ratio": float("inf")})
    _, latest, _, updates = recorder.read(0)
    points = [update for update in updates if isinstance(update, MetricPoint)]
    assert [(p.series, p.step, p.value) for p in points[1:]] == [("diagnostics/layer1.saturation", 5, 0.25)]
    assert points[1].timestamp >= points[0].timestamp
    assert latest == {"train_loss": 0.5}


def test_progress_changes_field_by_field() -> None:
    recorder = Recorder(workers=2)
    recorder.progress(phase="training", steps=30)
    recorder.progress(step=4)
    progress = recorder.read(0)[0]
    assert (progress.phase, progress.step, progress.steps, progress.workers) == ("training", 4, 30, 2)


def test_reading_is_hearing() -> None:
    recorder = Recorder(workers=1)
    recorder.heard_at = 0.0
    before = time.monotonic()
    recorder.read(0)
    assert before <= recorder.heard_at <= time.monotonic()


def test_nothing_is_lost_or_heard_twice_between_two_threads() -> None:
    recorder, total = Recorder(workers=1), 20_000

    def write() -> None:
        for step in range(1, total + 1):
            recorder.point("loss", step, 0.0)

    writer = threading.Thread(target=write)
    writer.start()
    heard: list[int] = []
    while len(heard) < total:
        _, _, first, updates = recorder.read(len(heard))
        assert first == len(heard) + 1
        heard += steps_of(updates)
    writer.join()
    assert heard == list(range(1, total + 1))


def report(step: int, loss: float, weight: float = 4.0) -> StepReport:
    return StepReport(step, 4, weight, loss, 1.0, 0.1 * step)


def points(recorder: Recorder, series: str) -> list[tuple[int, float]]:
    updates = recorder.read(0)[3]
    return [(u.step, u.value) for u in updates if isinstance(u, MetricPoint) and u.series == series]


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.5, 9)), min_size=1, max_size=60), st.integers(1, 12))
def test_log_intervals_are_weighted_means_that_cover_each_step_once(
    steps: list[tuple[float, float]], every: int
) -> None:
    recorder, last = Recorder(workers=1), len(steps)
    log = LossLog(recorder, every, last)
    for step, (loss, weight) in enumerate(steps, start=1):
        log.add(report(step, loss, weight))
    wanted = []
    for start in range(0, last, every):
        part = steps[start : start + every]
        mean = sum(loss * weight for loss, weight in part) / sum(weight for _, weight in part)
        wanted.append((min(start + every, last), pytest.approx(mean)))
    assert points(recorder, "train_loss") == wanted
    assert [step for step, _ in points(recorder, "learning_rate")] == [step for step, _ in wanted]


def test_a_training_that_stops_early_says_what_it_had_collected() -> None:
    recorder = Recorder(workers=1)
    log = LossLog(recorder, every=3, last_step=100)
    for step in range(1, 6):
        log.add(report(step, loss=step))
    log.flush(report(5, loss=5))
    assert points(recorder, "train_loss") == [(3, 2.0), (5, 4.5)]
    assert points(recorder, "learning_rate") == [(3, pytest.approx(0.3)), (5, pytest.approx(0.5))]
    log.flush(report(5, loss=5))
    assert len(points(recorder, "train_loss")) == 2  # nothing new: nothing said


def test_steps_whose_rows_have_no_weight_do_not_count() -> None:
    recorder = Recorder(workers=1)
    log = LossLog(recorder, every=2, last_step=4)
    for step, weight in enumerate((0.0, 2.0, 0.0, 0.0), start=1):
        log.add(report(step, loss=7.0 * (weight > 0), weight=weight))
    assert points(recorder, "train_loss") == [(2, 7.0)]
