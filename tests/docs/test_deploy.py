"""deploy/ is held against the code: its commands and settings exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.cli import main
from service.settings import SETTINGS, Settings

UNIT = Path(__file__).parents[2] / "deploy" / "fallline.service"


def test_the_unit_runs_a_command_that_exists_with_settings_that_do() -> None:
    text = UNIT.read_text()
    (command,) = re.findall(r"^ExecStart=.*/fallline (\w+)$", text, re.MULTILINE)
    assert command in main.commands
    given = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    assert given.keys() <= {setting.name for setting in SETTINGS}
    Settings.from_environment({name: value.replace("%h", "/home/x") for name, value in given.items()})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    executable = tmp_path / "fallline"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    unit = tmp_path / "fallline.service"
    unit.write_text(UNIT.read_text().replace("%h/fallline/.venv/bin/fallline", str(executable)))
    done = subprocess.run(["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
