"""The goals of section Engine: our step beside the hand-written one, PyTorch, JAX, scikit-learn and SGEMM's peak.

Every figure is a median over rounds in which the contenders take turns; a ratio is the median of the rounds' ratios.
"""

import datetime
import importlib.metadata
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

from benchmarks import cost_laws
from benchmarks.contenders import Case, Contender, Engine, Sgemm, Yardstick
from benchmarks.race import Options, Result, race, rows_for
from benchmarks.rows import Row, figure, table
from core.activations import ACTIVATIONS

SMALL, LARGE = (784, 256, 128, 10), (784, 1024, 1024, 10)
CASES = [(SMALL, 8), (SMALL, 32), (SMALL, 128), (SMALL, 1024), (LARGE, 256)]
CONTENDERS = (
    "ours", "ours in place", "ours checked", "hand-written",
    "PyTorch", "PyTorch fused", "torch.compile", "JAX", "scikit-learn", "SGEMM",
)  # fmt: skip
PYTORCH = ("PyTorch", "PyTorch fused")
# (peer, batch) -> the least ratio, on one thread.
PEER_GOALS = {
    ("PyTorch", 8): 1.5,
    ("PyTorch", 32): 1.5,
    ("PyTorch", 128): 1.3,
    ("scikit-learn", 128): 1.5,
    ("JAX", 32): 1.0,
    ("JAX", 128): 1.05,
    ("JAX", 1024): 1.1,
}
PEAK_GOALS = {128: 0.80, 1024: 0.86}
# By hand 19 us a step of 10-10-10 at batch 1, and 6.8 us a further layer; ours may take 35 and 9.
OVERHEAD_GOALS = {"step": 35 / 19, "layer": 9 / 6.8}
TINY, TINY_DEEP = Case((10,) * 3, 1), Case((10,) * 13, 1)


def run(results: Path, options: Options) -> list[Row]:
    """Measure; leaves engine.md and cost_laws.png in `results`."""
    report = [heading(options)]
    rows: list[Row] = []
    for threads in (1, 2) if (os.cpu_count() or 1) > 1 and options.clock == "wall" else (1,):
        for sizes, batch in CASES:
            case = Case(sizes, batch, threads)
            found = {r.name: r for r in race([(name, case) for name in CONTENDERS], options)}
            report.append(step_table(case, found))
            print(report[-1], flush=True)
            rows += step_rows(case, found)
    rows += activation_rows(options)
    rows += overhead_rows(options)
    rows += [allocation_row(options)]
    rows += cost_laws.run(options, results / "cost_laws.png")
    report.append(table(rows))
    results.mkdir(parents=True, exist_ok=True)
    (results / "engine.md").write_text("\n\n".join(report) + "\n")
    return rows


