"""One service a home."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.home import ServeError, only_one

HOLD = (
    "import sys; from pathlib import Path; from service.home import only_one\n"
    "with only_one(Path(sys.argv[1])):\n    print('held', flush=True); input()"
)


def test_a_second_service_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ServeError, match=str(first.pid)), only_one(tmp_path):
            pass
        first.kill()
    with only_one(tmp_path):
        assert (tmp_path / "run" / "lock").read_text().isspace() is False
