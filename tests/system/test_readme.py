"""The README's commands, as written there, against a real service."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.local_service import LocalService

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
# What the suite itself is run by, or what runs until it is stopped: tests/system/test_demo.py, and the fixture here.
ELSEWHERE = {"make demo", "make serve", "make check\nmake test"}


def blocks() -> list[str]:
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)]


@pytest.fixture(scope="module")
def service(running: Any) -> LocalService:
    found: LocalService = running.local
    return found


@pytest.fixture(scope="module")
def environ(service: LocalService) -> dict[str, str]:
    """By which the command line finds it."""
    return {**os.environ, "FALLLINE_HOME": str(service.home)}


def test_the_commands_train_deploy_and_predict(service: LocalService, environ: dict[str, str], tmp_path: Path) -> None:
    written = blocks()
    assert set(written) >= ELSEWHERE
    script = "\n".join(["set -euo pipefail", *(block for block in written if block not in ELSEWHERE)])
    # What differs from a reader's terminal: the free port, and where the virtual environment is.
    script = script.replace("localhost:8000", service.url.removeprefix("http://"))
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"object":"dataset"' in done.stdout
    assert '"object":"plan"' in done.stdout
    assert '"message":"succeeded"' in done.stdout
    answer = json.loads(done.stdout[done.stdout.rindex('{"model":') :])
    assert answer["predictions"][0]["label"] == 0  # the first of the digits


def test_the_python_lines_run(environ: dict[str, str], tmp_path: Path) -> None:
    from service.demo import write_digits

    write_digits(tmp_path / "digits.csv")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[0-9a-f]{64}", done.stdout)
