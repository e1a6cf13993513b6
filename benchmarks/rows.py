"""The rows of benchmarks/results/latest.json: one a goal, ours beside a peer's."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One goal in one case. `ratio` is what is held against `target`, a least one, or a `ceiling`: a largest one.

    A row whose peer is missing has no peer's figure and no ratio, says so in its case, and is not met.
    """

    goal: str
    case: str
    ours: float
    peer: float | None
    unit: str
    ratio: float | None
    target: float
    ceiling: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        if self.ratio is None:
            return False
        return self.ratio <= self.target if self.ceiling else self.ratio >= self.target

    def to_json(self) -> dict[str, object]:
        """As `latest.json` has it."""
        names = ("goal", "case", "ours", "peer", "unit", "ratio", "target", "met")
        return {name: getattr(self, name) for name in names}


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| goal | case | ours | peer | unit | ratio | target | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        target = f"{'<=' if row.ceiling else '>='} {row.target:.2f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        peer = "" if row.peer is None else figure(row.peer)
        met = "met" if row.met else "not met"
        lines.append(
            f"| {row.goal} | {row.case} | {figure(row.ours)} | {peer} | {row.unit} | {ratio} | {target} | {met} |"
        )
    return "\n".join(lines)


def figure(value: float) -> str:
    """A number with three digits that count, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
