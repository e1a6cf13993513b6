"""Which rows are behind which step, as a pure function of (seed, epoch, step, shard).

The training rows are cut into contiguous data shards, and each shard into its parts of the epoch's minibatches. All
full minibatches hold exactly `batch_size` rows over all shards; what remains makes one partial one at the epoch's end,
of which a shard's part may be empty. So every row is used exactly once an epoch.

A step, which is what is committed, is one minibatch; or, where shards take local steps (worker.local_steps), a round of
up to `local_steps` minibatches. Rounds do not go across epochs: an epoch's last one may be shorter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ORDER = 1  # keeps this use of the seed apart from others


def share(total: int, shards: int, shard: int) -> int:
    """The part of `total` that is `shard`'s when the first shards take one more each until nothing is left."""
    return total // shards + (shard < total % shards)


@dataclass(frozen=True)
class Sampling:
    """`rows` training rows in minibatches of `batch_size` over `shards` shards, in orders that `seed` decides.

    `local_steps`: minibatches in a step.
    """

    rows: int
    batch_size: int
    shards: int
    seed: int
    local_steps: int = 1

    @property
    def full_steps(self) -> int:
        """Full minibatches in an epoch."""
        return self.rows // self.batch_size

    @property
    def minibatches(self) -> int:
        """Minibatches in an epoch, a partial last one included."""
        return -(-self.rows // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, a shorter last one included."""
        return -(-self.minibatches // self.local_steps)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, of `step`, from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def shard_rows(self, shard: int) -> int:
        """How many rows are the shard's."""
        remainder = self.rows - self.full_steps * self.batch_size
        return self.full_steps * share(self.batch_size, self.shards, shard) + share(remainder, self.shards, shard)

    def shard_start(self, shard: int) -> int:
        """The first row of the shard; the rest follows it."""
        return sum(self.shard_rows(k) for k in range(shard))

    def largest_part(self) -> int:
        """The most rows that any shard has in one minibatch."""
        return share(min(self.batch_size, self.rows), self.shards, 0)

    def order(self, epoch: int, shard: int) -> NDArray[np.int64]:
        """The shard's rows, int64 (shard_rows,), in the order in which `epoch` uses them."""
        seed = np.random.SeedSequence((self.seed, epoch, shard, _ORDER))
        order = np.random.Generator(np.random.Philox(seed)).permutation(self.shard_rows(shard))
        return order + self.shard_start(shard)

    def part(self, step: int, shard: int) -> slice:
        """Where in the shard's order the rows of `step`, from 1, stand."""
        number = (step - 1) % self.steps_per_epoch
        size = self.local_steps * share(self.batch_size, self.shards, shard)
        return slice(number * size, min((number + 1) * size, self.shard_rows(shard)))

    def minibatches_before(self, step: int) -> int:
        """How many minibatches all steps before `step`, from 1, have."""
        epochs, steps = divmod(step - 1, self.steps_per_epoch)
        return epochs * self.minibatches + steps * self.local_steps


def evaluation_part(rows: int, shards: int, shard: int) -> slice:
    """The rows of a split that are `shard`'s in an evaluation."""
    return slice(shard * rows // shards, (shard + 1) * rows // shards)


def deal(shards: int, workers: int) -> list[tuple[int, ...]]:
    """Each worker's shards: dealt out one by one. The result does not depend on the deal, only the time taken does."""
    return [tuple(range(worker, shards, workers)) for worker in range(workers)]
