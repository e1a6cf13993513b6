"""`fallline demo`, as a newcomer runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


def test_from_nothing_to_a_prediction(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    assert "training starts; workers: 2, data shards: 2" in output
    (accuracy,) = re.findall(r"^test accuracy (0\.\d+)$", output, re.MULTILINE)
    assert float(accuracy) >= 0.96
    assert re.search(r"^weights_sha256 [0-9a-f]{64}$", output, re.MULTILINE)
    assert re.search(r"^mlflow run [0-9a-f]{32}$", output, re.MULTILINE)
    ((predicted, true),) = re.findall(r"^prediction of version 1: (\d), true label: (\d)$", output, re.MULTILINE)
    assert predicted == true
    assert not list(tmp_path.glob("fallline-*")), "the temporary home is gone"
