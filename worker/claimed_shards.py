"""A seat's shards where there are more shards than seats: claimed one by one, so that the fast do more (worker.claims).

While nobody is slow the first ones are dealt. A slow seat leaves what the others would be done with sooner. All seats
know the same pace of each, and so decide alike.
"""

import time
from collections.abc import Iterator
from itertools import chain

from worker.claims import Claims, is_slow, is_worth, sure
from worker.segment import Segment

_SMOOTHING = 0.3  # of a seat's seconds a shard, from step to step
_FORGETTING = 0.98  # a step: who is too slow to claim anything tries again some day


class ClaimedShards:
    """Those of seat `number` of `seats`, step after step."""

    def __init__(self, claims: Claims, segment: Segment, number: int, seats: int) -> None:
        self._claims, self._number, self._seats = claims, number, seats
        self._shards = segment.layout.shards
        self._seconds, self._began = segment.seat_seconds[:seats], segment.seat_began[:seats]
        self._dealt = 0  # so many of the step's first shards are dealt, the others claimed
        self._pace = [0.0] * seats  # seconds a shard of each seat, as all know them in this step
        self._done, self._spent = 0, 0.0  # shards, and seconds for them, in the last step

    def of(self, step: int) -> Iterator[int]:
        """One after the other, as the seat asks for them: it has computed each when it asks for the next."""
        self._pace, self._done = self._seconds.tolist(), 0
        self._began[self._number] = now = first = time.monotonic()
        for shard in chain(range(self._number, self._dealt, self._seats), self._claimed(step)):
            yield shard
            self._done += 1
            self._began[self._number] = now = time.monotonic()
        self._spent = now - first

    def prepare(self, step: int, target: int) -> None:
        """Between two barriers, when nobody claims: the next step's tokens, and how fast this seat was in `step`.

        `target`: the last step that was asked for.
        """
        seconds, seat = self._seconds, self._number
        if self._done:
            found = self._spent / self._done
            seconds[seat] = seconds[seat] + _SMOOTHING * (found - seconds[seat]) if seconds[seat] else found
        else:
            seconds[seat] *= _FORGETTING
        # By what all knew when the step began: what they find out between these barriers is not yet the same for all.
        somebody_is_slow = any(is_slow(each, self._pace) for each in range(self._seats))
        self._dealt = 0 if somebody_is_slow or step == target else sure(self._shards, self._seats)
        if seat == 0 and step < target:
            self._claims.offer(step + 1, range(self._dealt, self._shards), self._seats)

    def close(self) -> None:
        """Leave the pipe."""
        self._claims.close()

    def _claimed(self, step: int) -> Iterator[int]:
        slow = is_slow(self._number, self._pace)
        while not (slow and self._leaves_it()) and (shard := self._claims.take(step)) is not None:
            yield shard

    def _leaves_it(self) -> bool:
        """Whether the others are done with all that is left before this seat would be with one shard."""
        pace, now = self._pace, time.monotonic()
        fastest = min(value for value in pace if value)
        others = [
            (each or fastest, max(since + (each or fastest) - now, 0.0))
            for seat, (each, since) in enumerate(zip(pace, self._began.tolist(), strict=True))
            if seat != self._number
        ]
        return not is_worth(pace[self._number], others, max(self._claims.left() - self._seats, 0))