def heading(options: Options) -> str:
    """Where, when and with what."""
    model = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    versions = []
    for name in ("numpy", "torch", "jax", "scikit-learn"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
    data = "rows of MNIST" if options.mnist else "rows with MNIST's statistics"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    day = datetime.datetime.now(datetime.UTC).date()
    machine = f"{day}, {model}, {os.cpu_count()} cores{load}"
    return f"{machine}; {', '.join(versions)}; {data}; median of {options.rounds} rounds, {options.clock} time."


def step_table(case: Case, found: Mapping[str, Result]) -> str:
    """All contenders in one case."""
    lines = [f"### {case.name}", "| contender | examples/s | GFLOP/s | ours / it |", "|---|---|---|---|"]
    for name, result in found.items():
        if result.missing:
            lines.append(f"| {name} | {result.missing} | | |")
        elif name == "SGEMM":
            lines.append(f"| SGEMM, 2048 | | {result.rate * Sgemm.FLOPS / 1e9:.0f} | {peak(case, found):.2f} of it |")
        else:
            ratio = found["ours"].ratio(result)
            lines.append(f"| {name} | {figure(result.rate)} | {result.rate * case.flops / 1e9:.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def peak(case: Case, found: Mapping[str, Result]) -> float:
    """Our part of SGEMM's rate."""
    return found["ours"].ratio(found["SGEMM"]) * case.flops / Sgemm.FLOPS


def step_rows(case: Case, found: Mapping[str, Result]) -> list[Row]:
    """The goals that one case is held to."""
    ours = found["ours"]
    rows = [peer_row("no slower than the hand-written step", case, ours, found["hand-written"], 1.0)]
    if case.threads == 1 and case.sizes == SMALL:
        for (name, batch), target in PEER_GOALS.items():
            if batch == case.batch:
                peers = [found[n] for n in (PYTORCH if name == "PyTorch" else (name,))]
                rows.append(peer_row(f"against {name}", case, ours, fastest(peers), target))
        if case.batch in PEAK_GOALS:
            rates = ours.rate * case.flops / 1e9, found["SGEMM"].rate * Sgemm.FLOPS / 1e9
            rows.append(Row("of SGEMM's peak", case.name, *rates, "GFLOP/s", peak(case, found), PEAK_GOALS[case.batch]))
    return rows


def fastest(results: list[Result]) -> Result:
    """The peer at its best; a missing one only where all are."""
    return max(results, key=lambda result: -1 if result.missing else result.rate)


def peer_row(goal: str, case: Case, ours: Result, peer: Result, target: float) -> Row:
    """Rates side by side."""
    if peer.missing:
        return Row(goal, f"{case.name} ({peer.missing})", ours.rate, None, "examples/s", None, target)
    return Row(goal, f"{case.name} ({peer.name})", ours.rate, peer.rate, "examples/s", ours.ratio(peer), target)


def activation_rows(options: Options) -> list[Row]:
    """The time of a step with each activation, by that of ReLU's."""
    cases = {name: Case(SMALL, 128, activation=name) for name in ACTIVATIONS if name != "relu"}
    relu, *others = race([("ours", Case(SMALL, 128)), *(("ours", c) for c in cases.values())], options)
    goal, base = "a step of any activation, in ReLU's time", 1e6 * 128 / relu.rate
    return [
        Row(goal, cases[name].name, 1e6 * 128 / result.rate, base, "us", relu.ratio(result), 1.25, ceiling=True)
        for name, result in zip(cases, others, strict=True)
    ]


def overhead_rows(options: Options) -> list[Row]:
    """Python's part: what a step costs when the arithmetic costs nothing, and what a further layer adds."""
    cases = (TINY, TINY_DEEP)
    ours, deep, by_hand, deep_by_hand = (
        1e6 / result.rate
        for result in race([(name, case) for name in ("ours", "hand-written") for case in cases], options)
    )
    layers = len(TINY_DEEP.sizes) - len(TINY.sizes)
    more, more_by_hand = (deep - ours) / layers, (deep_by_hand - by_hand) / layers
    step, layer = OVERHEAD_GOALS["step"], OVERHEAD_GOALS["layer"]
    return [
        Row("Python's overhead a step", "10-10-10, batch 1", ours, by_hand, "us", ours / by_hand, step, ceiling=True),
        Row("Python's overhead a layer", "of 10, batch 1", more, more_by_hand, "us", more / more_by_hand, layer, True),
    ]


def allocation_row(options: Options) -> Row:
    """The most that a step allocates after the first ones, Python's small objects included.

    An array of one float a row would be 4096 bytes.
    """
    case = Case(SMALL, 1024)
    ours, by_hand = (float(_peak_of_a_step(kind(case, *rows_for(case, options.mnist)))) for kind in (Engine, Yardstick))
    return Row("no array allocated in a step", case.name, ours, by_hand, "bytes at most", ours, 4095, ceiling=True)


def _peak_of_a_step(contender: Contender) -> int:
    contender.run(5)
    rows, peaks = contender.next_rows(), []
    tracemalloc.start()
    for _ in range(20):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        contender.step(rows)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return max(peaks[2:])  # the first ones see tracemalloc's own
