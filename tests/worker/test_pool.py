"""Which actors wait and whose the others are, over actors that are nothing but names."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from worker.placement import PACK, SPREAD, Node
from worker.pool import AGGREGATOR, NOBODY, TRAINER, WORKER, YOUNG_S, Crew, Pool, kind_of, node_of, recruit


class Names:
    """Actors in memory. A name in `silent` does not answer."""

    def __init__(self, *nodes: Node) -> None:
        self.there = nodes or (Node("here", 8, 8),)
        self.held = dict[str, str]()  # by name, trainers and aggregators included
        self.silent, self.killed = set[str](), list[str]()
        self.asked = list[set[str]]()  # who was, each time
        self.jobs: dict[str, Crew] = {}

    def names(self) -> set[str]:
        return set(self.held)

    def nodes(self) -> Sequence[Node]:
        return self.there

    def create(self, name: str, holder: str = NOBODY) -> None:
        self.held[name] = holder

    def answering(self, names: Sequence[str]) -> set[str]:
        self.asked.append(set(names))
        for name in self.silent.intersection(names):
            self.kill(name)
        return set(names) & set(self.held)

    def ended(self, aggregators: Iterable[str]) -> set[str]:
        return self.answering(sorted(aggregators))

    def hold(self, worker: str, holder: str) -> bool:
        if not self.answering([worker]) or self.held[worker] != NOBODY:
            return False
        self.held[worker] = holder
        return True

    def holders(self, workers: Iterable[str], seconds: float) -> dict[str, str]:
        return {name: self.held[name] for name in workers if name in self.held and name not in self.silent}

    def crews(self, trainers: Iterable[str]) -> dict[str, Crew]:
        return {name: self.jobs[name] for name in trainers if name in self.jobs and name in self.held}

    def reset(self, trainer: str) -> None:
        del self.jobs[trainer]

    def kill(self, name: str) -> None:
        if self.held.pop(name, None) is not None:
            self.killed.append(name)

    def workers(self, holder: str) -> set[str]:
        return {name for name, held_by in self.held.items() if kind_of(name) == WORKER and held_by == holder}

    def detach(self, crew: Crew) -> None:
        for name in crew.workers:
            self.held[name] = NOBODY


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def pool(names: Names) -> Pool:
    return Pool(names)


def start(names: Names, pool: Pool, workers: int) -> Crew:
    """A job that runs."""
    crew = pool.take(workers)
    names.jobs[crew.trainer] = crew
    return crew


def recruited(names: Names, pool: Pool, crew: Crew) -> tuple[Crew, str | None]:
    own = list(crew.workers)
    name = recruit(names, crew, own)
    names.jobs[crew.trainer] = replace(crew, workers=tuple(own))
    return names.jobs[crew.trainer], name


def test_actors_of_an_ended_job_wait_for_the_next(names: Names, pool: Pool) -> None:
    pool.warm(1, 2)
    warm = names.names()
    assert sorted(map(kind_of, warm)) == [WORKER, WORKER, AGGREGATOR, TRAINER]
    first = start(names, pool, 2)
    assert (set(first.all), pool.held) == (warm, 2)
    assert names.workers(first.trainer) == set(first.workers)
    names.detach(first)
    pool.release(first.trainer)
    second = start(names, pool, 3)
    assert (set(first.workers) < set(second.workers), second.trainer, len(names.held)) == (True, first.trainer, 5)
    assert names.killed == []


def test_there_are_never_more_workers_than_slots(names: Names, pool: Pool) -> None:
    pool.warm(0, 99)
    assert len(names.held) == 8
    crew = start(names, pool, 6)
    other = start(names, pool, 4)
    assert (len(crew.workers), len(other.workers), pool.held) == (6, 2, 8)
    assert recruited(names, pool, crew)[1] is None


def test_a_recruit_is_one_that_waits_or_else_a_new_one(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 1)
    pool.warm(1, 1)
    (idle,) = names.workers(NOBODY)
    crew, first = recruited(names, pool, crew)
    crew, second = recruited(names, pool, crew)
    assert first == idle
    assert second not in (None, idle)
    assert names.workers(crew.trainer) == set(crew.workers)
    pool.saw(crew.trainer, crew.workers)
    assert pool.held == 3
    other = start(names, pool, 2)  # the pool's guess was that `idle` waits
    assert not set(other.workers) & set(crew.workers)


def test_one_that_was_taken_meanwhile_is_left_alone(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 1)
    pool.warm(1, 1)
    crew, taken = recruited(names, pool, crew)
    other = start(names, pool, 2)  # the trainer has not been heard since
    assert taken not in other.workers
    assert (names.held[str(taken)], names.killed) == (crew.trainer, [])


def test_who_has_left_a_job_waits_for_others(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 3)
    left = crew.workers[2]
    names.held[left] = NOBODY
    assert pool.saw(crew.trainer, crew.workers[:2]).workers == crew.workers[:2]
    assert pool.held == 2
    assert start(names, pool, 1).workers == (left,)


def test_a_lost_jobs_processes_end_recruits_included_and_others_do_not(names: Names, pool: Pool) -> None:
    crew, other = start(names, pool, 2), start(names, pool, 1)
    crew, unknown = recruited(names, pool, crew)  # nobody has heard of it
    other, theirs = recruited(names, pool, other)
    pool.warm(1, 1)
    idle = names.workers(NOBODY)
    names.kill(crew.trainer)
    names.silent.add(crew.workers[0])
    pool.forget(crew.trainer)
    assert {unknown, *crew.aggregators, *crew.workers} <= set(names.killed)
    assert {theirs, other.trainer, *other.workers, *idle} <= names.names()


def test_a_worker_that_had_left_a_lost_job_lives_on_with_its_next(names: Names, pool: Pool) -> None:
    crew, other = start(names, pool, 2), start(names, pool, 1)
    names.held[crew.workers[1]] = NOBODY
    other, theirs = recruited(names, pool, other)
    assert theirs == crew.workers[1]
    pool.forget(crew.trainer)
    assert crew.workers[0] in names.killed
    assert names.workers(other.trainer) == set(other.workers)


def test_a_worker_that_does_not_let_go_of_an_ended_job_ends(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 2)
    names.held[crew.workers[0]] = NOBODY
    pool.release(crew.trainer)
    assert names.killed == [crew.workers[1]]


def test_another_controller_finds_everything_again(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 2)
    pool.warm(1, 2)
    idle = names.workers(NOBODY)
    names.create("GradientWorker-here-stray", "TrainerHost-gone")
    names.create("GradientWorker-here-stuck")
    names.silent.add("GradientWorker-here-stuck")
    again = Pool(names)
    assert (again.busy, again.held) == ({crew.trainer: crew}, 2)
    assert sorted(names.killed) == ["GradientWorker-here-stray", "GradientWorker-here-stuck"]
    assert set(again.take(2).workers) == idle


def test_silent_trainers_and_aggregators_are_asked_all_at_once_and_end(names: Names, pool: Pool) -> None:
    """Each alone would keep the controller waiting for as long as all of them do."""
    pool.warm(2, 0)
    idle = names.names()
    names.silent, names.asked = idle - {min(idle)}, []
    again = Pool(names)
    by_kind = [{name for name in idle if kind_of(name) == kind} for kind in (TRAINER, AGGREGATOR)]
    assert (names.asked, names.names(), set(names.killed)) == (by_kind, {min(idle)}, names.silent)
    names.create("ParameterAggregator-there-0")
    crew = replace(start(names, again, 1), aggregators=("ParameterAggregator-here-0", "ParameterAggregator-there-0"))
    names.jobs[crew.trainer], names.asked = crew, []
    names.detach(crew)
    again.release(crew.trainer)
    assert names.asked == [set(crew.aggregators)]


def test_a_trainer_that_is_gone_when_its_job_is_released(names: Names, pool: Pool) -> None:
    crew = start(names, pool, 1)
    names.kill(crew.trainer)
    pool.release(crew.trainer)
    assert (names.held, pool.held) == ({}, 0)


NODES = (Node("a", 2, 4), Node("b", 2, 4), Node("c", 2, 4))


def per_node(crew: Crew) -> list[int]:
    found = Counter(map(node_of, crew.workers))
    return [found[node.name] for node in NODES]


def test_a_jobs_workers_are_packed_onto_few_nodes_or_spread_over_all() -> None:
    packed, spread = Pool(Names(*NODES), PACK), Pool(Names(*NODES), SPREAD)
    for workers, wanted in ((2, [2, 0, 0]), (1, [0, 1, 0]), (2, [0, 0, 2])):
        assert per_node(packed.take(workers)) == wanted
    assert per_node(spread.take(3)) == [1, 1, 1]
    assert sorted(per_node(spread.take(4))) == [1, 1, 2]


@pytest.mark.parametrize(("age", "asks"), [(YOUNG_S, 2), (YOUNG_S - 1, 3)], ids=["up", "may be starting"])
def test_once_one_is_silent_the_others_that_wait_on_its_node_are_asked_all_at_once(age: float, asks: int) -> None:
    names, now = Names(*NODES[:2]), [0.0]
    pool = Pool(names, SPREAD, clock=lambda: now[0])
    pool.warm(1, 6)
    names.silent, names.asked, now[0] = {name for name in names.names() if node_of(name) == "b"}, [], age
    crew = pool.take(2)
    assert set(names.killed) == names.silent
    assert len([asked for asked in names.asked if asked & names.silent]) == asks
    assert sorted(map(node_of, crew.workers)) == ["a", "b"]


def test_where_all_slots_are_taken_no_trainer_waits_elsewhere() -> None:
    """The first node has none, and its disk is not for jobs."""
    names = Names(Node("a", 2, 0), Node("b", 2, 2, has_home=True))
    pool = Pool(names)
    start(names, pool, 2)
    pool.warm(1, 1)
    assert {node_of(name) for name in names.names()} == {"b"}


def test_trainers_stay_on_the_first_node_and_an_aggregator_stands_on_each_that_has_workers() -> None:
    pool = Pool(Names(Node("a", 2, 0), *NODES[1:]), SPREAD)
    crew = pool.take(3)
    assert node_of(crew.trainer) == "a"
    assert [node_of(name) for name in crew.aggregators] == ["b", "c"]
    assert [node_of(name) for name in pool.take(0).aggregators] == ["a"]


HOMES = (Node("controller", 0, 0, has_home=True), Node("b", 2, 4, has_home=True), Node("c", 2, 4))


def test_a_trainer_stands_beside_its_workers_where_all_are_on_one_node_that_has_the_home() -> None:
    pool = Pool(Names(*HOMES), PACK)
    crews = [pool.take(workers) for workers in (2, 1, 4)]
    assert [{node_of(name) for name in crew.workers} for crew in crews] == [{"b"}, {"c"}, {"b", "c"}]
    assert [node_of(crew.trainer) for crew in crews] == ["b", "controller", "controller"]


def test_a_trainer_is_made_ahead_where_the_next_job_is_to_be() -> None:
    names = Names(*HOMES)
    pool = Pool(names, PACK)
    for _ in range(2):  # the second time there is nothing to do
        pool.warm(1, 2)
        assert sorted(name[:-9] for name in names.held) == [
            "GradientWorker-b", "GradientWorker-b", "ParameterAggregator-b", "TrainerHost-b"
        ]  # fmt: skip
    made = names.names()
    assert set(pool.take(2).all) == made
    pool.warm(1, 0)
    assert {node_of(name) for name in names.names() - made} == {"controller"}  # `c`, whose turn it is, has no home


def test_idle_workers_are_taken_where_the_job_is_to_be() -> None:
    names = Names(*NODES)
    pool = Pool(names, PACK)
    names.create("GradientWorker-c-1")
    pool = Pool(names, PACK)
    assert per_node(pool.take(2)) == [2, 0, 0]
    spread = Pool(names, SPREAD)
    assert "GradientWorker-c-1" in spread.take(3).workers


def test_a_recruit_comes_from_the_trainers_node_where_it_must() -> None:
    names = Names(*NODES)
    pool = Pool(names, PACK)
    crew = start(names, pool, 4)
    assert per_node(crew) == [2, 2, 0]
    own = list(crew.workers)
    beside = [recruit(names, crew, own, beside=True) for _ in range(3)]
    assert [node_of(name) for name in beside[:2] if name] == ["a", "a"]
    assert beside[2] is None
    further = recruit(names, crew, own)
    assert node_of(str(further)) == "c"  # it has idle cores


def test_a_node_that_is_gone_has_no_actors_that_wait() -> None:
    names = Names(*NODES)
    pool = Pool(names, SPREAD)
    pool.warm(1, 3)
    names.there = NODES[:2]
    pool.warm(1, 3)
    assert all(node_of(name) != "c" for name in pool.take(3).workers)


def test_who_wants_idle_cores_shares_none() -> None:
    names = Names(Node("a", 1, 4), Node("b", 1, 4))
    pool = Pool(names, PACK)
    crew = pool.take(1, idle_cores=True)
    own = list(crew.workers)
    found = recruit(names, crew, own)
    assert found is not None
    assert {node_of(name) for name in own} == {"a", "b"}
    assert recruit(names, crew, own) is None
    names.there = (*names.there, Node("c", 2, 4))
    assert [node_of(str(recruit(names, crew, own))) for _ in range(2)] == ["c", "c"]
    assert recruit(names, crew, own) is None


def test_nobody_waits_on_a_node_that_no_job_has_used_of_late() -> None:
    now = [0.0]
    names = Names(Node("controller", 0, 0, has_home=True), Node("b", 2, 2, has_home=True), Node("c", 2, 2))
    pool = Pool(names, PACK, rest_seconds=60.0, clock=lambda: now[0])
    pool.warm(1, 4)
    crew = start(names, pool, 2)
    assert {node_of(name) for name in crew.all} == {"b"}
    now[0] = 61.0
    pool.warm(1, 4)
    assert names.killed != []  # those that waited on `c`
    assert {node_of(name) for name in names.held} == {"b"}
    names.detach(crew)
    pool.release(crew.trainer)
    now[0] = 120.0
    pool.warm(1, 4)
    assert len(names.workers(NOBODY)) == 2
    theirs = sorted(names.workers(NOBODY))[0]
    names.held[theirs] = "TrainerHost-somebody's"  # who has recruited it meanwhile
    now[0] = 122.0
    pool.warm(1, 4)
    assert {name for name in names.held if node_of(name) != "controller"} == {theirs}
    pool.warm(1, 4)
    assert kind_of(theirs) == WORKER
    assert all(node_of(name) == "controller" or name == theirs for name in names.held)
    assert node_of(start(names, pool, 1).workers[0]) in "bc"  # a job takes what there is, ready or not
