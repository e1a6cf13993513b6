"""What else a user could train with on two cores, beside two workers of ours: each step's rate, and time to accuracy.

Usage: python -m benchmarks peers --mnist FOLDER     (without MNIST: no time to accuracy)

784-256-128-10, ReLU, softmax cross-entropy, plain SGD, float32. Ours: two processes, one shard and one BLAS thread
each, that exchange through shared memory. PyTorch and JAX have the same two cores in one process. Each of Ray's
contenders races with ours alone: an idle cluster does not quite rest, and a service of ours has one beside it, not two.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import time_to_accuracy
from benchmarks.contenders import Case
from benchmarks.engine import fastest, heading
from benchmarks.race import Options, Result, race
from benchmarks.rows import Row, figure, table

SIZES, BATCHES = (784, 256, 128, 10), (32, 128, 1024)
OURS, APART = "ours, 2 workers", "ours, 2 apart"
# Each races with ours.
GROUPS = (
    (APART, "PyTorch", "PyTorch fused", "torch.compile", "JAX"),
    ("Ray Train",),
    ("Ray parameter server",),
)
# A row: what it is called, and the contenders of which the fastest counts.
PEERS = {
    "PyTorch, 2 threads": ("PyTorch", "PyTorch fused"),
    "torch.compile, 2 threads": ("torch.compile",),
    "JAX, 2 cores": ("JAX",),
    "Ray Train, 2 workers": ("Ray Train",),
    "Ray parameter server, 2 actors": ("Ray parameter server",),
}
# The least ratio by batch; elsewhere ours is to be no slower.
GOALS = {
    "PyTorch, 2 threads": {128: 1.3, 1024: 1.2},
    "torch.compile, 2 threads": {128: 1.3, 1024: 1.2},
    "JAX, 2 cores": {128: 1.1, 1024: 1.1},
    "Ray Train, 2 workers": {128: 5.0, 1024: 2.2},
}


def run(results: Path, options: Options) -> list[Row]:
    """Measure; leaves peers.md in `results`."""
    report, rows = [heading(options)], list[Row]()
    for batch in BATCHES:
        case = Case(SIZES, batch, threads=2)
        groups = [
            {result.name: result for result in race([(name, case) for name in (OURS, *names)], options)}
            for names in GROUPS
        ]
        report.append(rates_table(batch, groups))
        print(report[-1], flush=True)
        rows += batch_rows(batch, groups)
    rows += time_to_accuracy.run(options)
    report.append(table(rows))
    results.mkdir(parents=True, exist_ok=True)
    (results / "peers.md").write_text("\n\n".join(report) + "\n")
    return rows


def rates_table(batch: int, groups: Sequence[Mapping[str, Result]]) -> str:
    """All contenders of one batch; ours once for each group, since each ratio is one of the same rounds."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    lines = [f"### batch {batch}{load}", "| contender | examples/s | ours / it |", "|---|---|---|"]
    for group in groups:
        for name, result in group.items():
            if result.missing:
                lines.append(f"| {name} | {result.missing} | |")
            elif group[OURS].missing:
                lines.append(f"| {name} | {figure(result.rate)} | |")
            else:
                lines.append(f"| {name} | {figure(result.rate)} | {group[OURS].ratio(result):.2f} |")
    return "\n".join(lines)


def batch_rows(batch: int, groups: Sequence[Mapping[str, Result]]) -> list[Row]:
    """A row a peer; one that is missing says so, and is not met."""
    rows = []
    for peer, names in PEERS.items():
        group = next(group for group in groups if names[0] in group)
        ours, theirs = group[OURS], fastest([group[name] for name in names])
        target = GOALS.get(peer, {}).get(batch, 1.0)
        goal, case, unit = f"2 workers against {peer}", f"batch {batch}", "examples/s"
        if missing := ours.missing or theirs.missing:
            rate = 0.0 if ours.missing else ours.rate
            rows.append(Row(goal, f"{case} ({missing})", rate, None, unit, None, target))
        else:
            rows.append(Row(goal, f"{case} ({theirs.name})", ours.rate, theirs.rate, unit, ours.ratio(theirs), target))
    return rows
