"""deploy/ is held against the code: its commands and settings exist."""

import re
from pathlib import Path

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
