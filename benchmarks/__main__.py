"""Runs the sections named on the command line, or all: a table, and benchmarks/results/latest.json."""

import importlib
import json
import sys
from pathlib import Path

# Each section is a module with `run() -> list[dict]`: one row a goal of GOALS, in the shape that is printed below.
SECTIONS = ("engine",)
# Modules with a `main` that prints a table of its own; run only when named.
TABLES = ("accuracy",)
RESULTS = Path(__file__).parent / "results" / "latest.json"


def main(names: list[str]) -> int:
    """Run the sections and report; 2 on an unknown name."""
    unknown = [name for name in names if name not in SECTIONS + TABLES]
    if unknown:
        print(f"unknown section {unknown[0]!r}; known: {', '.join(SECTIONS + TABLES)}", file=sys.stderr)
        return 2
    rows = []
    for name in names or SECTIONS:
        if name in TABLES:
            importlib.import_module(f"benchmarks.{name}").main()
            continue
        for row in importlib.import_module(f"benchmarks.{name}").run():
            rows.append(row)
            print(
                f"{row['goal']}: {row['case']:<50} ours {row['ours']:>10,.0f}  peer {row['peer']:>10,.0f} {row['unit']}"
                f"  ratio {row['ratio']:.2f} (target {row['target']:.2f}: {'met' if row['met'] else 'not met'})"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
