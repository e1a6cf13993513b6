"""Measures the goals, ours beside the peers: tables, and benchmarks/results/latest.json.

Usage: python -m benchmarks [SECTION ...] [--mnist FOLDER] [--rounds N] [--seconds S] [--clock wall|process]

Sections: engine, distribution, exchange, peers, time, queue, mnist, local, nodes, hosts; all of them, unless some are
named. accuracy, a table of its own, runs only when it is named.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.race import CLOCKS, Options
from benchmarks.rows import Row, table

# The modules, each with `run(results, options) -> list[Row]`.
SECTIONS = {
    "engine": "engine",
    "distribution": "distribution",
    "exchange": "exchange_alone",
    "peers": "two_cores",
    "time": "latency",
    "queue": "long_queue",
    "mnist": "mnist",
    "local": "local_rounds",
    "nodes": "nodes",
    "hosts": "over_hosts",
}
# Modules with a `main` that prints a table of its own.
TABLES = ("accuracy",)
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str]) -> int:
    """Run the sections and report; 2 on wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside the peers.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join((*SECTIONS, *TABLES)))
    parser.add_argument("--mnist", metavar="FOLDER", help="with MNIST's four idx files; without it, rows are made up")
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contender has (7)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn (0.3)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: on a busy machine, one thread alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to leave the results in")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in (*SECTIONS, *TABLES)]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; known: {', '.join((*SECTIONS, *TABLES))}")
    measured = Options(options.rounds, options.seconds, options.clock, options.mnist)
    rows: list[Row] = []
    for name in options.sections or SECTIONS:
        module = importlib.import_module(f"benchmarks.{SECTIONS.get(name, name)}")
        if name in TABLES:
            module.main()
        else:
            rows += module.run(options.results, measured)
    if rows:
        print(table(rows))
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "latest.json").write_text(json.dumps([row.to_json() for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
