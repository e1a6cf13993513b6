"""`fallline demo`, as a newcomer runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


def test_from_nothing_to_a_prediction(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it ends its service, and says how far it has come
        pytest.fail(f"still running after 240 s:\n{process.communicate()[0]}")
    assert process.returncode == 0, output
    assert "training starts; workers: 2, data shards: 2" in output
    (accuracy,) = re.findall(r"^test accuracy (0\.\d+)$", output, re.MULTILINE)
    assert float(accuracy) >= 0.96
    assert re.search(r"^weights_sha256 [0-9a-f]{64}$", output, re.MULTILINE)
    assert re.search(r"^mlflow run [0-9a-f]{32}$", output, re.MULTILINE)
    ((predicted, true),) = re.findall(r"^prediction of version 1: (\d), true label: (\d)$", output, re.MULTILINE)
    assert predicted == true
    assert not list(tmp_path.glob("fallline-*")), "the temporary home is gone"
