"""The commands of the embedded Ray and MLflow: loopback, ports of their own, nobody else's settings."""

import socket
from pathlib import Path

import pytest

from service.embedded import mlflow_server, python_module, ray_environment, ray_head, without_ray
from service.home import ServeError
from service.ports import chosen_port, free_port, held, is_free, listens, reachable
from service.settings import Settings
from service.supervisor import Supervisor

ENVIRON = {
    "PATH": "/bin",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "MLFLOW_TRACKING_URI": "http://elsewhere",
    "OMP_NUM_THREADS": "8",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4",
}


def test_ray_gets_our_settings_and_nobody_elses() -> None:
    environment = ray_environment(ENVIRON, "secret")
    assert environment["PATH"] == "/bin"
    assert "RAY_ADDRESS" not in environment
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", "secret")
    assert {environment[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")} == {"1"}
    assert (environment["OPENBLAS_CORETYPE"], environment["NPY_DISABLE_CPU_FEATURES"]) == ("Haswell", "X86_V4")
    assert not [name for name in without_ray(environment) if name.startswith("RAY_")]


def test_ray_stays_on_this_machine(tmp_path: Path) -> None:
    command = ray_head(ray_environment({}, "secret"), 4321, tmp_path, 16)
    assert Path(command.arguments[0]).exists()
    assert "--node-ip-address=127.0.0.1" in command.arguments
    assert "--port=4321" in command.arguments
    assert '--resources={"worker_slots": 16}' in command.arguments
    assert command.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert command.remove == tmp_path
    assert not [argument for argument in command.arguments if "secret" in argument]  # `ps` shows arguments to all


def test_workers_find_the_services_home_wherever_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative home is relative to where the service was started, and Ray's workers run elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FALLLINE_HOME", "here")
    settings = Settings.from_environment({"FALLLINE_HOME": "here", "FALLLINE_PORT": "0", "FALLLINE_MLFLOW_PORT": "0"})
    settings.make_folders()
    (settings.home / "run").mkdir(exist_ok=True)
    command = Supervisor(settings)._ray()
    command.folder.rmdir()
    assert command.environment["FALLLINE_HOME"] == str(tmp_path / "here")


def test_mlflow_keeps_to_its_folder_and_its_host(tmp_path: Path) -> None:
    command = mlflow_server(ENVIRON, 4321, tmp_path)
    assert f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db" in command.arguments
    assert "--allowed-hosts=127.0.0.1:4321,localhost:4321" in command.arguments
    assert command.folder == tmp_path
    assert "MLFLOW_TRACKING_URI" not in command.environment
    assert command.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_our_processes_do_not_import_from_the_working_directory(tmp_path: Path) -> None:
    assert python_module("service.app", {}, tmp_path).arguments[1:] == ["-P", "-m", "service.app"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ports(host: str) -> None:
    port = free_port(host)
    assert is_free(host, port)
    assert chosen_port("FALLLINE_PORT", host, port) == port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        assert listens(host, port)
        assert not is_free(host, port)
        with pytest.raises(ServeError, match=f"port {port} is in use: set FALLLINE_PORT"):
            chosen_port("FALLLINE_PORT", host, port)
        assert chosen_port("FALLLINE_PORT", host, 0) != port
    assert not listens(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_held_port_is_its_servers_alone_before_it_serves_and_after(host: str) -> None:
    """Of the kernel's free ports, whoever binds one by its number, none is this."""
    port, family = free_port(host), socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family),
        pytest.raises(ServeError, match=f"port {port} of"),
        held(host, port),
    ):
        pass
    with held(host, port):
        for _ in range(2):
            with socket.socket(family) as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind((host, port))
            with socket.create_server((host, port), family=family):
                assert listens(host, port)
        assert not listens(host, port)
    with socket.socket(family) as stranger:
        stranger.bind((host, port))


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.4", "10.0.0.4")],
)
def test_what_is_bound_has_a_name_that_can_be_called(host: str, name: str) -> None:
    assert reachable(host) == name
