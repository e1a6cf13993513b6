"""`fallline serve --only PART`: the process becomes the part, with its signals and its exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli import main
from service.home import ServeError
from service.one_part import PARTS, check_ray_address
from service.ports import LOOPBACK, free_port, listens
from service.settings import Settings


def test_the_process_becomes_the_api_and_ends_as_it_does(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FALLLINE_")}
    command = [sys.executable, "-m", "service.cli", "serve", "--only", "api"]
    environ = clean | {"FALLLINE_HOME": str(home), "FALLLINE_PORT": str(port)}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not listens(LOOPBACK, port):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)  # polls a condition
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert "service.app" in title  # the same process, another program
        assert not [name for name in Path(f"/proc/{process.pid}/environ").read_text().split("\0") if name[:4] == "RAY_"]
        assert (home / "run").is_dir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM  # uvicorn ends in order, then says by what
    finally:
        process.kill()
        process.wait()


def test_the_controller_needs_a_cluster_to_join(tmp_path: Path) -> None:
    for address in ("", "ray://10.0.0.1:10001", "10.0.0.1"):
        environ = {"FALLLINE_HOME": str(tmp_path / "home"), "FALLLINE_RAY_ADDRESS": address}
        found = CliRunner().invoke(main, ["serve", "--only", "controller"], env=environ)
        assert found.exit_code == 1
        assert f"FALLLINE_RAY_ADDRESS={address}: expected HOST:PORT" in found.output
    assert not (tmp_path / "home").exists()
    check_ray_address("ray-head:6379")


def test_the_controller_keeps_the_variables_of_a_cluster_that_is_not_ours(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FALLLINE_HOME": str(tmp_path), "FALLLINE_RAY_ADDRESS": "ray-head:6379"})
    command = PARTS["controller"](settings, {"RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"})
    assert command.environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"


def test_mlflow_listens_where_the_settings_say_and_answers_to_their_names(tmp_path: Path) -> None:
    given = {"HOME": str(tmp_path), "HOST": "0.0.0.0", "TRUSTED_NETWORK": "true", "ALLOWED_HOSTS": "mlflow"}
    settings = Settings.from_environment({f"FALLLINE_{name}": value for name, value in given.items()})
    command = PARTS["mlflow"](settings, {"RAY_AUTH_TOKEN": "secret", "FALLLINE_HOST": "0.0.0.0"})
    assert "--host=0.0.0.0" in command.arguments
    assert "--allowed-hosts=127.0.0.1:5000,localhost:5000,mlflow:5000" in command.arguments
    assert "RAY_AUTH_TOKEN" not in command.environment


def test_other_parts_are_not_offered() -> None:
    assert CliRunner().invoke(main, ["serve", "--only", "ray"]).exit_code == 2


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ServeError, match="FALLLINE_RAY_ADDRESS=nowhere: expected HOST:PORT"):
        check_ray_address("nowhere")
