"""The benchmark of the engine: its processes, its rows, and what it says of a peer that is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RACE = """
import json
from benchmarks.contenders import Case
from benchmarks.race import Options, race
case = Case((8, 6, 3), 16)
names = ("ours", "hand-written", "scikit-learn", "PyTorch")
for result in race([(name, case) for name in names], Options(3, 0.01)):
    print(json.dumps([result.name, len(result.rates), result.missing]))
"""
ROWS = """
import json
from benchmarks.contenders import Case
from benchmarks.engine import fastest, peer_row
from benchmarks.race import Result
case, ours = Case((784, 256, 128, 10), 128), Result("ours", [300.0, 100.0, 220.0])
slow, fast, gone = Result("a", [90.0, 80.0, 100.0]), Result("b", [200.0, 50.0, 100.0]), Result("c", missing="no c")
rows = [peer_row("g", case, ours, peer, 1.9) for peer in (fastest([slow, fast, gone]), fastest([gone]))]
print(json.dumps([row.to_json() for row in rows]))
print(case.flops)
"""
SAME = """
import json
import numpy as np
from benchmarks.contenders import CONTENDERS, Case
from benchmarks.race import rows_for
case = Case((8, 6, 3), 16)
moved = []
for name in ("ours", "ours in place", "ours checked"):
    contender = CONTENDERS[name](case, *rows_for(case, None))
    start = contender.now.copy()
    contender.run(20)
    moved.append(contender.now - start)
print(json.dumps([float(np.abs(moved[0]).max()), *(float(np.abs(m - moved[0]).max()) for m in moved[1:])]))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_contenders_take_turns_and_a_missing_one_says_so():
    ours, by_hand, sklearn, torch = map(json.loads, run(RACE))
    assert ours == ["ours", 3, ""]
    assert by_hand == ["hand-written", 3, ""]
    assert sklearn == ["scikit-learn", 3, ""]
    assert torch in (["PyTorch", 3, ""], ["PyTorch", 0, "torch is not installed"])


def test_the_engine_does_the_same_however_it_is_updated():
    moved, *differences = json.loads(run(SAME)[0])
    assert moved > 0.01
    assert max(differences) < 1e-5


def test_rows_hold_the_median_ratio_of_the_rounds_against_the_faster_peer():
    lines = run(ROWS)
    there, missing = json.loads(lines[0])
    assert there == {
        "goal": "g", "case": "784-256-128-10, batch 128, 1 thread (b)", "ours": 220.0, "peer": 100.0,
        "unit": "examples/s", "ratio": 2.0, "target": 1.9, "met": True,
    }  # fmt: skip
    assert missing["peer"] is missing["ratio"] is None
    assert missing["met"] is False
    assert missing["case"].endswith("(no c)")
    # 4 operations a first-layer weight, 6 a later one.
    assert int(lines[1]) == 4 * 784 * 256 + 6 * (256 * 128 + 128 * 10)


@pytest.mark.parametrize("arguments", [["nonsense"], ["--rounds", "many"]])
def test_wrong_arguments_are_refused(arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert arguments[-1] in done.stderr
