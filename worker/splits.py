"""Which rows train, validate and test: pure functions of the rows, the fractions and the split's seed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

_STREAM = 0x5EED_0001  # keeps the split's random numbers apart from every other use of the same seed


@dataclass(frozen=True)
class Split:
    """Row numbers int64, in the order in which they are stored. Together they are all the rows, each once."""

    train: Rows
    validation: Rows
    test: Rows

    def named(self) -> dict[str, Rows]:
        """By the names that jobs use."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_sizes(rows: int, validation: float, test: float) -> tuple[int, int, int]:
    """(train, validation, test) rows: the fractions rounded, at least one where asked for and `rows` >= 3.

    Training keeps at least one row, or everything where there is nothing to share out.
    """
    sizes = []
    for fraction in (validation, test):
        size = round(rows * fraction)
        sizes.append(max(size, 1) if fraction > 0 and rows >= 3 else size)
    while sum(sizes) >= rows and sum(sizes) > 0:
        sizes[0 if sizes[0] >= sizes[1] else 1] -= 1
    return rows - sum(sizes), sizes[0], sizes[1]


def random_split(rows: Rows, validation: float, test: float, seed: int) -> Split:
    """A seeded shuffle, cut. Training rows stay shuffled."""
    return _cut(_shuffled(rows, seed), split_sizes(len(rows), validation, test))


def stratified_split(rows: Rows, classes: npt.NDArray[np.int32], validation: float, test: float, seed: int) -> Split:
    """`classes` (len(rows),): each part holds every class in its share, as nearly as whole rows allow.

    Each row gets its place within its class as a fraction, and the parts are cut along these fractions: a class of n
    rows sits at (1/2, 3/2, ...)/n, so the first t of all rows hold its share, and a rare class trains before it tests.
    """
    order = _shuffled(np.arange(len(rows), dtype=np.int64), seed)
    by_class = order[np.argsort(classes[order], kind="stable")]
    counts = np.bincount(classes, minlength=1)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(rows)) - starts[classes[by_class]]
    fraction = np.empty(len(rows))
    fraction[by_class] = (place + 0.5) / counts[classes[by_class]]
    ranked = order[np.argsort(fraction[order], kind="stable")]
    parts = _cut(ranked, split_sizes(len(rows), validation, test))
    training = np.zeros(len(rows), dtype=bool)
    training[parts.train] = True
    # Ranked rows come class by class in turn; training wants them shuffled.
    return Split(rows[order[training[order]]], rows[parts.validation], rows[parts.test])


def time_split(
    rows: Rows, times: npt.NDArray[np.float64] | npt.NDArray[np.int32], validation: float, test: float
) -> Split:
    """`times` (len(rows),), without gaps: the oldest rows train, the newest test. Each part is in order of time."""
    ordered = rows[np.argsort(times, kind="stable")]
    train, held, _ = split_sizes(len(rows), validation, test)
    return Split(ordered[:train], ordered[train : train + held], ordered[train + held :])


def _shuffled(rows: Rows, seed: int) -> Rows:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _STREAM))))
    shuffled: Rows = generator.permutation(rows)
    return shuffled


def _cut(ordered: Rows, sizes: tuple[int, int, int]) -> Split:
    """Test rows first, then validation rows, then training rows."""
    _, validation, test = sizes
    return Split(ordered[test + validation :], ordered[test : test + validation], ordered[:test])
